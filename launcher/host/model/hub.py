"""Fetches a model from the Hugging Face Hub: the cached copy if it is complete, otherwise a download with progress.

Separate because it is the only part of the host code that uses the network, and therefore the only part that can hang:
every wait is bounded. ``folder`` interprets the fetched files.
"""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from launcher.errors import ModelAbsentError, UsageError
from launcher.host.model.json_files import ModelErrors
from launcher.host.model.weights import weight_files

_WEIGHTS = re.compile(r"(model|pytorch_model)(-\d+-of-\d+)?\.(safetensors|bin)(\.index\.json)?")
_OTHERS = re.compile(r".*\.(json|txt|model|codes)")


@dataclass(frozen=True, slots=True)
class Fetched:
    """A folder with the model's files; ``notes`` are messages for the user about their origin."""

    folder: Path
    notes: tuple[str, ...] = ()


def fetch(repo: str, *, with_code: bool, seconds: float, download: bool = True) -> Fetched:
    """The files of the model ``repo``, including code only ``with_code``. Raises ``UsageError`` if it is unavailable.

    The Hub has ``seconds`` for each response, not for the whole download. Without ``download`` only the cache is used.
    """
    # Both are read when huggingface_hub is imported, and no other module imports it.
    os.environ.setdefault("HF_HUB_ETAG_TIMEOUT", str(math.ceil(seconds)))
    os.environ.setdefault("HF_HUB_DOWNLOAD_TIMEOUT", str(math.ceil(seconds)))
    cached = _cached(repo)
    if cached is not None and is_complete(cached):
        return Fetched(cached)
    if not download:
        raise ModelAbsentError(
            f"--model {repo}: it is not in the cache, and a report does not download models; start the server once, or "
            "give --model a folder"
        )
    try:
        return Fetched(_download(repo, seconds, with_code=with_code))
    except UsageError:
        raise
    except Exception as error:
        # The client raises its own errors, those of its HTTP library (which differs between versions) and OSError; all
        # of them mean that the Hub cannot provide the model now.
        if cached is not None and has_model(cached):
            return Fetched(cached, (f"using the cached copy, because the Hub could not be reached: {_reason(error)}",))
        raise UsageError(_explanation(repo, error, cached)) from error


def _cached(repo: str) -> Path | None:
    """The folder of the cached copy, complete or not. Reads the file system only: other functions of the client build
    request headers first, for which some versions use the network.
    """
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    try:
        found = [try_to_load_from_cache(repo, name) for name in ("config.json", "modules.json")]
    except HFValidationError as error:
        raise UsageError(f"--model {repo}: neither a folder nor a valid Hub id: {error}") from error
    return next((Path(path).parent for path in found if isinstance(path, str)), None)


def has_model(folder: Path) -> bool:
    """Whether config.json and all weights are present."""
    return (folder / "config.json").is_file() and _has_weights(folder)


def _has_weights(folder: Path) -> bool:
    try:
        return bool(weight_files(folder, ModelErrors(str(folder))))
    except UsageError:
        return False


def is_complete(folder: Path) -> bool:
    """Whether no file can be missing. A copy cached by transformers lacks the files of sentence-transformers, without
    which vectors would be pooled differently. So a missing modules.json is not conclusive, and the Hub is asked."""
    try:
        entries = json.loads((folder / "modules.json").read_text(encoding="utf-8"))
        modules = [(entry["type"].rpartition(".")[2], folder / entry["path"]) for entry in entries]
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return False
    if not any(kind in ("Transformer", "StaticEmbedding") for kind, _ in modules):
        return has_model(folder)
    return all(_has_files(kind, place) for kind, place in modules)


def _has_files(kind: str, place: Path) -> bool:
    """Whether the folder of a module of sentence-transformers has its files."""
    if kind == "Transformer":
        return has_model(place)
    has_config = kind in ("StaticEmbedding", "Normalize") or (place / "config.json").is_file()
    return has_config and (kind not in ("StaticEmbedding", "Dense", "LayerNorm") or _has_weights(place))


def _download(repo: str, seconds: float, *, with_code: bool) -> Path:
    from huggingface_hub import HfApi, snapshot_download

    # A separate first request with a bounded wait, before the client's own retries start.
    info = HfApi().model_info(repo, timeout=seconds)
    names = [sibling.rfilename for sibling in info.siblings or []]
    files = wanted_files(names, with_code=with_code)
    if not any(_WEIGHTS.fullmatch(name) for name in files):
        raise UsageError(
            f"--model {repo}: the Hub has no weights for torch (model.safetensors or pytorch_model.bin), but "
            f"{', '.join(names[:8]) or 'no files'}"
        )
    # Without a revision, because only then does the client record in its cache which copy is current.
    return Path(snapshot_download(repo, allow_patterns=files))


def wanted_files(names: Sequence[str], *, with_code: bool) -> list[str]:
    """The files of a model that are needed: the weights of each folder in one format, JSON and vocabularies of the
    model and of its sentence-transformers modules, code only ``with_code``; no copies for other runtimes."""
    parts = [name for name in names if name.count("/") <= 1 and not name.startswith(("onnx/", "openvino/"))]
    weights = [name for name in parts if _WEIGHTS.fullmatch(name.rpartition("/")[2])]
    safe = {name.rpartition("/")[0] for name in weights if ".safetensors" in name}
    wanted = [name for name in weights if ".safetensors" in name or name.rpartition("/")[0] not in safe]
    others = [name for name in parts if _OTHERS.fullmatch(name) and name not in weights]
    code = [name for name in parts if with_code and name.endswith(".py")]
    return sorted({*wanted, *others, *code})


def _reason(error: Exception) -> str:
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text}"[:200]


def _explanation(repo: str, error: Exception, cached: Path | None) -> str:
    from huggingface_hub import constants
    from huggingface_hub.errors import GatedRepoError, OfflineModeIsEnabled, RepositoryNotFoundError

    looked = f"searched as a folder, in the cache {constants.HF_HUB_CACHE}"
    if cached is not None:
        looked += " (an incomplete copy)"
    if isinstance(error, GatedRepoError):
        return f"--model {repo}: a gated model; accept its terms on the Hub and set HF_TOKEN"
    if isinstance(error, RepositoryNotFoundError):
        return (
            f"--model {repo}: {looked} and at {constants.ENDPOINT}, where it does not exist or is private; "
            "check the spelling, or set HF_TOKEN"
        )
    if isinstance(error, OfflineModeIsEnabled) or constants.HF_HUB_OFFLINE:
        return (
            f"--model {repo}: {looked}; the Hub was not asked, because HF_HUB_OFFLINE is set; "
            "unset it, or give --model a folder or demo"
        )
    return (
        f"--model {repo}: {looked} and at {constants.ENDPOINT}, which could not be reached ({_reason(error)}); "
        "give --model a folder, or demo, which does not need the Hub"
    )
