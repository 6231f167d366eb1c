"""Items in one line: where each lies, where its positions begin, and what attention sees of the others."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.functional import scaled_dot_product_attention

from launcher.worker.layouts.packed import Group, NotPackable, PackedAttention, groups_of, line_of


@given(st.lists(st.integers(1, 200), min_size=1, max_size=40), st.integers(0, 3))
def test_each_item_stands_in_the_line_once_with_positions_of_its_own(lengths: list[int], first: int) -> None:
    lengths = sorted(lengths, reverse=True)
    ids = np.arange(100, 100 + sum(lengths), dtype=np.int32)
    line = line_of(ids, lengths, 7, first)

    assert line.ids[0, : len(ids)].tolist() == ids.tolist()
    assert (line.ids[0, len(ids) :] == 7).all()
    start = 0
    for length in lengths:
        assert line.positions[0, start : start + length].tolist() == list(range(first, first + length))
        start += length
    assert line.groups == groups_of(lengths)
    assert (line.filling.start, line.filling.stop) == (len(ids), line.ids.shape[1])


def test_neighbours_of_equal_length_are_one_group() -> None:
    assert groups_of([9, 5, 5, 5, 2]) == (Group(0, 1, 9), Group(9, 3, 5), Group(24, 1, 2))


@settings(deadline=None, max_examples=30)
@given(
    st.lists(st.integers(1, 30), min_size=1, max_size=8),
    st.sampled_from([None, 4, 100]),
    st.booleans(),
    st.booleans(),
)
def test_attention_in_a_line_is_that_of_each_item_alone(
    lengths: list[int], window: int | None, grouped: bool, causal: bool
) -> None:
    lengths = sorted(lengths, reverse=True)
    torch.manual_seed(0)
    heads, size, total = 4, 8, sum(lengths)
    query = torch.randn(1, heads, total, size)
    key, value = torch.randn(2, 1, 2 if grouped else heads, total, size).unbind(0)
    attention = PackedAttention()
    attention.groups = groups_of(lengths)
    module = torch.nn.Identity()
    module.is_causal = causal  # type: ignore[assignment]  # as attention modules of transformers have it

    found, _ = attention.attend(module, query, key, value, None, scaling=0.3, sliding_window=window)

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


def test_biases_of_positions_cannot_be_packed() -> None:
    attention = PackedAttention()
    attention.groups = groups_of([3])
    states = torch.randn(1, 2, 3, 4)
    bias = torch.zeros(1, 2, 3, 3)
    with pytest.raises(NotPackable, match="position_bias"):
        attention.attend(torch.nn.Identity(), states, states, states, None, position_bias=bias)
