"""Padding, pooling and scores, compared with a straightforward implementation."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from launcher.worker.batches import pack, pad
from launcher.worker.interfaces import ItemBatch
from launcher.worker.layouts.equal_lengths import split_by_length
from launcher.worker.tasks.classify import score
from launcher.worker.tasks.embed import Embed
from launcher.worker.tasks.pooling import TokenEmbeddings, pool
from tests.worker.conftest import make_model_info

LENGTHS = st.lists(st.integers(1, 12), min_size=1, max_size=8).map(lambda lengths: sorted(lengths, reverse=True))


def ids_of(lengths: list[int]) -> np.ndarray:
    return np.arange(1, sum(lengths) + 1, dtype=np.int32)


@given(LENGTHS)
def test_each_item_is_a_row_and_its_padding_is_masked(lengths) -> None:
    ids = ids_of(lengths)
    ids.flags.writeable = False  # as received

    batch = pad(ItemBatch(ids, lengths), pad_id=-7)

    assert batch.input_ids.dtype == torch.int64
    assert batch.input_ids.shape == (len(lengths), lengths[0])
    offset = 0
    for row, length in enumerate(lengths):
        assert batch.input_ids[row, :length].tolist() == ids[offset : offset + length].tolist()
        assert batch.input_ids[row, length:].tolist() == [-7] * (lengths[0] - length)
        if batch.mask is not None:
            assert batch.mask[row].tolist() == [True] * length + [False] * (lengths[0] - length)
        offset += length
    assert (batch.mask is None) == (lengths[0] == lengths[-1])


MODES = ("mean", "cls", "max", "mean_sqrt_len_tokens", "weightedmean", "lasttoken")


def pool_by_loop(hidden: torch.Tensor, lengths: list[int], mode: str, prompts: list[int]) -> list[list[float]]:
    vectors = []
    for row, (length, prompt) in enumerate(zip(lengths, prompts, strict=True)):
        tokens = hidden[row, prompt:length].double()
        if not len(tokens):
            tokens = hidden[row, :1].double() if mode == "cls" else torch.zeros(1, hidden.shape[2]).double()
        weights = torch.arange(prompt + 1, prompt + len(tokens) + 1, dtype=torch.float64)
        vector = {
            "mean": tokens.mean(0),
            "cls": tokens[0],
            "max": tokens.max(0).values,
            "mean_sqrt_len_tokens": tokens.sum(0) / len(tokens) ** 0.5,
            "weightedmean": (tokens * weights[:, None]).sum(0) / weights.sum(),
            "lasttoken": tokens[-1],
        }[mode]
        vectors.append(vector.tolist())
    return vectors


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("prompted", [False, True])
@pytest.mark.parametrize("lengths", [[9, 5, 5, 1], [6, 6], [1]])
def test_pooling_uses_only_real_tokens_after_the_prompt(lengths, prompted, mode, dtype) -> None:
    torch.manual_seed(len(lengths))
    hidden = torch.randn(len(lengths), lengths[0], 16).to(dtype)
    batch = pad(ItemBatch(ids_of(lengths), lengths), 0)
    for row, length in enumerate(lengths):
        hidden[row, length:] = 1000.0  # would change the result
    prompts = (
        [min(3, length if mode != "max" else length - 1) for length in lengths] if prompted else [0] * len(lengths)
    )

    given_prompts = torch.tensor(prompts) if prompted else None
    vectors = pool(TokenEmbeddings(hidden, batch.lengths, batch.mask, given_prompts), mode)

    assert vectors.dtype == torch.float32
    np.testing.assert_allclose(vectors.numpy(), pool_by_loop(hidden, lengths, mode, prompts), rtol=1e-5, atol=1e-5)


def test_the_vectors_of_several_modes_are_concatenated() -> None:
    tokens = TokenEmbeddings(torch.randn(2, 3, 4), torch.tensor([3, 3]), None)

    assert torch.equal(pool(tokens, ("max", "cls")), torch.cat([pool(tokens, "max"), pool(tokens, "cls")], dim=1))


@given(st.lists(st.lists(st.floats(-30, 30, width=32), min_size=3, max_size=3), min_size=1, max_size=5))
def test_softmax_scores_sum_to_one_and_sigmoid_scores_are_independent(rows) -> None:
    logits = torch.tensor(rows)

    shares, singles = score(logits, "softmax"), score(logits, "sigmoid")

    np.testing.assert_allclose(shares.sum(1).numpy(), 1, rtol=1e-5)
    chosen = shares.gather(1, logits.argmax(1, keepdim=True))
    assert torch.equal(chosen, shares.max(1, keepdim=True).values)
    expected = 1 / (1 + np.exp(-np.array(rows, dtype=np.float64)))
    np.testing.assert_allclose(singles.numpy(), expected, rtol=1e-4, atol=1e-6)
    assert torch.equal(score(logits, "raw"), logits)


def test_scores_of_bf16_logits_are_computed_in_fp32() -> None:
    logits = torch.tensor([[1.0, 2.0, 3.0]], dtype=torch.bfloat16)

    scores = score(logits, "softmax")

    assert scores.dtype == torch.float32
    assert float(scores.sum()) == pytest.approx(1, abs=1e-6)


@settings(deadline=None)
@given(LENGTHS, st.sampled_from([mode for mode in MODES if mode != "max"]), st.data())
def test_prompts_are_left_out_in_every_layout(lengths, mode, data) -> None:
    """Packed, padded, and as groups of equal length. Of an item that is all prompt, the maximum is not defined."""
    prompts = tuple(data.draw(st.integers(0, length)) for length in lengths)
    batch = ItemBatch(ids_of(lengths), lengths, prompt_lengths=prompts)
    task = Embed(None, make_model_info(hidden_size=3, pooling=(mode, "mean"), normalize=False))
    states = torch.randn(sum(lengths) + 1, 3, generator=torch.Generator().manual_seed(len(lengths)))

    def padded(part: ItemBatch) -> torch.Tensor:
        made = pad(part, 0)
        hidden = states[made.input_ids]
        return task.from_padded(SimpleNamespace(last_hidden_state=hidden), made)

    expected = padded(batch)
    packed = pack(batch, 0, None)

    torch.testing.assert_close(task.from_packed(states[packed.input_ids[0]], packed), expected)
    torch.testing.assert_close(torch.cat([padded(part) for part in split_by_length(batch)]), expected)
