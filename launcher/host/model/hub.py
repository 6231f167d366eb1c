"""Fetches a model from the Hugging Face hub: the cached copy when it is whole, else a download with progress.

Separate because it is the only place of the host side that talks to the network, and so the only one that can hang:
each wait is bounded. What the fetched files mean is for ``model_files``.
"""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from launcher.errors import UsageError
from launcher.host.model.files import Refusal, weight_files

_WEIGHTS = re.compile(r"(model|pytorch_model)(-\d+-of-\d+)?\.(safetensors|bin)(\.index\.json)?")
_OTHERS = re.compile(r".*\.(json|txt|model|codes)")


@dataclass(frozen=True, slots=True)
class Fetched:
    """A folder with the model's files; ``notes`` say what people should know about where they came from."""

    folder: Path
    notes: tuple[str, ...] = ()


def fetch(repo: str, *, with_code: bool, seconds: float, download: bool = True) -> Fetched:
    """The files of the hub's model ``repo``; code only when asked for. Raises ``UsageError`` when there is none.

    The hub has ``seconds`` for each response, not for the whole download. Without ``download`` only the cache is
    searched.
    """
    # Both are read when huggingface_hub is imported, which no other module does.
    os.environ.setdefault("HF_HUB_ETAG_TIMEOUT", str(math.ceil(seconds)))
    os.environ.setdefault("HF_HUB_DOWNLOAD_TIMEOUT", str(math.ceil(seconds)))
    cached = _cached(repo)
    if cached is not None and is_whole(cached):
        return Fetched(cached)
    if not download:
        raise UsageError(f"--model {repo}: it is not in the cache, and a report downloads nothing")
    try:
        return Fetched(_download(repo, seconds, with_code=with_code))
    except UsageError:
        raise
    except Exception as error:
        # The client raises its own errors, those of its HTTP library (which changed between versions) and OSError;
        # all of them mean that the hub cannot give the model now.
        if cached is not None and has_model(cached):
            return Fetched(cached, (f"the cached copy was used, the hub could not be asked: {_reason(error)}",))
        raise UsageError(_explanation(repo, error, cached)) from error


def _cached(repo: str) -> Path | None:
    """The folder of the cached copy, whole or not. Asks the file system only: other doors of the client build
    request headers first, and some versions go to the network for that."""
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    try:
        found = [try_to_load_from_cache(repo, name) for name in ("config.json", "modules.json")]
    except HFValidationError as error:
        raise UsageError(f"--model {repo}: neither a folder nor an id that the hub allows: {error}") from error
    return next((Path(path).parent for path in found if isinstance(path, str)), None)


def has_model(folder: Path) -> bool:
    """Whether config.json and all weights are there."""
    try:
        return (folder / "config.json").is_file() and bool(weight_files(folder, Refusal(str(folder))))
    except UsageError:
        return False


def is_whole(folder: Path) -> bool:
    """Whether nothing can be missing. A copy that transformers cached lacks the files of sentence-transformers,
    without which vectors would be pooled differently: no modules.json proves nothing, so the hub is asked then."""
    try:
        entries = json.loads((folder / "modules.json").read_text(encoding="utf-8"))
        places = {entry["type"].rpartition(".")[2]: folder / entry["path"] for entry in entries}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return False
    pooling = places.get("Pooling")
    return has_model(places.get("Transformer", folder)) and (pooling is None or (pooling / "config.json").is_file())


def _download(repo: str, seconds: float, *, with_code: bool) -> Path:
    from huggingface_hub import HfApi, snapshot_download

    # Asked first and by itself: one answer within a bounded time, before the client's own retries begin.
    info = HfApi().model_info(repo, timeout=seconds)
    names = [sibling.rfilename for sibling in info.siblings or []]
    files = wanted_files(names, with_code=with_code)
    if not any(_WEIGHTS.fullmatch(name) for name in files):
        raise UsageError(
            f"--model {repo}: the hub has no weights of it for torch (model.safetensors or pytorch_model.bin); "
            f"it has {', '.join(names[:8]) or 'no files'}"
        )
    # Without a revision: only then does the client note in its cache which copy is the current one.
    return Path(snapshot_download(repo, allow_patterns=files))


def wanted_files(names: Sequence[str], *, with_code: bool) -> list[str]:
    """Of a model's files those that are needed: weights in one format, JSON and vocabularies of the model and its
    sentence-transformers modules, code only when asked for; not the copies for other runtimes."""
    parts = [name for name in names if name.count("/") <= 1 and not name.startswith(("onnx/", "openvino/"))]
    weights = [name for name in parts if _WEIGHTS.fullmatch(name.rpartition("/")[2])]
    safe = [name for name in weights if ".safetensors" in name]
    others = [name for name in parts if _OTHERS.fullmatch(name) and name not in weights]
    code = [name for name in parts if with_code and name.endswith(".py")]
    return sorted({*(safe or weights), *others, *code})


def _reason(error: Exception) -> str:
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text}"[:200]


def _explanation(repo: str, error: Exception, cached: Path | None) -> str:
    from huggingface_hub import constants
    from huggingface_hub.errors import GatedRepoError, OfflineModeIsEnabled, RepositoryNotFoundError

    looked = f"looked for as a folder, in the cache {constants.HF_HUB_CACHE}"
    if cached is not None:
        looked += " (an incomplete copy)"
    if isinstance(error, GatedRepoError):
        return f"--model {repo}: the hub gives it only to those who accepted its terms; do so and set HF_TOKEN"
    if isinstance(error, RepositoryNotFoundError):
        return (
            f"--model {repo}: {looked} and at {constants.ENDPOINT}, which has no such model or keeps it private; "
            "check the spelling, or set HF_TOKEN"
        )
    if isinstance(error, OfflineModeIsEnabled) or constants.HF_HUB_OFFLINE:
        return (
            f"--model {repo}: {looked}; the hub was not asked, because HF_HUB_OFFLINE is set; "
            "unset it, or give --model a folder, or demo"
        )
    return (
        f"--model {repo}: {looked} and at {constants.ENDPOINT}, which could not be asked ({_reason(error)}); "
        "give --model a folder, or demo, which needs no hub"
    )
