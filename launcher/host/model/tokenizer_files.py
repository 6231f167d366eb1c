"""Finds the ``tokenizer.json`` with which the front gets the token ids of transformers.

That is the file of the model if transformers certainly builds the tokenizer it describes (``tokenizer_settings``).
Otherwise, and for a model with other tokenizer files only, it is a file that transformers writes for the tokenizer it
builds, in ``worker.convert_tokenizer``: transformers must not be imported here. It is written once per model and kept
in the user's cache folder, under a fingerprint of all files that it may depend on. Without a usable cache folder it is
written to a temporary one, in each start.
"""

from __future__ import annotations

import atexit
import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec

from launcher.core.check_texts import check_texts
from launcher.core.protocol.built_tokenizer import (
    BUILDERS,
    EXIT_NOT_WRITTEN,
    FACTS_FILE,
    TOKENIZER_FILE,
    BuiltTokenizer,
)
from launcher.errors import UsageError
from launcher.host.model.token_types import token_types_of
from launcher.host.model.tokenizer_settings import (
    CallSettings,
    TokenizerParts,
    call_settings,
    check_call_settings,
    class_of,
    difference,
    media_tokens,
    named_tokens,
)

Json = Mapping[str, Any]
Refuse = Callable[[str], UsageError]

# The vocabulary files of tokenizers. Their configs alone do not make a tokenizer.
VOCABULARIES = ("vocab.txt", "vocab.json", "sentencepiece.bpe.model", "spiece.model", "spm.model", "tokenizer.model")
# What a tokenizer is built from: its files, the model's config, and the model's own code.
INPUT_SUFFIXES = frozenset({".json", ".txt", ".model", ".codes", ".bpe", ".vocab", ".tiktoken", ".py"})

CONVERT_SECONDS = 300.0
CHECKED_FILE = "checked"


@dataclass(frozen=True, slots=True)
class TokenizerRequest:
    """How the tokenizer is loaded: with which arguments of ``from_pretrained``, and whether texts are lower-cased
    first, as sentence-transformers does for ``do_lower_case``."""

    arguments: Json = field(default_factory=dict)
    lower_case: bool = False
    trust_remote_code: bool = False


@dataclass(frozen=True, slots=True)
class TokenizerFacts:
    """The path of a tokenizer and its settings.

    ``converted`` is the reason why ``worker.convert_tokenizer`` wrote it, or an empty string. ``check`` is the file in
    which a worker notes that it has compared the tokenizer with that of transformers; empty if nothing is to be
    compared.
    ``largest_id`` is the largest of its vocabulary, added tokens and special tokens, -1 if it has none, without those
    of ``media_tokens``, which stand for images or sounds: a model of texts need not have embeddings of them.
    ``segment_ids``: whether transformers passes them to the model.
    """

    path: Path
    max_length: int | None
    pad_id: int | None
    converted: str
    check: str
    largest_id: int
    media_tokens: Mapping[str, int]
    segment_ids: bool


class _TokenizerJson(msgspec.Struct):
    """The parts of a tokenizer.json that are read."""

    model: dict[str, msgspec.Raw]
    added_tokens: list[dict[str, Any]] = []
    normalizer: dict[str, Any] | None = None
    pre_tokenizer: dict[str, Any] | None = None
    post_processor: dict[str, Any] | None = None
    truncation: dict[str, Any] | None = None
    padding: dict[str, Any] | None = None


def locate(folder: Path, config: Json, request: TokenizerRequest, refuse: Refuse) -> TokenizerFacts:
    """The tokenizer of the model in ``folder``, whose config.json is ``config``.

    Raises ``UsageError`` if it has none, or none that can be used exactly.
    """
    own = folder / TOKENIZER_FILE
    if own.is_file():
        parts = read_parts(own, folder, refuse)
        changed = "arguments of the model" if request.arguments or request.lower_case else difference(parts, config)
        if changed is None:
            return _facts_as_it_is(own, parts, config, request, refuse)
        reason = f"transformers does not use {own.name} as it is ({changed})"
    elif any((folder / name).is_file() for name in VOCABULARIES):
        reason = f"the model has no {TOKENIZER_FILE}"
    else:
        raise refuse(
            f"{folder} has no {TOKENIZER_FILE}, and none of the files it is made of: {', '.join(VOCABULARIES)}"
        )
    return _facts_converted(folder, config, request, reason, refuse)


# --- facts


