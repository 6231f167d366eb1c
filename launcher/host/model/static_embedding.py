"""Reads the folder of a StaticEmbedding module: a table of vectors, and a tokenizer that is used as it is.

Separate from ``folder`` because such a model has no config.json and no encoder. The reference is sentence-transformers
6, which also loads the folders of model2vec. Only headers and the tokenizer are read; ``worker.backends.static`` loads
the weights.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path

from launcher.core.protocol.model_info import FLOAT32_BYTES
from launcher.host.model.json_files import ModelErrors, inventory
from launcher.host.model.weights import PICKLE, SAFETENSORS, Tensor, read_header

# The library accepts texts of any length. A finite limit is needed for the plan and the warm-up; a text of this many
# tokens has about 100 kB.
MAX_LENGTH = 32_768
# The names of the table in sentence-transformers and in model2vec, and what model2vec may have beside it.
TABLE, MODEL2VEC_TABLE, MAPPING, WEIGHTS = "embedding.weight", "embeddings", "mapping", "weights"


@dataclass(frozen=True, slots=True)
class StaticFiles:
    """The number of token ids, the size of a vector and of the whole table, the limit in tokens, and the tokenizer.
    ``limited`` is whether the limit is that of the tokenizer."""

    vocab_size: int
    dimension: int
    weight_bytes: int
    max_length: int
    limited: bool
    tokenizer: Path


def read_static(folder: Path, refuse: ModelErrors) -> StaticFiles:
    """The static embeddings in ``folder``. Raises ``UsageError`` if they cannot be served."""
    from tokenizers import Tokenizer  # few models need it, and a report imports nothing else that does

    rows, dimension = _table(folder, refuse)
    path = folder / "tokenizer.json"
    if not path.is_file():
        raise refuse(f"{folder} has no tokenizer.json; {inventory(folder)}")
    try:
        tokenizer = Tokenizer.from_file(str(path))
    except Exception as error:  # the Rust library raises plain Exception for a file that it cannot read
        raise refuse(f"the tokenizer {path} cannot be read: {error}") from error
    largest = max(tokenizer.get_vocab(with_added_tokens=True).values(), default=-1)
    if largest >= rows:
        raise refuse(f"{path} has token ids up to {largest}, but {folder / SAFETENSORS} has vectors of {rows} tokens")
    truncation = tokenizer.truncation
    if truncation is not None and str(truncation["direction"]).lower() != "right":
        raise refuse(
            f"{path} truncates texts on the {truncation['direction']}, which is not supported; it must be 'right'"
        )
    return StaticFiles(
        vocab_size=rows,
        dimension=dimension,
        weight_bytes=rows * dimension * FLOAT32_BYTES,
        max_length=MAX_LENGTH if truncation is None else min(MAX_LENGTH, int(truncation["max_length"])),
        limited=truncation is not None,
        tokenizer=path,
    )


def _table(folder: Path, refuse: ModelErrors) -> tuple[int, int]:
    """The number of token ids and the size of a vector."""
    path = folder / SAFETENSORS
    if not path.is_file():
        found = f"only {PICKLE}; save it as safetensors" if (folder / PICKLE).is_file() else inventory(folder)
        raise refuse(f"{folder} has no {SAFETENSORS} with the vectors of the tokens: {found}")
    tensors = read_header(path, refuse)
    table = tensors.get(TABLE) or tensors.get(MODEL2VEC_TABLE)
    if table is None or len(table.shape) != 2 or not table.is_float or not prod(table.shape):
        found = f"{_described(tensors)}"
        raise refuse(f"{path} must have the table {TABLE!r} or {MODEL2VEC_TABLE!r} of floating-point numbers: {found}")
    rows, dimension = table.shape
    if TABLE in tensors:
        return rows, dimension
    mapping, weights = tensors.get(MAPPING), tensors.get(WEIGHTS)
    if mapping is not None:
        (rows,) = mapping.shape if len(mapping.shape) == 1 else (-1,)
    if rows < 1 or (weights is not None and weights.shape != (rows,)):
        raise refuse(f"{path} must have one mapping and one weight per token: {_described(tensors)}")
    return rows, dimension


def _described(tensors: Mapping[str, Tensor]) -> str:
    return ", ".join(f"{name} {tensor.dtype} {list(tensor.shape)}" for name, tensor in tensors.items()) or "no tensors"
