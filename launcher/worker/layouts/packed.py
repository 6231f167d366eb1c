"""Items one behind the other in a single line, so that no token is computed for nothing.

All that works token by token (the matrix products, nearly all of the work) sees one long line. Only attention must
keep the items apart: it is replaced, through transformers' attention interface, by one that runs over items of equal
length together, without a mask. Positions start anew with each item. Whether a model takes all this as it is meant
is not known beforehand: ``PackedLayout.over`` makes the attempt, and who calls it proves the results.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.modeling_outputs import BaseModelOutputWithPooling

from launcher.core.protocol.model_info import ModelInfo
from launcher.core.protocol.shape_buckets import line_tokens
from launcher.worker import custom_ops
from launcher.worker.backends import Ids
from launcher.worker.layouts.padded import pad
from launcher.worker.tasks.classify import score
from launcher.worker.tasks.embed import pool
from launcher.worker.tasks.tag import token_scores
from launcher.worker.traced import TracedEncoder

IMPLEMENTATION = "launcher_packed"


class NotPackable(Exception):
    """The model does not take its items this way; the message says why."""


@dataclass(frozen=True, slots=True)
class Group:
    """``items`` neighbours of equal ``length`` in the line, the first token of the first at ``start``."""

    start: int
    items: int
    length: int

    @property
    def stop(self) -> int:
        """The place behind the last token."""
        return self.start + self.items * self.length

    def of(self, line: Tensor) -> Tensor:
        """The group's part of tokens × … as items × length × …"""
        return line[self.start : self.stop].view(self.items, self.length, *line.shape[1:])


def groups_of(lengths: Sequence[int]) -> tuple[Group, ...]:
    """The groups of a line of items of these lengths, longest first."""
    groups: list[Group] = []
    start = 0
    for length, equal in groupby(lengths):
        groups.append(Group(start, sum(1 for _ in equal), length))
        start = groups[-1].stop
    return tuple(groups)


class PackedAttention:
    """Attention inside each item of a line. ``groups`` are those of the batch that is being computed; where ``exact``
    it is computed in fp32 whatever the model is in."""

    def __init__(self) -> None:
        self.groups: tuple[Group, ...] = ()
        self.exact = False
        self._number = custom_ops.number_attention(self)
        AttentionInterface.register(IMPLEMENTATION, self.attend)
        AttentionMaskInterface.register(IMPLEMENTATION, _no_mask)

    def attend(
        self,
        module: torch.nn.Module,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attention_mask: Tensor | None,
        scaling: float | None = None,
        sliding_window: int | None = None,
        **others: Any,
    ) -> tuple[Tensor, None]:
        """As transformers calls it: 1 × heads × tokens × head size in, 1 × tokens × heads × head size out.

        Raises ``NotPackable`` for what would have to be cut up too and is not known, such as biases of positions.
        """
        unknown = sorted(n for n, value in others.items() if isinstance(value, Tensor) and value.is_floating_point())
        if unknown or others.get("softcap") is not None:
            raise NotPackable(f"its attention also takes {', '.join(unknown) or 'a softcap'}")
        causal = bool(getattr(module, "is_causal", False))
        if custom_ops.recording():
            return custom_ops.attend(query, key, value, self._number, causal, scaling, sliding_window), None
        return self.inside(query, key, value, causal, scaling, sliding_window), None

    def inside(
        self, query: Tensor, key: Tensor, value: Tensor, causal: bool, scaling: float | None, window: int | None
    ) -> Tensor:
        """Attention of each item by itself; shapes as in ``attend``."""
        out = torch.empty_like(query.transpose(1, 2), memory_format=torch.contiguous_format)
        for group in self.groups:
            mask = _band(group.length, window, causal)
            # Group by group: in fp32 the states of a long line would not stay in the caches.
            q, k, v = (_items(states, group, exact=self.exact) for states in (query, key, value))
            part = scaled_dot_product_attention(
                q, k, v, attn_mask=mask, is_causal=causal and mask is None, scale=scaling,
                enable_gqa=key.shape[1] != query.shape[1],
            )  # fmt: skip
            group.of(out[0]).copy_(part.transpose(1, 2))
        return out