def _facts_as_it_is(
    path: Path, parts: TokenizerParts, config: Json, request: TokenizerRequest, refuse: Refuse
) -> TokenizerFacts:
    tokenizer_class = class_of(parts, config)
    assert tokenizer_class is not None, "a tokenizer.json is used as it is for known classes only"
    names, limit = named_tokens(parts, tokenizer_class), parts.tokenizer_config.get("model_max_length")
    limit = parts.tokenizer_config.get("max_len") if limit is None else limit
    if limit is not None and (not isinstance(limit, int | float) or limit < 1):
        raise refuse(f"tokenizer_config.json sets model_max_length to {limit!r}; it must be a positive integer or null")
    inputs = parts.tokenizer_config.get("model_input_names")
    segment_ids = tokenizer_class.segment_ids if inputs is None else "token_type_ids" in inputs
    check_call_settings(parts, call_settings(parts), request.arguments, config, refuse)
    _check_segments(path, parts, config if segment_ids else None, refuse)
    return TokenizerFacts(
        path=path,
        max_length=int(limit) if isinstance(limit, int | float) and limit >= 1 else None,
        pad_id=_id(parts, names.get("pad_token")) if isinstance(names, dict) else None,
        converted="",
        check=str(_cached(_fingerprint(path.parent, request)) / CHECKED_FILE),
        largest_id=_largest_id(parts),
        media_tokens=media_tokens(parts),
        segment_ids=segment_ids,
    )


def _facts_converted(
    folder: Path, config: Json, request: TokenizerRequest, reason: str, refuse: Refuse
) -> TokenizerFacts:
    target = _converted(folder, request, refuse)
    built = msgspec.json.decode((target / FACTS_FILE).read_bytes(), type=BuiltTokenizer)
    path = target / TOKENIZER_FILE
    parts = read_parts(path, folder, refuse)
    settings = CallSettings(built.truncation_side, built.padding_side, built.split_special_tokens)
    check_call_settings(parts, settings, request.arguments, config, refuse)
    _check_segments(path, parts, config if built.segment_ids else None, refuse)
    return TokenizerFacts(
        path=path,
        max_length=built.max_length,
        pad_id=built.pad_id,
        converted=reason,
        check="",
        largest_id=_largest_id(parts),
        media_tokens=media_tokens(parts),
        segment_ids=built.segment_ids,
    )


def read_parts(path: Path, folder: Path, refuse: Refuse) -> TokenizerParts:
    """A tokenizer.json, and the files beside it in the folder of the model."""
    try:
        tokenizer = msgspec.json.decode(path.read_bytes(), type=_TokenizerJson)
        model = {
            key: msgspec.json.decode(raw) for key, raw in tokenizer.model.items() if key not in ("vocab", "merges")
        }
        vocabulary = msgspec.json.decode(
            tokenizer.model.get("vocab", msgspec.Raw(b"{}")), type=dict[str, int] | list[msgspec.Raw]
        )
        # The list of a Unigram model is in the order of its ids; its texts are not needed.
        ids = vocabulary if isinstance(vocabulary, dict) else {str(id): id for id in range(len(vocabulary))}
        return TokenizerParts(
            normalizer=tokenizer.normalizer,
            pre_tokenizer=tokenizer.pre_tokenizer,
            post_processor=tokenizer.post_processor,
            truncation=tokenizer.truncation,
            padding=tokenizer.padding,
            model=model,
            vocabulary=ids,
            added_tokens=tuple(tokenizer.added_tokens),
            tokenizer_config=_object(folder / "tokenizer_config.json") or {},
            special_tokens_map=_object(folder / "special_tokens_map.json"),
            more_added_tokens=_object(folder / "added_tokens.json"),
        )
    except (msgspec.MsgspecError, OSError, RecursionError) as error:
        raise refuse(f"the tokenizer in {path.parent} cannot be read: {error}") from error


def _object(path: Path) -> dict[str, Any] | None:
    return msgspec.json.decode(path.read_bytes(), type=dict[str, Any]) if path.is_file() else None


def _id(parts: TokenizerParts, token: str | None) -> int | None:
    return next((int(entry["id"]) for entry in parts.added_tokens if entry.get("content") == token), None)


def _largest_id(parts: TokenizerParts) -> int:
    added = (int(token["id"]) for token in parts.added_tokens)
    special = (int(id) for part in _processors(parts.post_processor) for id in _special_ids(part))
    ids = (*parts.vocabulary.values(), *added, *special)
    media = media_tokens(parts).values()
    return max((id for id in ids if id not in media) if media else ids, default=-1)


def _processors(part: Json | None) -> Iterator[Json]:
    if part is not None:
        yield part
        for inner in part.get("processors", []):
            yield from _processors(inner)


def _special_ids(part: Json) -> Iterator[Any]:
    """The ids of the special tokens that a post-processor adds."""
    for token in (part.get("special_tokens") or {}).values():
        yield from token.get("ids", [])
    for key in ("cls", "sep"):
        yield from (part.get(key) or [])[1:2]


def _check_segments(path: Path, parts: TokenizerParts, config: Json | None, refuse: Refuse) -> None:
    """Raise ``UsageError`` if a text alone gets token types that the model lacks. ``config`` is its config.json, or
    None if token types are not passed to it."""
    pieces = [
        piece
        for part in _processors(parts.post_processor)
        for entry in part.get("single") or []
        for piece in entry.values()
    ]
    largest = max((piece.get("type_id", 0) for piece in pieces), default=0)
    known = largest + 1 if config is None else max(1, token_types_of(config))
    if largest >= known:
        raise refuse(
            f"the post_processor in {path} gives tokens of a single text the token type {largest}, but the model has "
            f"{known} token types (type_vocab_size); they must be from 0 to {known - 1}"
        )


