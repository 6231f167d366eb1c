"""Packed batches: where each item is, where its positions start, and that attention keeps items apart."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.functional import scaled_dot_product_attention

from launcher.worker.batches import LengthGroup, group_by_length, pack, pad
from launcher.worker.interfaces import Item, ItemBatch, PackingUnsupportedError
from launcher.worker.layouts.packed_attention import PackedAttention


@given(st.lists(st.integers(1, 200), min_size=1, max_size=40), st.integers(0, 3))
def test_each_item_is_in_the_packed_batch_once_with_its_own_positions(lengths: list[int], first: int) -> None:
    lengths = sorted(lengths, reverse=True)
    ids = np.arange(100, 100 + sum(lengths), dtype=np.int32)
    batch = pack(ItemBatch(ids, lengths), 7, first)

    assert batch.input_ids[0, : len(ids)].tolist() == ids.tolist()
    assert (batch.input_ids[0, len(ids) :] == 7).all()
    start = 0
    for length in lengths:
        assert batch.position_ids[0, start : start + length].tolist() == list(range(first, first + length))
        start += length
    assert batch.groups == group_by_length(lengths)
    assert (batch.padding.start, batch.padding.stop) == (len(ids), batch.input_ids.shape[1])


@given(st.lists(st.tuples(st.integers(1, 40), st.booleans()), min_size=1, max_size=20))
def test_types_of_tokens_are_arranged_like_their_ids(shapes: list[tuple[int, bool]]) -> None:
    shapes = sorted(shapes, reverse=True)
    items, first = [], 100
    for length, typed in shapes:
        ids = np.arange(first, first + length, dtype=np.int32)
        items.append(Item(ids, (ids % 3 > 0).astype(np.uint8) if typed else None))
        first += length
    batch = ItemBatch.of(items)
    expected = {int(id): int(item.type_ids is not None and id % 3 > 0) for item in items for id in item.ids}

    for arranged in (pack(batch, 7, 0), pad(batch, 7)):
        if not any(typed for _, typed in shapes):
            assert arranged.token_type_ids is None
            continue
        assert arranged.token_type_ids is not None
        assert arranged.token_type_ids.shape == arranged.input_ids.shape
        tokens = zip(arranged.input_ids.flatten().tolist(), arranged.token_type_ids.flatten().tolist(), strict=True)
        assert {type for id, type in tokens if id == 7} <= {0}
        tokens = zip(arranged.input_ids.flatten().tolist(), arranged.token_type_ids.flatten().tolist(), strict=True)
        assert {id: type for id, type in tokens if id != 7} == expected


def test_adjacent_items_of_equal_length_form_a_group() -> None:
    assert group_by_length([9, 5, 5, 5, 2]) == (LengthGroup(0, 1, 9), LengthGroup(9, 3, 5), LengthGroup(24, 1, 2))


@settings(deadline=None, max_examples=30)
@given(
    st.lists(st.integers(1, 30), min_size=1, max_size=8),
    st.sampled_from([None, 4, 100]),
    st.booleans(),
    st.booleans(),
)
def test_packed_attention_equals_the_attention_of_each_item_alone(
    lengths: list[int], window: int | None, grouped: bool, causal: bool
) -> None:
    lengths = sorted(lengths, reverse=True)
    torch.manual_seed(0)
    heads, size, total = 4, 8, sum(lengths)
    query = torch.randn(1, heads, total, size)
    key, value = torch.randn(2, 1, 2 if grouped else heads, total, size).unbind(0)
    attention = PackedAttention()
    attention.groups = group_by_length(lengths)
    module = torch.nn.Identity()
    module.is_causal = causal  # type: ignore[assignment]  # as in the attention modules of transformers

    found, _ = attention.attention_forward(module, query, key, value, None, scaling=0.3, sliding_window=window)

    start = 0
    for length in lengths:
        part = slice(start, start + length)
        places = torch.arange(length)
        distances = places[:, None] - places[None, :]
        near = (distances.abs() < (window or total + 1)) & ((distances >= 0) | (not causal))
        alone = scaled_dot_product_attention(
            query[:, :, part], key[:, :, part], value[:, :, part], attn_mask=near, scale=0.3, enable_gqa=grouped
        )
        torch.testing.assert_close(found[0, part], alone[0].transpose(0, 1), atol=1e-5, rtol=1e-5)
        start += length


def test_position_biases_cannot_be_packed() -> None:
    attention = PackedAttention()
    attention.groups = group_by_length([3])
    states = torch.randn(1, 2, 3, 4)
    bias = torch.zeros(1, 2, 3, 3)
    with pytest.raises(PackingUnsupportedError, match="position_bias"):
        attention.attention_forward(torch.nn.Identity(), states, states, states, None, position_bias=bias)
