"""Creates the ``tokenizer.json`` of a model without one: ``python -m launcher.worker.convert_tokenizer FOLDER OUT``.

Runs once per model, in a process of its own, because it needs transformers, which the front must not import.
Exit status 0 if ``OUT/tokenizer.json`` was written, 1 otherwise, with the reason as the last line on stderr.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path


def convert(folder: Path, out: Path) -> Path:
    """Write ``out/tokenizer.json``; returns its path. Raises ``ValueError`` if the tokenizer has no fast version or
    lacks most of the model's vocabulary, and whatever transformers raises."""
    from transformers import AutoConfig, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(str(folder), local_files_only=True, trust_remote_code=False)
    expected = AutoConfig.from_pretrained(str(folder), local_files_only=True).vocab_size
    # transformers 5 creates a tokenizer with special tokens only if it does not find the vocabulary file it expects.
    if len(tokenizer) < expected // 2:
        raise ValueError(f"the converted tokenizer has {len(tokenizer)} tokens, but the model has {expected}")
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        raise ValueError(f"{type(tokenizer).__name__} has no fast version")
    out.mkdir(parents=True, exist_ok=True)
    target, temporary = out / "tokenizer.json", out / f"tokenizer.json.{os.getpid()}"
    backend.save(str(temporary))
    temporary.replace(target)  # atomic: another launcher may be reading
    return target


def main(arguments: Sequence[str]) -> int:
    """See the head of this module."""
    if len(arguments) != 2:
        print("usage: python -m launcher.worker.convert_tokenizer FOLDER OUT", file=sys.stderr)
        return 2
    try:
        convert(Path(arguments[0]), Path(arguments[1]))
    except Exception as error:
        print(f"{type(error).__name__}: {' '.join(str(error).split())[:400]}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