def _no_mask(*arguments: Any, **options: Any) -> None:
    """No mask is made for the whole line: it would have its square in size."""


def _items(states: Tensor, group: Group, *, exact: bool) -> Tensor:
    """Items × heads × length × head size: the group's part of 1 × heads × tokens × head size."""
    part = group.of(states[0].transpose(0, 1)).transpose(1, 2)
    return part.float() if exact else part


def _band(length: int, window: int | None, causal: bool) -> Tensor | None:
    """True where two tokens are less than ``window`` apart, and where ``causal``, the second is not later; None where
    all tokens are so near (transformers' convention)."""
    if window is None or length <= window:
        return None
    places = torch.arange(length)
    distances = places[:, None] - places[None, :]
    near = distances.abs() < window
    return near & (distances >= 0) if causal else near


@dataclass(frozen=True, slots=True)
class Line:
    """One batch: ``ids`` and ``positions`` int64, 1 × tokens. ``groups`` are those of the items; ``filling``, behind
    them, is tokens of no item, each by itself: they meet nobody."""

    ids: Tensor
    positions: Tensor
    groups: tuple[Group, ...]
    filling: Group


def line_of(ids: Ids, lengths: Sequence[int], pad_id: int, first_position: int) -> Line:
    """The line of items whose ``ids`` follow each other, filled up to a number of tokens that comes up often."""
    tokens = len(ids)
    total = line_tokens(tokens)
    line = np.full((1, total), pad_id, dtype=np.int64)
    line[0, :tokens] = ids
    positions = np.full((1, total), first_position, dtype=np.int64)
    lengths_array = np.asarray(lengths, dtype=np.int64)
    starts = np.cumsum(lengths_array) - lengths_array
    positions[0, :tokens] += np.arange(tokens) - np.repeat(starts, lengths_array)
    filling = Group(tokens, total - tokens, 1)
    return Line(torch.from_numpy(line), torch.from_numpy(positions), groups_of(lengths), filling)


