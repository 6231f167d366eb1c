"""Finds a model's ``tokenizer.json``, or has transformers write the one of its own tokenizer, once, in a subprocess.

transformers writes it if the model has other tokenizer files only, or if it would not use the ``tokenizer.json`` of the
model as it is (``tokenizer_settings``). transformers must not be imported here: ``worker.convert_tokenizer`` does it,
and the result is kept in the user's cache folder. Only the few facts that ``ModelInfo`` needs are read.
"""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from launcher.errors import UsageError
from launcher.host.model.tokenizer_settings import TokenizerParts, check_sides, rebuilt_part

# The vocabulary files of slow tokenizers. Their configs alone do not make a tokenizer.
VOCABULARIES = ("vocab.txt", "vocab.json", "sentencepiece.bpe.model", "spiece.model", "spm.model", "tokenizer.model")
COMPANIONS = ("tokenizer.json", "merges.txt", "bpe.codes", "config.json", "tokenizer_config.json",
              "special_tokens_map.json", "added_tokens.json")  # fmt: skip

CONVERT_SECONDS = 300.0


@dataclass(frozen=True, slots=True)
class TokenizerFacts:
    """The path of a tokenizer and its settings. ``converted``: the reason why ``worker.convert_tokenizer``
    wrote it, or an empty string. ``largest_id``: of its vocabulary and added tokens, -1 if it has none."""

    path: Path
    max_length: int | None
    pad_id: int | None
    lower_cases: bool
    converted: str
    largest_id: int


class _AddedToken(msgspec.Struct):
    id: int
    content: str


class _Model(msgspec.Struct):
    """The vocabulary: ids by token or, in a Unigram model, a list of tokens in the order of their ids."""

    vocab: dict[str, int] | list[msgspec.Raw] = msgspec.field(default_factory=dict)


class _TokenizerJson(msgspec.Struct):
    """The parts of a tokenizer.json that are read."""

    model: _Model
    added_tokens: list[_AddedToken] = []
    normalizer: dict[str, Any] | None = None
    pre_tokenizer: dict[str, Any] | None = None
    post_processor: dict[str, Any] | None = None
    truncation: dict[str, Any] | None = None
    padding: dict[str, Any] | None = None


def locate(folder: Path, root: Path, config: Mapping[str, Any], refuse: Callable[[str], UsageError]) -> TokenizerFacts:
    """The tokenizer of the model with the given config.json, in ``folder`` or, for a model with modules, in ``root``.

    Raises ``UsageError`` if it has none, or none that can be used."""
    for place in (folder, root):
        path = place / "tokenizer.json"
        if path.is_file():
            tokenizer, settings = _read(path, place, refuse)
            changed = rebuilt_part(_parts(tokenizer), settings, config)
            if changed is None:
                return _facts(path, place, "", refuse)
            reason = f"transformers does not use {path.name} as it is ({changed})"
            return _facts(_converted(place, f"{reason}, and its files", refuse), place, reason, refuse)
    for place in (folder, root):
        if any((place / name).is_file() for name in VOCABULARIES):
            missing = f"{place} has no tokenizer.json, and its other files"
            return _facts(_converted(place, missing, refuse), place, "the model has no tokenizer.json", refuse)
    raise refuse(f"{folder} has no tokenizer.json, and none of the files to convert to one: {', '.join(VOCABULARIES)}")


def _read(path: Path, folder: Path, refuse: Callable[[str], UsageError]) -> tuple[_TokenizerJson, dict[str, Any]]:
    """A tokenizer.json, and the tokenizer_config.json of the model in ``folder``."""
    try:
        tokenizer = msgspec.json.decode(path.read_bytes(), type=_TokenizerJson)
        settings_path = folder / "tokenizer_config.json"
        settings = (
            msgspec.json.decode(settings_path.read_bytes(), type=dict[str, Any]) if settings_path.is_file() else {}
        )
    except (msgspec.MsgspecError, OSError, RecursionError) as error:
        raise refuse(f"the tokenizer in {path.parent} cannot be read: {error}") from error
    return tokenizer, settings


def _parts(tokenizer: _TokenizerJson) -> TokenizerParts:
    return TokenizerParts(
        tokenizer.normalizer,
        tokenizer.pre_tokenizer,
        tokenizer.post_processor,
        tokenizer.truncation,
        tokenizer.padding,
    )


def _facts(path: Path, folder: Path, converted: str, refuse: Callable[[str], UsageError]) -> TokenizerFacts:
    tokenizer, settings = _read(path, folder, refuse)
    check_sides(folder, _parts(tokenizer), settings, refuse)
    vocabulary = tokenizer.model.vocab
    ids = vocabulary.values() if isinstance(vocabulary, dict) else (len(vocabulary) - 1,)
    limit = settings.get("model_max_length")
    pad = settings.get("pad_token")
    pad_text = pad.get("content") if isinstance(pad, dict) else pad
    return TokenizerFacts(
        path=path,
        max_length=int(limit) if isinstance(limit, int | float) and limit >= 1 else None,
        pad_id=next((token.id for token in tokenizer.added_tokens if token.content == pad_text), None),
        lower_cases=_lower_cases(tokenizer.normalizer),
        converted=converted,
        largest_id=max((*ids, *(token.id for token in tokenizer.added_tokens)), default=-1),
    )


def _lower_cases(normalizer: dict[str, Any] | None) -> bool:
    if normalizer is None:
        return False
    if normalizer.get("type") == "Sequence":
        return any(_lower_cases(part) for part in normalizer.get("normalizers", []))
    return normalizer.get("type") == "Lowercase" or bool(normalizer.get("lowercase"))


def _converted(folder: Path, what: str, refuse: Callable[[str], UsageError]) -> Path:
    """The tokenizer.json converted from the files of ``folder``; converted now if it is not in the cache.
    ``what`` begins the message if that fails."""
    target = cache_folder() / "tokenizers" / _fingerprint(folder) / "tokenizer.json"
    if target.is_file():
        return target
    command = [sys.executable, "-m", "launcher.worker.convert_tokenizer", str(folder), str(target.parent)]
    try:
        made = subprocess.run(
            command, capture_output=True, text=True, timeout=CONVERT_SECONDS, check=False, stdin=subprocess.DEVNULL
        )
    except subprocess.TimeoutExpired as error:
        raise refuse(f"the conversion of the tokenizer in {folder} took over {CONVERT_SECONDS:.0f} s") from error
    if made.returncode != 0 or not target.is_file():
        reason = (made.stderr.strip().splitlines() or ["no reason given"])[-1]
        raise refuse(f"{what} could not be converted: {reason}")
    return target


def _fingerprint(folder: Path) -> str:
    """A fingerprint of the files from which a tokenizer is converted, and of the version that converts them."""
    from importlib.metadata import version  # slow to import, and few models need it

    digest = hashlib.sha256(version("transformers").encode())
    for name in (*VOCABULARIES, *COMPANIONS):
        path = folder / name
        if path.is_file():
            digest.update(name.encode() + b"\0" + hashlib.sha256(path.read_bytes()).digest())
    return digest.hexdigest()[:24]


def cache_folder() -> Path:
    """The folder for data that this program can recreate, according to the XDG base directory specification."""
    base = os.environ.get("XDG_CACHE_HOME", "")
    return (Path(base) if base.startswith("/") else Path.home() / ".cache") / "launcher"
