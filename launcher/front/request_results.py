"""The results of one request, collected item by item in the order in which workers compute them.

Separate from the dispatcher because it depends on the number of rows that a task gives an item. What the rows mean does
not belong here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import accumulate, pairwise
from typing import Protocol

import numpy as np
import numpy.typing as npt

from launcher.core.protocol.model_info import Rows

Vectors = npt.NDArray[np.float32]
# Of the values in a row.
DTYPES: Mapping[Rows, npt.DTypeLike] = {
    "item": np.float32,
    "token": np.float32,
    "varying": np.float32,
    "bytes": np.uint8,
}


class RequestResults(Protocol):
    """The results of the items of one request, which arrive in any order."""

    def put(self, index: int, rows: Vectors) -> None:
        """Store the rows of the item with this index."""

    def outcome(self) -> tuple[Vectors, tuple[int, ...]]:
        """All rows in order, and the number of rows of each item if that varies."""
        ...


class _FixedRows:
    """One row for each item, or one for each of its tokens, in an array that is allocated at the start."""

    __slots__ = ("_rows_of", "_values")

    def __init__(self, rows: int, rows_of: Sequence[int] | Sequence[slice], width: int) -> None:
        self._values: Vectors = np.empty((rows, width), dtype=np.float32)
        self._rows_of = rows_of

    def put(self, index: int, rows: Vectors) -> None:
        self._values[self._rows_of[index]] = rows

    def outcome(self) -> tuple[Vectors, tuple[int, ...]]:
        return self._values, ()


class _VaryingRows:
    """Any number of rows for each item."""

    __slots__ = ("_counts", "_max_rows", "_none", "_parts", "_total")

    def __init__(self, items: int, none: Vectors, max_rows: int | None) -> None:
        """``none`` is the result of an item without rows."""
        self._none = none
        self._parts = [none] * items
        self._counts = [0] * items
        self._total = 0
        self._max_rows = max_rows

    def put(self, index: int, rows: Vectors) -> None:
        self._total += len(rows) - self._counts[index]
        self._counts[index] = len(rows)
        if self._max_rows is None or self._total <= self._max_rows:
            self._parts[index] = rows
        else:  # of no use to the request any more
            self._parts = [self._none] * len(self._counts)

    def outcome(self) -> tuple[Vectors, tuple[int, ...]]:
        return np.concatenate(self._parts), tuple(self._counts)


def split_rows(results: Vectors, counts: Sequence[int]) -> list[Vectors]:
    """The rows of each item; ``counts`` are their numbers."""
    return np.split(results, list(accumulate(counts))[:-1])


def make_results(rows: Rows, lengths: Sequence[int], width: int, max_rows: int | None = None) -> RequestResults:
    """Storage for the results of items of these lengths, in tokens; ``width`` is the number of values in a row.

    If the number of rows varies and is more than ``max_rows``, only the number of rows of each item is kept."""
    if rows == "item":
        return _FixedRows(len(lengths), range(len(lengths)), width)
    if rows == "token":
        return _FixedRows(*_row_slices(lengths), width)
    return _VaryingRows(len(lengths), np.empty((0, width), dtype=DTYPES[rows]), max_rows)


def _row_slices(lengths: Sequence[int]) -> tuple[int, Sequence[slice]]:
    """The total number of rows of items of these lengths, one per token, and the rows of each."""
    ends = list(accumulate(lengths, initial=0))
    return ends[-1], [slice(start, end) for start, end in pairwise(ends)]
