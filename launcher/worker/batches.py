"""Items as tensors: padded to rows of equal width, or packed into one sequence without padding between them.

Separate from the layouts, which run a model on these tensors, because tasks read them too.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from launcher.core.protocol.shape_buckets import bucket_size
from launcher.worker.interfaces import ItemBatch, TokenIds


@dataclass(frozen=True, slots=True)
class PaddedBatch:
    """Items padded on the right to the longest. ``input_ids``: int64, items × width. ``mask``: True for real tokens,
    or None if there is no padding. ``lengths``: int64, the number of real tokens of each item. ``token_type_ids``:
    int64, like ``input_ids``, or None if all are 0. ``items`` is what the batch was made from."""

    input_ids: Tensor
    mask: Tensor | None
    lengths: Tensor
    token_type_ids: Tensor | None
    items: ItemBatch

    def attention_mask(self) -> Tensor | None:
        """The mask as transformers takes it, int64; None if there is no padding, which is faster."""
        return None if self.mask is None else self.mask.to(torch.int64)


def pad(batch: ItemBatch, pad_id: int) -> PaddedBatch:
    """The items as rows of one width; padding has the token type 0."""
    lengths, width = batch.lengths, batch.lengths[0]
    counts = np.asarray(lengths, dtype=np.int64)
    mask = None if lengths[-1] == width else np.arange(width) < counts[:, None]

    def rows(values: NDArray[Any], fill: int) -> Tensor:
        if mask is None:
            return torch.from_numpy(values.reshape(len(lengths), width).astype(np.int64))
        padded = np.full((len(lengths), width), fill, dtype=np.int64)
        padded[mask] = values
        return torch.from_numpy(padded)

    return PaddedBatch(
        input_ids=rows(batch.ids, pad_id),
        mask=None if mask is None else torch.from_numpy(mask),
        lengths=torch.from_numpy(counts),
        token_type_ids=None if batch.type_ids is None else rows(batch.type_ids, 0),
        items=batch,
    )


@dataclass(frozen=True, slots=True)
class LengthGroup:
    """``items`` adjacent items of equal ``length`` in a packed sequence; the first token of the first is at
    ``start``."""

    start: int
    items: int
    length: int

    @property
    def stop(self) -> int:
        """The index after the last token."""
        return self.start + self.items * self.length

    def of(self, states: Tensor) -> Tensor:
        """The group's part of tokens × …, as a view: items × length × …"""
        return states[self.start : self.stop].view(self.items, self.length, *states.shape[1:])


def group_by_length(lengths: Sequence[int]) -> tuple[LengthGroup, ...]:
    """The groups of a packed sequence of items of these lengths, longest first."""
    groups: list[LengthGroup] = []
    start = 0
    for length, equal in groupby(lengths):
        groups.append(LengthGroup(start, sum(1 for _ in equal), length))
        start = groups[-1].stop
    return tuple(groups)


@dataclass(frozen=True, slots=True)
class PackedBatch:
    """Items concatenated into one sequence, padded at its end to the size of a shape bucket.

    ``input_ids`` and ``position_ids``: int64, 1 × tokens; likewise ``token_type_ids``, or None if all are 0.
    ``groups`` are the items. ``padding`` is the rest, as items of one token, so that it attends to nothing else.
    ``items`` is what the batch was made from.
    """

    input_ids: Tensor
    position_ids: Tensor
    groups: tuple[LengthGroup, ...]
    padding: LengthGroup
    token_type_ids: Tensor | None
    items: ItemBatch

    def attention_groups(self) -> tuple[LengthGroup, ...]:
        """All groups that attention runs over; together they cover every token."""
        return (*self.groups, self.padding) if self.padding.items else self.groups

    def to_padded(self, hidden: Tensor) -> Tensor:
        """Hidden states, tokens × hidden size, as items × width × hidden size, zero after the end of an item."""
        lengths = self.items.lengths
        padded = hidden.new_zeros((len(lengths), lengths[0], hidden.shape[1]))
        first = 0
        for group in self.groups:
            padded[first : first + group.items, : group.length] = group.of(hidden)
            first += group.items
        return padded


def pack(batch: ItemBatch, pad_id: int, padding_position: int | None) -> PackedBatch:
    """The items as one sequence. Padding has the token type 0.

    The positions of each item start at 0. Models of the RoBERTa family have a ``padding_position``: there, tokens with
    this id have it as their position, and the others are counted from the position after it (fairseq's
    ``make_positions``).
    """
    tokens = len(batch.ids)
    total = bucket_size(tokens)

    def row(values: NDArray[Any], fill: int) -> NDArray[np.int64]:
        filled = np.full((1, total), fill, dtype=np.int64)
        filled[0, :tokens] = values
        return filled

    lengths = np.asarray(batch.lengths, dtype=np.int64)
    starts = np.cumsum(lengths) - lengths
    positions = np.arange(tokens) - np.repeat(starts, lengths)
    if padding_position is not None:
        positions = _positions_of_real_tokens(batch.ids, positions, padding_position)
    return PackedBatch(
        input_ids=torch.from_numpy(row(batch.ids, pad_id)),
        position_ids=torch.from_numpy(row(positions, 0 if padding_position is None else padding_position + 1)),
        groups=group_by_length(batch.lengths),
        padding=LengthGroup(tokens, total - tokens, 1),
        token_type_ids=None if batch.type_ids is None else torch.from_numpy(row(batch.type_ids, 0)),
        items=batch,
    )


def _positions_of_real_tokens(ids: TokenIds, offsets: NDArray[Any], padding_position: int) -> NDArray[Any]:
    """See ``pack``; ``offsets`` is the distance of each token from the start of its item."""
    real = ids != padding_position
    if real.all():
        return offsets + (padding_position + 1)
    counts = np.cumsum(real)
    before = np.concatenate([[0], counts])[np.arange(len(ids)) - offsets]
    return np.where(real, counts - before, 0) + padding_position