# --- conversion


def _converted(folder: Path, request: TokenizerRequest, refuse: Refuse) -> Path:
    """The folder with the converted tokenizer of ``folder``; converted now unless it is in the cache."""
    fingerprint = _fingerprint(folder, request, _builder_versions())
    cached = _cached(fingerprint)
    if _is_writable(cached) and _convert(folder, request, cached, refuse):
        return cached
    temporary = _temporary_folder(fingerprint, folder, refuse)
    if _convert(folder, request, temporary, refuse):
        return temporary
    raise refuse(
        f"the tokenizer in {folder} must be converted, but the result can be written neither to {cached} nor to "
        f"{temporary}; set XDG_CACHE_HOME or TMPDIR to a folder with free space"
    )


def _convert(folder: Path, request: TokenizerRequest, target: Path, refuse: Refuse) -> bool:
    """Convert to ``target``, unless that was done; returns False if it has no space or cannot be written."""
    if (target / FACTS_FILE).is_file():
        return True
    arguments = [str(folder), str(target)]
    arguments += ["--arguments", json.dumps(request.arguments)] if request.arguments else []
    arguments += ["--lower-case"] if request.lower_case else []
    arguments += ["--trust-remote-code"] if request.trust_remote_code else []
    try:
        status, output = convert_in_process(arguments)
    except subprocess.TimeoutExpired as error:
        raise refuse(f"the conversion of the tokenizer in {folder} took over {CONVERT_SECONDS:.0f} s") from error
    if status == EXIT_NOT_WRITTEN:
        return False
    if status != 0 or not (target / FACTS_FILE).is_file():
        reason = (output.strip().splitlines() or [f"exit status {status}"])[-1]
        raise refuse(f"the tokenizer in {folder} cannot be used as transformers builds it: {reason}")
    return True


def convert_in_process(arguments: Sequence[str]) -> tuple[int, str]:
    """Run ``worker.convert_tokenizer`` in a process of its own; returns its exit status and its stderr."""
    command = [sys.executable, "-m", "launcher.worker.convert_tokenizer", *arguments]
    made = subprocess.run(
        command, capture_output=True, text=True, timeout=CONVERT_SECONDS, check=False, stdin=subprocess.DEVNULL
    )
    return made.returncode, made.stderr


def _fingerprint(folder: Path, request: TokenizerRequest, packages: str = "") -> str:
    """A fingerprint of all that a tokenizer depends on, and of the texts that it is checked with. ``packages`` are the
    versions of those that build it."""
    digest = hashlib.sha256(repr((request, check_texts(()), BuiltTokenizer.__struct_fields__, packages)).encode())
    for path in sorted(folder.iterdir()):
        if path.suffix in INPUT_SUFFIXES and path.is_file():
            digest.update(path.name.encode() + b"\0" + hashlib.sha256(path.read_bytes()).digest())
    return digest.hexdigest()[:24]


def _builder_versions() -> str:
    from importlib.metadata import PackageNotFoundError, version  # slow to import, and only conversions need it

    versions = []
    for package in BUILDERS:
        try:
            versions.append(f"{package} {version(package)}")
        except PackageNotFoundError:
            versions.append(f"{package} absent")
    return ", ".join(versions)


def _cached(fingerprint: str) -> Path:
    return cache_folder() / "tokenizers" / fingerprint


_temporary: dict[str, Path] = {}


def _is_writable(folder: Path) -> bool:
    """Whether the folder in the cache has the converted tokenizer, or files can be written to it."""
    if (folder / FACTS_FILE).is_file():
        return True
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError:
        return False
    return os.access(folder, os.W_OK | os.X_OK)


def _temporary_folder(fingerprint: str, folder: Path, refuse: Refuse) -> Path:
    """A folder for the converted tokenizer for the rest of this process."""
    if fingerprint not in _temporary:
        try:
            _temporary[fingerprint] = Path(tempfile.mkdtemp(prefix="launcher-tokenizer-"))
        except OSError as error:
            raise refuse(
                f"the tokenizer in {folder} must be converted, but the result can be written neither to "
                f"{_cached(fingerprint)} nor to a temporary folder ({error.strerror or error}); set XDG_CACHE_HOME or "
                "TMPDIR to a folder with free space"
            ) from error
        atexit.register(shutil.rmtree, _temporary[fingerprint], ignore_errors=True)
    return _temporary[fingerprint]


def cache_folder() -> Path:
    """The folder for data that this program can recreate, according to the XDG base directory specification.

    For a user without a home, as in some containers, this is a path at which no folder can be made.
    """
    base = os.environ.get("XDG_CACHE_HOME", "")
    if base.startswith("/"):
        return Path(base) / "launcher"
    try:
        return Path.home() / ".cache" / "launcher"
    except RuntimeError:
        return Path(os.devnull) / "launcher"
