"""What attention within one item needs, for items of any length: which tokens attend to which, and position biases.

Both come from the model's own code: its mask function, as it passes it to transformers, and the method that computes
its relative position biases. So windows, chunks and buckets are the model's, whatever the length of an item is.
Separate from ``packed_attention``, which only applies them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


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
        self._plain: dict[int, bool | None] = {}

    def of(self, length: int) -> tuple[Tensor | None, bool]:
        """The mask of an item, length × length, and whether it is causal instead: then the mask is None, as it is for
        an item in which every token attends to every token."""
        if length > len(self._mask):
            self._mask = self._compute(length)
        mask = self._mask[:length, :length]
        if length not in self._plain:
            self._plain[length] = _is_causal_or_full(mask)
        causal = self._plain[length]
        return (mask, False) if causal is None else (None, causal)

    def _compute(self, length: int) -> Tensor:
        zero, positions = torch.zeros(1, 1, 1, 1, dtype=torch.int64), torch.arange(length)
        mask = self._function(zero, zero, positions[:, None], positions[None, :])
        return mask.expand(1, 1, length, length)[0, 0]  # type: ignore[no-any-return]


def _is_causal_or_full(mask: Tensor) -> bool | None:
    """True for a causal mask, False for one that hides nothing, and None for any other."""
    if bool(mask.all()):
        return False
    return True if torch.equal(mask, torch.ones_like(mask).tril()) else None


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
