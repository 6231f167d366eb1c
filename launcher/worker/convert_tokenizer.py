"""Writes the tokenizer that transformers builds for a model, as a ``tokenizer.json`` and the facts it does not contain.

``python -m launcher.worker.convert_tokenizer FOLDER OUT`` runs once per model, in a process of its own, because it
needs transformers, which the front must not import. What it writes has been compared with the tokenizer itself on the
check texts. Exit status 0 if the files were written to ``OUT``, 1 otherwise, with the reason as the last line on
stderr.
"""

from __future__ import annotations

import argparse
import contextlib
import errno
import json
import os
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import msgspec

from launcher.core.protocol.built_tokenizer import EXIT_NOT_WRITTEN, FACTS_FILE, TOKENIZER_FILE, BuiltTokenizer
from launcher.worker.compare_tokenizers import difference
from launcher.worker.temporary_folder import tolerate_absence

# transformers states this number, or a larger one, for a tokenizer without a limit.
NO_LIMIT = 10**20

NOT_WRITTEN = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM, errno.EIO})
# Files that any class reads if they are there and its own are not (PreTrainedTokenizerBase.from_pretrained).
_COMMON_FILES = ("tokenizer.json", "tokenizer.model", "tekken.json", "tiktoken.model")


@dataclass(frozen=True, slots=True)
class Request:
    """What to build: with which arguments of ``from_pretrained``, and whether to lower-case first, as
    sentence-transformers does for ``do_lower_case``."""

    folder: Path
    arguments: Mapping[str, Any] = field(default_factory=dict)
    lower_case: bool = False
    trust_remote_code: bool = False


def convert(request: Request, out: Path) -> BuiltTokenizer:
    """Write the files to ``out``. Raises ``ValueError`` for a tokenizer that cannot be written or was not built from
    the vocabulary of the model, and whatever transformers raises."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(
        str(request.folder), local_files_only=True, trust_remote_code=request.trust_remote_code, **request.arguments
    )
    _check(tokenizer, request.folder)
    if request.lower_case:
        _lower_case(tokenizer.backend_tokenizer)
    built = _facts(tokenizer)
    # Processes that convert the same tokenizer at the same time write the same files.
    out.mkdir(parents=True, exist_ok=True)
    temporary = out / f"{TOKENIZER_FILE}.{os.getpid()}"
    try:
        tokenizer.backend_tokenizer.save(str(temporary))
        found = difference(tokenizer, temporary)
        if found is not None:
            raise ValueError(found)
        temporary.replace(out / TOKENIZER_FILE)
        temporary.write_bytes(msgspec.json.encode(built))
        temporary.replace(out / FACTS_FILE)
    finally:
        with contextlib.suppress(OSError):  # an error of writing says more
            temporary.unlink(missing_ok=True)
    return built


def _check(tokenizer: Any, folder: Path) -> None:
    """Raise ``ValueError`` if the tokenizer has no fast version, or is one that transformers 5 makes of special tokens
    alone because the folder does not have the files that it reads."""
    name = type(tokenizer).__name__
    if getattr(tokenizer, "backend_tokenizer", None) is None:
        raise ValueError(f"{name} is written in Python and has no fast version (tokenizer.json)")
    wanted = [file for key, file in tokenizer.vocab_files_names.items() if key != "tokenizer_file"]
    if not any((folder / file).is_file() for file in (*wanted, *_COMMON_FILES)):
        raise ValueError(
            f"{name} reads {' and '.join(wanted)}, and the folder has neither these nor a tokenizer.json; "
            "the class in tokenizer_config.json or config.json belongs to other files"
        )
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    expected = config.get("vocab_size", 0)
    if len(tokenizer) < expected // 2:
        raise ValueError(f"{name} has {len(tokenizer)} tokens, but config.json has a vocab_size of {expected}")


def _lower_case(backend: Any) -> None:
    """Lower-case each text first, unless one of the normalizers does."""
    from tokenizers.normalizers import Lowercase
    from tokenizers.normalizers import Sequence as Normalizers

    own = backend.normalizer
    parts = list(cast("Iterable[Any]", own)) if isinstance(own, Normalizers) else [own] if own is not None else []
    if not any(isinstance(part, Lowercase) for part in parts):
        backend.normalizer = Normalizers([Lowercase(), *parts])


def _facts(tokenizer: Any) -> BuiltTokenizer:
    limit, pad = tokenizer.model_max_length, tokenizer.pad_token_id
    if limit < 1:
        raise ValueError(
            f"tokenizer_config.json sets model_max_length to {limit}; it must be a positive integer or null"
        )
    return BuiltTokenizer(
        class_name=type(tokenizer).__name__,
        max_length=int(limit) if 1 <= limit < NO_LIMIT else None,
        pad_id=int(pad) if pad is not None else None,
        truncation_side=str(tokenizer.truncation_side),
        padding_side=str(tokenizer.padding_side),
        split_special_tokens=bool(tokenizer.split_special_tokens),
        segment_ids="token_type_ids" in tokenizer.model_input_names,
    )


def _is_unwritable(error: Exception) -> bool:
    """Whether the files could not be written. The tokenizers library raises a bare exception with the error's number
    in its text."""
    if isinstance(error, OSError):
        return error.errno in NOT_WRITTEN
    return any(f"(os error {number})" in str(error) for number in NOT_WRITTEN)


def parse_arguments(arguments: Sequence[str]) -> argparse.Namespace:
    """Parse the command line; exits with status 2 and a usage message if it is invalid."""
    parser = argparse.ArgumentParser(prog="python -m launcher.worker.convert_tokenizer")
    parser.add_argument("folder", type=Path, help="the folder of the model")
    parser.add_argument("out", type=Path, help="the folder to write to")
    parser.add_argument("--arguments", type=json.loads, default={}, help="arguments of from_pretrained, as JSON")
    parser.add_argument("--lower-case", action="store_true", help="lower-case each text first")
    parser.add_argument("--trust-remote-code", action="store_true", help="run the model's own code")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str]) -> int:
    """See the head of this module."""
    values = parse_arguments(arguments)
    if not values.trust_remote_code:
        # transformers then treats torch as not installed, which tokenizers do not need: 1.2 instead of 3.3 s.
        sys.modules["torch"] = None  # type: ignore[assignment]
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    tolerate_absence()
    return run(values)


def run(values: argparse.Namespace) -> int:
    """Convert, and print the reason to stderr if that fails; returns the exit status."""
    try:
        convert(Request(values.folder, values.arguments, values.lower_case, values.trust_remote_code), values.out)
    except Exception as error:
        print(f"{type(error).__name__}: {' '.join(str(error).split())[:600]}", file=sys.stderr)
        return EXIT_NOT_WRITTEN if _is_unwritable(error) else 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
