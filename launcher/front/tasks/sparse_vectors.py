"""The result of a sparse embedder: the tokens of the vocabulary that have a weight.

Separate from HTTP because the Python API returns the same.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import orjson
from msgspec import Struct

from launcher.front.request_results import Vectors


class TokenWeight(Struct, frozen=True):
    """The id of a token of the model's vocabulary, and its weight."""

    index: int
    value: float


class SparseVector(NamedTuple):
    """The ids of tokens of the model's vocabulary, ascending, and their weights; all others are 0."""

    indices: npt.NDArray[np.int32]
    values: Vectors


def sparse_vector(rows: Vectors) -> SparseVector:
    """The vector of an item from its rows, each (token id, weight)."""
    return SparseVector(rows[:, 0].astype(np.int32), np.ascontiguousarray(rows[:, 1]))


def sparse_json(rows: Vectors) -> bytes:
    """The vector of an item as a JSON list of ``TokenWeight``; each value is the shortest decimal that reads back as
    the same float32."""
    indices, values = sparse_vector(rows)
    decimals: list[float] = orjson.loads(orjson.dumps(values, option=orjson.OPT_SERIALIZE_NUMPY))
    pairs = zip(indices.tolist(), decimals, strict=True)
    return orjson.dumps([{"index": index, "value": value} for index, value in pairs])
