"""Items as tensors: padded to rows of equal width, or packed into one sequence without padding between them.

Separate from the layouts, which run a model on these tensors, because tasks read them too.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby

import numpy as np
import torch
from torch import Tensor

from launcher.core.protocol.shape_buckets import bucket_size
from launcher.worker.interfaces import TokenIds


@dataclass(frozen=True, slots=True)
class PaddedBatch:
    """Items padded on the right to the longest. ``input_ids``: int64, items × width. ``mask``: True for real tokens,
    or None if there is no padding. ``lengths``: int64, the number of real tokens of each item."""

    input_ids: Tensor
    mask: Tensor | None
    lengths: Tensor

    def attention_mask(self) -> Tensor | None:
        """The mask as transformers takes it, int64; None if there is no padding, which is faster."""
        return None if self.mask is None else self.mask.to(torch.int64)


def pad(ids: TokenIds, lengths: Sequence[int], pad_id: int) -> PaddedBatch:
    """The items whose concatenated token ids are ``ids``, longest first, as rows of one width."""
    rows, width = len(lengths), lengths[0]
    counts = np.asarray(lengths, dtype=np.int64)
    if lengths[-1] == width:
        padded = ids.reshape(rows, width).astype(np.int64)
        return PaddedBatch(torch.from_numpy(padded), None, torch.from_numpy(counts))
    mask = np.arange(width) < counts[:, None]
    padded = np.full((rows, width), pad_id, dtype=np.int64)
    padded[mask] = ids
    return PaddedBatch(torch.from_numpy(padded), torch.from_numpy(mask), torch.from_numpy(counts))


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

    ``input_ids`` and ``position_ids``: int64, 1 × tokens. ``groups`` are the items. ``padding`` is the rest, as items
    of one token, so that it attends to nothing else. ``ids`` and ``lengths`` are what the batch was made from.
    """

    input_ids: Tensor
    position_ids: Tensor
    groups: tuple[LengthGroup, ...]
    padding: LengthGroup
    ids: TokenIds
    lengths: Sequence[int]

    def attention_groups(self) -> tuple[LengthGroup, ...]:
        """All groups that attention runs over; together they cover every token."""
        return (*self.groups, self.padding) if self.padding.items else self.groups

    def to_padded(self, hidden: Tensor) -> Tensor:
        """Hidden states, tokens × hidden size, as items × width × hidden size, zero after the end of an item."""
        padded = hidden.new_zeros((len(self.lengths), self.lengths[0], hidden.shape[1]))
        first = 0
        for group in self.groups:
            padded[first : first + group.items, : group.length] = group.of(hidden)
            first += group.items
        return padded


def pack(ids: TokenIds, lengths: Sequence[int], pad_id: int, first_position: int) -> PackedBatch:
    """The items whose concatenated token ids are ``ids``; the positions of each start at ``first_position``."""
    tokens = len(ids)
    total = bucket_size(tokens)
    input_ids = np.full((1, total), pad_id, dtype=np.int64)
    input_ids[0, :tokens] = ids
    position_ids = np.full((1, total), first_position, dtype=np.int64)
    lengths_array = np.asarray(lengths, dtype=np.int64)
    starts = np.cumsum(lengths_array) - lengths_array
    position_ids[0, :tokens] += np.arange(tokens) - np.repeat(starts, lengths_array)
    return PackedBatch(
        torch.from_numpy(input_ids),
        torch.from_numpy(position_ids),
        group_by_length(lengths),
        LengthGroup(tokens, total - tokens, 1),
        ids,
        lengths,
    )
