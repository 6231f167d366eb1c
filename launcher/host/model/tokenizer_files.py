"""Finds a model's ``tokenizer.json``, or has one converted from its other tokenizer files, once, in a subprocess.

Only the few facts that ``ModelInfo`` needs are read from it. The conversion needs transformers, which must not be
imported here: ``worker.convert_tokenizer`` does it, and the result is kept in the user's cache folder.
"""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from launcher.errors import UsageError

# The vocabulary files of slow tokenizers. Their configs alone do not make a tokenizer.
VOCABULARIES = ("vocab.txt", "vocab.json", "sentencepiece.bpe.model", "spiece.model", "spm.model", "tokenizer.model")
COMPANIONS = ("merges.txt", "bpe.codes", "config.json", "tokenizer_config.json", "special_tokens_map.json",
              "added_tokens.json")  # fmt: skip

CONVERT_SECONDS = 300.0


@dataclass(frozen=True, slots=True)
class TokenizerFacts:
    """The path of a tokenizer and its settings. ``converted``: it was made by ``worker.convert_tokenizer``."""

    path: Path
    max_length: int | None
    pad_id: int | None
    lower_cases: bool
    converted: bool


class _AddedToken(msgspec.Struct):
    id: int
    content: str


class _TokenizerJson(msgspec.Struct):
    """The parts of a tokenizer.json that are read; the vocabulary, by far the largest part, is skipped."""

    model: msgspec.Raw
    added_tokens: list[_AddedToken] = []
    normalizer: dict[str, Any] | None = None


def locate(folder: Path, root: Path, refuse: Callable[[str], UsageError]) -> TokenizerFacts:
    """The tokenizer of the model, in ``folder`` or, for a model with modules, in ``root``. Raises ``UsageError``."""
    for place in (folder, root):
        if (place / "tokenizer.json").is_file():
            return _facts(place / "tokenizer.json", place, refuse, converted=False)
    for place in (folder, root):
        if any((place / name).is_file() for name in VOCABULARIES):
            return _facts(_converted(place, refuse), place, refuse, converted=True)
    raise refuse(f"{folder} has no tokenizer.json, and none of the files to convert to one: {', '.join(VOCABULARIES)}")


def _facts(path: Path, folder: Path, refuse: Callable[[str], UsageError], *, converted: bool) -> TokenizerFacts:
    try:
        tokenizer = msgspec.json.decode(path.read_bytes(), type=_TokenizerJson)
        settings_path = folder / "tokenizer_config.json"
        settings = (
            msgspec.json.decode(settings_path.read_bytes(), type=dict[str, Any]) if settings_path.is_file() else {}
        )
    except (msgspec.MsgspecError, OSError, RecursionError) as error:
        raise refuse(f"the tokenizer in {path.parent} cannot be read: {error}") from error
    limit = settings.get("model_max_length")
    pad = settings.get("pad_token")
    pad_text = pad.get("content") if isinstance(pad, dict) else pad
    return TokenizerFacts(
        path=path,
        max_length=int(limit) if isinstance(limit, int | float) and limit >= 1 else None,
        pad_id=next((token.id for token in tokenizer.added_tokens if token.content == pad_text), None),
        lower_cases=_lower_cases(tokenizer.normalizer),
        converted=converted,
    )


def _lower_cases(normalizer: dict[str, Any] | None) -> bool:
    if normalizer is None:
        return False
    if normalizer.get("type") == "Sequence":
        return any(_lower_cases(part) for part in normalizer.get("normalizers", []))
    return normalizer.get("type") == "Lowercase" or bool(normalizer.get("lowercase"))


def _converted(folder: Path, refuse: Callable[[str], UsageError]) -> Path:
    """The tokenizer.json converted from the files of ``folder``; converted now if it is not in the cache."""
    target = cache_folder() / "tokenizers" / _fingerprint(folder) / "tokenizer.json"
    if target.is_file():
        return target
    command = [sys.executable, "-m", "launcher.worker.convert_tokenizer", str(folder), str(target.parent)]
    try:
        made = subprocess.run(command, capture_output=True, text=True, timeout=CONVERT_SECONDS, check=False)
    except subprocess.TimeoutExpired as error:
        raise refuse(f"the conversion of the tokenizer in {folder} took over {CONVERT_SECONDS:.0f} s") from error
    if made.returncode != 0 or not target.is_file():
        reason = (made.stderr.strip().splitlines() or ["no reason given"])[-1]
        raise refuse(f"{folder} has no tokenizer.json, and its other files could not be converted: {reason}")
    return target


def _fingerprint(folder: Path) -> str:
    """A fingerprint of the files from which a tokenizer is converted."""
    digest = hashlib.sha256()
    for name in (*VOCABULARIES, *COMPANIONS):
        path = folder / name
        if path.is_file():
            digest.update(name.encode() + b"\0" + hashlib.sha256(path.read_bytes()).digest())
    return digest.hexdigest()[:24]


def cache_folder() -> Path:
    """The folder for data that this program can recreate, according to the XDG base directory specification."""
    base = os.environ.get("XDG_CACHE_HOME", "")
    return (Path(base) if base.startswith("/") else Path.home() / ".cache") / "launcher"