class PackedLayout:
    """See the head of this module."""

    def __init__(self, model: torch.nn.Module, model_info: ModelInfo, attention: PackedAttention, first: int) -> None:
        self._model, self._model_info, self._attention, self._first_position = model, model_info, attention, first
        self._encoder = self._call = _encoder_of(model, model_info)
        takes = inspect.signature(self._encoder.forward).parameters
        self._takes_types = "token_type_ids" in takes

    @classmethod
    def over(cls, model: Any, model_info: ModelInfo) -> Iterator[PackedLayout]:
        """The ways of packing there are for a model, the likeliest first: they differ in where positions begin.

        Raises ``NotPackable`` when it has no attention that can be replaced, or takes no positions. The model is
        changed: its attention stays replaced until the caller sets the one that it had.
        """
        encoder = _encoder_of(model, model_info)
        if "position_ids" not in inspect.signature(encoder.forward).parameters:
            raise NotPackable("it takes no positions")
        attention = PackedAttention()
        try:
            model.set_attn_implementation(IMPLEMENTATION)
        except (AttributeError, ValueError, TypeError) as error:
            raise NotPackable(f"its attention cannot be replaced ({error})") from error
        if getattr(encoder.config, "_attn_implementation", None) != IMPLEMENTATION:
            raise NotPackable("its attention cannot be replaced")
        for first in (0, model_info.pad_id + 1):  # RoBERTa and its kin count from behind the padding's id
            yield cls(model, model_info, attention, first)

    def attend_exactly(self, exact: bool) -> None:
        """Compute attention in fp32, or in what the model is in."""
        self._attention.exact = exact

    def wrap(self, wrapper: Callable[[Any], Any] | None) -> None:
        """See ``Layout.wrap``."""
        self._call = wrapper(self._encoder) if wrapper else self._encoder

    def run(self, ids: Ids, lengths: Sequence[int]) -> tuple[Tensor, int]:
        """See ``Layout.run``."""
        line = self._line(ids, lengths)
        if self._model_info.task == "classify":
            return self._classify(line, ids, lengths), line.ids.numel()
        hidden = self._hidden(line)
        if self._model_info.task == "tag":
            return self._tag(hidden, line, len(ids)), line.ids.numel()
        return torch.cat([self._pool(hidden, group) for group in line.groups]), line.ids.numel()

    def trace(self, ids: Ids, lengths: Sequence[int]) -> None:
        """Record the encoder over these items, and run the recording from now on; ``wrap(None)`` undoes it."""
        inputs = self._inputs(self._line(ids, lengths))
        self.wrap(lambda encoder: TracedEncoder(encoder, inputs))

    def _line(self, ids: Ids, lengths: Sequence[int]) -> Line:
        return line_of(ids, lengths, self._model_info.pad_id, self._first_position)

    def _hidden(self, line: Line) -> Tensor:
        """Hidden states of the line, tokens × hidden size."""
        hidden: Tensor = self._call(**self._inputs(line))[0][0]
        return hidden

    def _inputs(self, line: Line) -> dict[str, Tensor]:
        """What the encoder gets, by name; its attention gets the groups."""
        self._attention.groups = (*line.groups, line.filling) if line.filling.items else line.groups
        types = {"token_type_ids": torch.zeros_like(line.ids)} if self._takes_types else {}
        return {"input_ids": line.ids, "position_ids": line.positions, **types}

    def _pool(self, hidden: Tensor, group: Group) -> Tensor:
        lengths = torch.full((group.items,), group.length)
        return pool(group.of(hidden), lengths, None, self._model_info.pooling, self._model_info.normalize)

    def _classify(self, line: Line, ids: Ids, lengths: Sequence[int]) -> Tensor:
        """The model's own head, which gets the items padded again: by then nearly all is done."""
        batch = pad(ids, lengths, self._model_info.pad_id)
        padded = _padded(self._hidden(line), line, batch.ids.shape[1])
        mask = None if batch.mask is None else batch.mask.to(torch.int64)
        with _given(self._model, self._encoder, padded):
            output = self._model(input_ids=batch.ids, attention_mask=mask)
        return score(output.logits, self._model_info.scores)

    def _tag(self, hidden: Tensor, line: Line, tokens: int) -> Tensor:
        """The model's own head over the line: it works token by token, which is proved like the rest."""
        with _given(self._model, self._encoder, hidden[None]):
            output = self._model(input_ids=line.ids)
        return token_scores(output.logits[:, :tokens], None)


def _encoder_of(model: Any, model_info: ModelInfo) -> Any:
    """What gives hidden states: the model itself, or what its head sits on."""
    return model if model_info.task == "embed" else model.base_model


def _padded(hidden: Tensor, line: Line, width: int) -> Tensor:
    """Hidden states as items × width × hidden size, zero behind the end of an item."""
    items = sum(group.items for group in line.groups)
    padded = hidden.new_zeros((items, width, hidden.shape[1]))
    first = 0
    for group in line.groups:
        padded[first : first + group.items, : group.length] = group.of(hidden)
        first += group.items
    return padded


class _Given(torch.nn.Module):
    """In the place of the encoder: gives the hidden states that were computed already."""

    def __init__(self, encoder: Any, hidden: Tensor) -> None:
        super().__init__()
        pooler = getattr(encoder, "pooler", None)
        pooled = pooler(hidden) if pooler is not None else None
        self._output = BaseModelOutputWithPooling(last_hidden_state=hidden, pooler_output=pooled)

    def forward(self, *arguments: Any, **options: Any) -> BaseModelOutputWithPooling:
        """What the encoder would give for the items."""
        return self._output


@contextmanager
def _given(model: Any, encoder: Any, hidden: Tensor) -> Iterator[None]:
    name = model.base_model_prefix
    setattr(model, name, _Given(encoder, hidden))
    try:
        yield
    finally:
        setattr(model, name, encoder)
