"""Pairs of texts become items as transformers makes them: special tokens, token types, truncation, spans."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, pre_tokenizers, processors

from launcher.core.protocol.model_info import ModelInfo
from launcher.errors import RequestError
from launcher.front.ascii_fast_path import Encoder
from launcher.front.input_names import InputNames
from launcher.front.pairs import PairLayout, PairTruncation, take
from launcher.front.tokenizer import FrontTokenizer
from launcher.host.model import resolve

pytestmark = pytest.mark.anyio

VOCABULARY = {"[PAD]": 0, "[UNK]": 1, "[CLS]": 2, "[SEP]": 3, **{f"w{number}": number + 4 for number in range(60)}}
SPECIAL = [("[CLS]", 2), ("[SEP]", 3)]
POST_PROCESSORS: dict[str, tuple[Any, PairLayout]] = {
    "bert": (processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2)), PairLayout(1, 1, 1)),
    "roberta": (processors.RobertaProcessing(("[SEP]", 3), ("[CLS]", 2)), PairLayout(1, 2, 1)),
    "xlnet": (
        processors.TemplateProcessing("$A:0 [SEP]:0 [CLS]:2", "$A:0 [SEP]:0 $B:1 [SEP]:1 [CLS]:2", SPECIAL),
        PairLayout(0, 1, 2),
    ),
    "none": (None, PairLayout(0, 0, 0)),
}
LENGTHS = st.integers(0, 30)
TRUNCATIONS: tuple[PairTruncation, ...] = ("longest_first", "only_first", "only_second")


def make_tokenizer(post_processor: Any) -> Tokenizer:
    tokenizer = Tokenizer(models.WordLevel(VOCABULARY, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    if post_processor is not None:
        tokenizer.post_processor = post_processor
    return tokenizer


def words(count: int, first: int = 0) -> str:
    return " ".join(f"w{first + number}" for number in range(count))


@pytest.mark.parametrize("name", list(POST_PROCESSORS))
def test_truncated_pairs_are_those_of_the_tokenizers_library(name: str) -> None:
    post_processor, expected_layout = POST_PROCESSORS[name]
    whole, truncating = make_tokenizer(post_processor), make_tokenizer(post_processor)
    layout = PairLayout.of(whole.encode("w1", "w2"))
    assert layout == expected_layout

    @settings(max_examples=300, deadline=None)
    @given(first=LENGTHS, second=LENGTHS, room=st.integers(1, 20), truncation=st.sampled_from(TRUNCATIONS))
    def check(first: int, second: int, room: int, truncation: PairTruncation) -> None:
        limit, pair = layout.special_tokens + room, (words(first), words(second, 30))
        encoding = whole.encode(*pair)
        assert layout.tokens_of_first(encoding) == first
        if len(encoding) <= limit:
            return
        truncating.enable_truncation(limit, strategy=truncation)
        kept = layout.kept(encoding, limit, truncation)
        if kept is None:
            with pytest.raises(Exception, match="too short"):
                truncating.encode(*pair)
            return
        expected = truncating.encode(*pair)
        assert (take(encoding.ids, kept), take(encoding.type_ids, kept)) == (expected.ids, expected.type_ids)

    check()


def test_a_template_with_the_texts_in_another_order_has_no_layout() -> None:
    swapped = processors.TemplateProcessing("[CLS] $A [SEP]", "[CLS] $B:1 [SEP] $A:0 [SEP]", SPECIAL)
    assert PairLayout.of(make_tokenizer(swapped).encode("w1", "w2")) is None


# --- the tokenizer of the front


@pytest.fixture
def typed(model_info: ModelInfo) -> ModelInfo:
    """A model with two token types, which its tokenizer sets."""
    return msgspec.structs.replace(model_info, token_types=2, sends_token_types=True)


async def test_pairs_have_the_special_tokens_and_types_of_the_template(typed: ModelInfo) -> None:
    tokenizer = FrontTokenizer(typed, text_characters=100)
    found = await tokenizer.pairs([("w0 w1", "w2"), ("w3", "w4 w5")])
    assert [item.tolist() for item in found.items] == [[2, 4, 5, 3, 6, 3], [2, 7, 3, 8, 9, 3]]
    assert found.details is not None
    assert [types.tolist() for types in found.details.type_ids] == [[0, 0, 0, 0, 1, 1], [0, 0, 0, 1, 1, 1]]
    assert {types.dtype.name for types in found.details.type_ids} == {"uint8"}
    assert (found.tokens, found.truncated) == (12, ())


async def test_texts_among_pairs_have_type_zero_and_texts_alone_have_no_details(typed: ModelInfo) -> None:
    tokenizer = FrontTokenizer(typed, text_characters=100)
    found = await tokenizer.pairs(["w0 w1", ("w2", "w3")])
    assert found.details is not None
    assert [types.tolist() for types in found.details.type_ids] == [[0, 0, 0, 0], [0, 0, 0, 1, 1]]
    assert (await tokenizer.pairs(["w0 w1"])).details is None
    assert (await tokenizer.texts(["w0 w1"])).details is None


async def test_a_tokenizer_that_transformers_lets_set_no_types_gives_none(model_info: ModelInfo) -> None:
    tokenizer = FrontTokenizer(msgspec.structs.replace(model_info, token_types=2), text_characters=100)
    found = await tokenizer.pairs([("w0", "w1")])
    assert [item.tolist() for item in found.items] == [[2, 4, 3, 5, 3]]
    assert found.details is None


async def test_texts_have_types_if_their_template_sets_them(typed: ModelInfo, tmp_path: Path) -> None:
    make_tokenizer(POST_PROCESSORS["xlnet"][0]).save(str(tmp_path / "tokenizer.json"))
    xlnet = msgspec.structs.replace(typed, folder=str(tmp_path), token_types=3, max_length=5)
    tokenizer = FrontTokenizer(xlnet, text_characters=100)
    found = await tokenizer.texts(["w0", words(10)], truncate=True)
    assert [item.tolist() for item in found.items] == [[4, 3, 2], [4, 5, 6, 3, 2]]
    assert found.details is not None
    assert [types.tolist() for types in found.details.type_ids] == [[0, 0, 2], [0, 0, 0, 0, 2]]


async def test_types_that_the_model_does_not_have_are_refused(typed: ModelInfo) -> None:
    tokenizer = FrontTokenizer(msgspec.structs.replace(typed, token_types=1), text_characters=100)
    with pytest.raises(RequestError, match="its tokenizer sets token types up to 1, but the model has 1") as error:
        await tokenizer.pairs([("w0", "w1")])
    assert error.value.code == "pairs_not_supported"
    assert (await tokenizer.texts(["w0"])).tokens == 3


async def test_a_long_pair_is_refused_or_truncated_and_reported(typed: ModelInfo) -> None:
    tokenizer = FrontTokenizer(typed, text_characters=1000)
    pairs = [("w1", "w2"), (words(10), words(20, 20))]
    with pytest.raises(RequestError, match=r"'input\[1\]' has 33 tokens, but the model accepts at most 16") as error:
        await tokenizer.pairs(pairs)
    assert (error.value.code, error.value.param) == ("too_long", "input")
    found = await tokenizer.pairs(pairs, truncate=True)
    assert found.truncated == (1,)
    assert found.items[1].tolist() == [2, *range(4, 10), 3, *range(24, 31), 3]
    assert found.details is not None
    assert found.details.type_ids[1].tolist() == [0] * 8 + [1] * 8


async def test_only_the_first_text_is_truncated_if_asked(typed: ModelInfo) -> None:
    tokenizer = FrontTokenizer(typed, text_characters=1000)
    found = await tokenizer.pairs([(words(20), words(5, 30))], truncate=True, truncation="only_first")
    assert found.items[0].tolist() == [2, *range(4, 12), 3, *range(34, 39), 3]
    with pytest.raises(RequestError, match=r"'input.text' is too short to be truncated: .* at most 16 tokens"):
        await tokenizer.pairs([(words(3), words(25))], truncate=True, truncation="only_first")


async def test_empty_and_long_texts_of_a_pair_are_named(typed: ModelInfo) -> None:
    tokenizer = FrontTokenizer(typed, text_characters=20)
    with pytest.raises(RequestError, match=r"'input\[1\].text_pair' is an empty string; omit it"):
        await tokenizer.pairs([("w1", "w2"), ("w1", "")])
    with pytest.raises(RequestError, match=r"'input.text' has 30 characters; the limit is 20"):
        await tokenizer.pairs([("a" * 30, "w1")])
    with pytest.raises(RequestError, match=r"'texts\[7\]\[1\]' cannot be tokenized: character 1 is a lone surrogate"):
        await tokenizer.pairs(
            [("w1", "w1"), ("w1", "w\ud800")], field=InputNames("texts", first=6, halves=("[0]", "[1]"))
        )


async def test_pairs_of_a_task_with_spans_have_offsets_and_sides(typed: ModelInfo) -> None:
    tokenizer = FrontTokenizer(msgspec.structs.replace(typed, task="tag"), text_characters=1000)
    pairs = [("w0 w10", "w2  w3"), (words(10), words(20, 20))]
    found = await tokenizer.pairs(pairs, truncate=True)
    assert found.spans[0].tolist() == [[-1, -1], [0, 2], [3, 6], [-1, -1], [0, 2], [4, 6], [-1, -1]]
    assert found.sides[0].tolist() == [-1, 0, 0, -1, 1, 1, -1]
    spans, sides = found.spans[1], found.sides[1]
    assert len(spans) == len(sides) == len(found.items[1]) == 16
    assert [pairs[1][side][start:end] for side, (start, end) in zip(sides, spans, strict=True) if side >= 0] == [
        *(f"w{number}" for number in range(6)),
        *(f"w{20 + number}" for number in range(7)),
    ]


async def test_many_pairs_are_tokenized_in_a_thread_with_the_same_result(typed: ModelInfo) -> None:
    tokenizer = FrontTokenizer(typed, text_characters=1000)
    pairs = [(words(1 + number % 5), words(1 + number % 7, 20)) for number in range(2000)]
    together = await tokenizer.pairs(pairs)
    alone = [(await tokenizer.pairs([pair])).items[0] for pair in pairs[:20]]
    assert all(np.array_equal(a, b) for a, b in zip(together.items[:20], alone, strict=True))
    assert tokenizer.pending == 0
    tokenizer.close()


def test_the_fast_path_gives_the_pairs_of_the_tokenizer_itself(typed: ModelInfo) -> None:
    demo_folder = resolve.demo_folder(verify=False)
    encoder = Encoder(msgspec.structs.replace(typed, folder=str(demo_folder)), offsets=True)
    assert encoder._fast is not None
    plain = Tokenizer.from_file(str(demo_folder / "tokenizer.json"))
    plain.no_padding()
    plain.no_truncation()
    texts = ["The QUICK fox.", "naïve café", "a [SEP] b", "x", "It's 12 o'clock, isn't it?"]
    inputs: list[Any] = [*((a, b) for a in texts for b in texts), *texts]
    found, expected = encoder.encode(inputs), plain.encode_batch(inputs)
    assert [e.ids for e in found] == [e.ids for e in expected]
    assert [e.type_ids for e in found] == [e.type_ids for e in expected]
    assert [e.offsets for e in found] == [e.offsets for e in expected]
    assert any(1 in e.type_ids for e in found)
