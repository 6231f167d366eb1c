"""Compares the tokenizer file that the front uses with the tokenizer that transformers builds.

Separate from ``convert_tokenizer``, because a worker also compares a file that was not converted, while it loads the
model: it has imported transformers anyway, so that building the tokenizer is all that this adds to its start. The file
``ModelInfo.tokenizer_check`` then gets the versions of the packages that build a tokenizer, and with these versions the
same files, which its path identifies, are not compared again. Measured for the demo model: 0.1 s in the first start,
nothing in the following ones; a process of its own takes about 1.3 s.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from launcher.core.check_texts import check_pairs, check_texts
from launcher.core.protocol.built_tokenizer import BUILDERS
from launcher.core.protocol.model_info import ModelInfo
from launcher.worker.interfaces import ModelError, one_line

_SHOWN_CHARACTERS = 80
_SHOWN_IDS = 12


@dataclass(frozen=True, slots=True)
class _Result:
    """What a tokenizer makes of a text or a pair."""

    ids: list[int]
    segment_ids: list[int]
    offsets: list[tuple[int, ...]]


def check_tokenizer(model_info: ModelInfo, *, trust_remote_code: bool) -> None:
    """Compare the file of the front with the tokenizer of transformers, unless that was done. Raises ``ModelError``."""
    versions = _versions()
    if not model_info.tokenizer_check or _read(model_info.tokenizer_check) == versions:
        return
    from transformers import AutoTokenizer

    # The tokenizer's own thread pool would stay in this process.
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    try:
        library = AutoTokenizer.from_pretrained(
            model_info.folder, local_files_only=True, trust_remote_code=trust_remote_code
        )
    except Exception as error:  # of a config or of tokenizer files that it does not accept
        raise ModelError(
            f"{model_info.requested}: transformers cannot load the tokenizer in {model_info.folder}, with its "
            f"config.json: {one_line(error)}"
        ) from error
    found = difference(library, Path(model_info.tokenizer_path))
    if found is not None:
        raise ModelError(f"{model_info.requested}: {found}")
    with contextlib.suppress(OSError):  # without a cache, every start compares
        marker = Path(model_info.tokenizer_check)
        marker.parent.mkdir(parents=True, exist_ok=True)
        marker.write_text(versions)


def _read(path: str) -> str | None:
    try:
        return Path(path).read_text()
    except (OSError, UnicodeDecodeError):
        return None


def _versions() -> str:
    """The versions of the packages that build a tokenizer."""
    found = []
    for package in BUILDERS:
        with contextlib.suppress(PackageNotFoundError):
            found.append(f"{package} {version(package)}")
    return ", ".join(found)


def difference(library: Any, path: Path) -> str | None:
    """The first text, or pair of texts, of the check texts that the tokenizer in ``path`` and ``library``, a tokenizer
    of transformers, encode differently, with the ids of both; ``None`` if there is none.

    Ids, token types and offsets must be equal, or both must fail.
    """
    own = Tokenizer.from_file(str(path))
    own.no_truncation()
    own.no_padding()
    added = sorted(
        {token.content for token in own.get_added_tokens_decoder().values()} | set(library.get_added_vocab())
    )
    inputs: Sequence[tuple[str, ...]] = [*((text,) for text in check_texts(added)), *check_pairs(added)]
    for texts in inputs:
        found, expected = _own(own, texts), _library(library, texts)
        if found != expected:
            shown = " and ".join(_abbreviate(text) for text in texts)
            return (
                f"the tokenizer in {path} differs from the {type(library).__name__} of transformers: the text {shown} "
                f"gives {_show(found, expected)} instead of {_show(expected, found)}"
            )
    return None


def _own(tokenizer: Tokenizer, texts: tuple[str, ...]) -> _Result | None:
    try:
        encoding = tokenizer.encode(texts[0], texts[1] if len(texts) > 1 else None)
    except Exception:  # the Rust library raises plain Exception for text that its model cannot encode
        return None
    return _Result(encoding.ids, encoding.type_ids, [tuple(span) for span in encoding.offsets])


def _library(tokenizer: Any, texts: tuple[str, ...]) -> _Result | None:
    try:
        made = tokenizer(*texts, return_token_type_ids=True, return_offsets_mapping=True, verbose=False)
    except Exception:
        return None
    return _Result(
        list(made["input_ids"]), list(made["token_type_ids"]), [tuple(span) for span in made["offset_mapping"]]
    )


def _abbreviate(text: str) -> str:
    return repr(text) if len(text) <= _SHOWN_CHARACTERS else f"{text[:_SHOWN_CHARACTERS]!r} … ({len(text)} characters)"


def _show(result: _Result | None, other: _Result | None) -> str:
    """The values of ``result`` in words, from the first difference to ``other`` on."""
    if result is None:
        return "an error"
    for name, values, others in (
        ("token ids", result.ids, other.ids if other else []),
        ("token types", result.segment_ids, other.segment_ids if other else []),
        ("offsets", result.offsets, other.offsets if other else []),
    ):
        if values != others:
            pairs = zip(values, others, strict=False)
            first = next((place for place, (a, b) in enumerate(pairs) if a != b), min(len(values), len(others)))
            start = max(0, first - 2)
            more = " …" if start + _SHOWN_IDS < len(values) else ""
            return f"the {name} {'… ' if start else ''}{values[start : start + _SHOWN_IDS]}{more}"
    return "the same"
