"""Packed batches: where each item is, which positions it has, and that attention keeps items apart."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import masking_utils
from transformers.models.roberta.modeling_roberta import RobertaEmbeddings

from launcher.worker.batches import LengthGroup, group_by_length, pack, pad
from launcher.worker.interfaces import Item, ItemBatch, PackingUnsupportedError
from launcher.worker.layouts.item_attention import AttentionPattern
from launcher.worker.layouts.packed_attention import IMPLEMENTATION, PackedAttention


@given(st.lists(st.integers(1, 200), min_size=1, max_size=40))
def test_each_item_is_in_the_packed_batch_once_with_its_own_positions(lengths: list[int]) -> None:
    lengths = sorted(lengths, reverse=True)
    ids = np.arange(100, 100 + sum(lengths), dtype=np.int32)
    batch = pack(ItemBatch(ids, lengths), 7, None)

    assert batch.input_ids[0, : len(ids)].tolist() == ids.tolist()
    assert (batch.input_ids[0, len(ids) :] == 7).all()
    start = 0
    for length in lengths:
        assert batch.position_ids[0, start : start + length].tolist() == list(range(length))
        start += length
    assert batch.groups == group_by_length(lengths)
    assert (batch.padding.start, batch.padding.stop) == (len(ids), batch.input_ids.shape[1])


@given(st.lists(st.lists(st.integers(0, 3), min_size=1, max_size=12), min_size=1, max_size=12))
def test_positions_after_the_padding_id_are_those_that_the_code_of_roberta_computes(items: list[list[int]]) -> None:
    items = sorted(items, key=len, reverse=True)
    ids = np.concatenate(items).astype(np.int32)
    batch = pack(ItemBatch(ids, list(map(len, items))), 1, 1)

    positions = [
        RobertaEmbeddings.create_position_ids_from_input_ids(torch.tensor([item]), padding_idx=1)[0] for item in items
    ]
    torch.testing.assert_close(batch.position_ids[0, : len(ids)], torch.cat(positions))


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

    for arranged in (pack(batch, 7, None), pad(batch, 7)):
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


MASK_FUNCTIONS = {
    "bidirectional": masking_utils.bidirectional_mask_function,
    "causal": masking_utils.causal_mask_function,
    "causal window": masking_utils.sliding_window_causal_mask_function(4),
    "bidirectional window": masking_utils.sliding_window_bidirectional_mask_function(4),
    "chunks": masking_utils.chunked_causal_mask_function(4, torch.zeros(1, dtype=torch.int64)),
    "prefix": masking_utils.or_masks(masking_utils.causal_mask_function, lambda batch, head, query, key: key < 3),
}


class Biases(torch.nn.Module):
    """Position biases by distance, as in T5."""

    config = SimpleNamespace(_attn_implementation=IMPLEMENTATION)

    def compute_bias(self, queries: int, keys: int) -> torch.Tensor:
        distances = torch.arange(keys)[None, :] - torch.arange(queries)[:, None]
        return torch.sin(distances * torch.arange(1, 5)[:, None, None])[None]


@settings(deadline=None, max_examples=60)
@given(
    st.lists(st.integers(1, 30), min_size=1, max_size=8),
    st.sampled_from(sorted(MASK_FUNCTIONS)),
    st.booleans(),
    st.booleans(),
    st.sampled_from([None, 0.5]),
)
def test_packed_attention_equals_the_attention_of_each_item_alone(
    lengths: list[int], kind: str, grouped: bool, biased: bool, softcap: float | None
) -> None:
    biased = biased and softcap is None
    lengths = sorted(lengths, reverse=True)
    torch.manual_seed(0)
    heads, size, total = 4, 8, sum(lengths)
    query = torch.randn(1, heads, total, size)
    key, value = torch.randn(2, 1, 2 if grouped else heads, total, size).unbind(0)
    module = Biases()
    attention = PackedAttention(module)
    attention.start_batch(group_by_length(lengths))
    mask = attention.mask_of(mask_function=MASK_FUNCTIONS[kind])
    options = {"position_bias": module.compute_bias(total, total)} if biased else {}

    found, _ = attention.attention_forward(
        torch.nn.Identity(), query, key, value, mask, scaling=0.3, softcap=softcap, **options
    )

    assert (mask is None) == (kind == "bidirectional")
    start = 0
    for length in lengths:
        part = slice(start, start + length)
        near = masking_utils.sdpa_mask(
            1, length, length, mask_function=MASK_FUNCTIONS[kind], allow_is_causal_skip=False
        )
        k, v = (states[:, :, part].repeat_interleave(heads // states.shape[1], 1) for states in (key, value))
        scores = query[:, :, part] @ k.transpose(2, 3) * 0.3
        scores = scores if softcap is None else softcap * torch.tanh(scores / softcap)
        scores = scores + Biases.compute_bias(module, length, length) if biased else scores
        alone = torch.softmax(scores.masked_fill(~near, float("-inf")), -1) @ v
        torch.testing.assert_close(found[0, part], alone[0].transpose(0, 1), atol=1e-5, rtol=1e-5)
        start += length


def test_position_biases_are_computed_by_the_model_unless_its_attention_is_packed() -> None:
    module = Biases()
    PackedAttention(module)
    assert not isinstance(module.compute_bias(3, 3), torch.Tensor)

    module.config = SimpleNamespace(_attn_implementation="sdpa")
    torch.testing.assert_close(module.compute_bias(3, 3), Biases.compute_bias(module, 3, 3))


@pytest.mark.parametrize("options", [{"mask": torch.ones(1, 1, 3, 3)}, {"s_aux": torch.zeros(2)}])
def test_tensors_that_would_have_to_be_split_by_item_cannot_be_packed(options: dict[str, torch.Tensor]) -> None:
    attention = PackedAttention(torch.nn.Identity())
    attention.start_batch(group_by_length([3]))
    states = torch.randn(1, 2, 3, 4)
    with pytest.raises(PackingUnsupportedError, match=r"its own attention mask|s_aux"):
        attention.attention_forward(torch.nn.Identity(), states, states, states, options.pop("mask", None), **options)


@pytest.mark.parametrize("kind", sorted(MASK_FUNCTIONS))
@pytest.mark.parametrize("lengths", [(1, 2, 3, 4, 5, 9), (9, 5, 4, 3, 2, 1), (5, 1, 1300, 3, 4, 700)])
def test_the_pattern_of_an_item_does_not_depend_on_the_lengths_before(kind: str, lengths: tuple[int, ...]) -> None:
    pattern = AttentionPattern(MASK_FUNCTIONS[kind])

    for length in lengths:
        mask, causal = pattern.of(length)
        if mask is None:
            mask = torch.ones(length, length, dtype=torch.bool)
            mask = mask.tril() if causal else mask
        wanted = masking_utils.sdpa_mask(
            1, length, length, mask_function=MASK_FUNCTIONS[kind], allow_is_causal_skip=False
        )
        assert torch.equal(mask, wanted[0, 0])
    assert (pattern.of(1300)[0] is None) == (kind in ("bidirectional", "causal"))
