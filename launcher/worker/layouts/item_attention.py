"""What attention within one item needs, for items of any length: which tokens attend to which, and position biases.

Both come from the model's own code: its mask function, as it passes it to transformers, and the method that computes
its relative position biases. So windows, chunks and buckets are the model's, whatever the length of an item is.
Separate from ``packed_attention``, which only applies them.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

ROWS_AT_ONCE = 512  # of a mask that is compared


@dataclass(frozen=True, slots=True)
class MaskHandle:
    """Takes the place of a mask tensor in the model's code. ``index`` is that of the ``AttentionPattern``."""

    index: int


@dataclass(frozen=True, slots=True)
class BiasHandle:
    """Takes the place of a tensor of position biases in the model's code. ``index`` is that of the ``PositionBias``."""

    index: int


class AttentionPattern:
    """Which tokens of an item attend to which, by a mask function of transformers (``masking_utils``).

    The function takes indices of batch, head, query and key. Within an item both start at 0, so the pattern of a
    shorter item is the corner of that of a longer one.
    """

    def __init__(self, function: Callable[..., Any]) -> None:
        self._function = function
        self._mask = torch.ones(0, 0, dtype=torch.bool)
        # The longest item known to need no mask, whether its attention is causal, and the shortest known to need one.
        self._longest_plain, self._causal, self._shortest_masked = 0, False, sys.maxsize

    def of(self, length: int) -> tuple[Tensor | None, bool]:
        """The mask of an item, length × length, and whether it is causal instead: then the mask is None, as it is for
        an item in which every token attends to every token."""
        if self._longest_plain < length < self._shortest_masked:
            causal = self._causal_or_full(length)
            if causal is None:
                self._shortest_masked = length
            else:
                self._longest_plain, self._causal = length, causal
        if length <= self._longest_plain:
            return None, self._causal
        if length > len(self._mask):
            self._mask = self._rows(range(length), length)
        return self._mask[:length, :length], False

    def _causal_or_full(self, length: int) -> bool | None:
        """True for a causal mask, False for one that hides nothing, and None for any other. Only a part of the mask
        exists at a time: that of a long item is as large as the square of its length."""
        full = causal = True
        for start in range(0, length, ROWS_AT_ONCE):
            queries = range(start, min(start + ROWS_AT_ONCE, length))
            rows = self._rows(queries, length)
            full = full and bool(rows.all())
            causal = causal and torch.equal(rows, torch.ones_like(rows).tril(start))
            if not full and not causal:
                return None
        return not full

    def _rows(self, queries: range, length: int) -> Tensor:
        """The rows of the mask of an item for these tokens, queries × length."""
        zero = torch.zeros(1, 1, 1, 1, dtype=torch.int64)
        rows, columns = torch.arange(queries.start, queries.stop)[:, None], torch.arange(length)[None, :]
        mask = self._function(zero, zero, rows, columns)
        return mask.expand(1, 1, len(queries), length)[0, 0]  # type: ignore[no-any-return]


class PositionBias:
    """The biases of a layer with relative positions, as in T5: ``compute(length, length)`` of its attention.

    They depend on the distance of two tokens only, so those of a shorter item are the corner of those of a longer one.
    """

    def __init__(self, compute: Callable[[int, int], Tensor]) -> None:
        self._compute = compute
        self._bias: Tensor | None = None

    def of(self, length: int, dtype: torch.dtype) -> Tensor:
        """The biases of an item, 1 × heads × length × length."""
        if self._bias is None or self._bias.shape[-1] < length or self._bias.dtype != dtype:
            self._bias = self._compute(length, length).to(dtype)
        return self._bias[..., :length, :length]
