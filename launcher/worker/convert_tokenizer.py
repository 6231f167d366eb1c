"""Makes the ``tokenizer.json`` of a model that has none: ``python -m launcher.worker.convert_tokenizer FOLDER OUT``.

Done once for a model, by a process of its own, because it takes transformers and the front must not import that.
Exit status 0 when ``OUT/tokenizer.json`` is there, 1 with the reason as the last line on stderr.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path


def convert(folder: Path, out: Path) -> Path:
    """Write ``out/tokenizer.json``; returns its path. Raises what transformers raises, ``ValueError`` when the
    tokenizer exists in Python only or lacks most of the model's vocabulary."""
    from transformers import AutoConfig, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(str(folder), local_files_only=True, trust_remote_code=False)
    wanted = AutoConfig.from_pretrained(str(folder), local_files_only=True).vocab_size
    # transformers 5 makes a tokenizer of special tokens only where it does not find the vocabulary it expects.
    if len(tokenizer) < wanted // 2:
        raise ValueError(f"the tokenizer made knows {len(tokenizer)} tokens, the model {wanted}")
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        raise ValueError(f"{type(tokenizer).__name__} has no fast form")
    out.mkdir(parents=True, exist_ok=True)
    target, unfinished = out / "tokenizer.json", out / f"tokenizer.json.{os.getpid()}"
    backend.save(str(unfinished))
    unfinished.replace(target)  # whole or not at all: another launcher may be reading
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
