"""Question answering: windows of long contexts, the words that answers are aligned to, and the choice of answers."""

from __future__ import annotations

import asyncio
import itertools
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Encoding, Tokenizer

from launcher.core.protocol.messages import Done, Run
from launcher.core.protocol.model_info import ModelInfo
from launcher.core.protocol.task_settings import AnswerTokens
from launcher.front.pairs import PairLayout
from launcher.front.tasks.answers import Answer, AnswerRules, Window
from launcher.front.windows import Windows
from launcher.options import FrontOptions

pytestmark = pytest.mark.anyio

CLS = 2


@pytest.fixture
def answering(model_info: ModelInfo) -> ModelInfo:
    return msgspec.structs.replace(model_info, task="question-answering", answers=AnswerTokens(CLS))


# --- windows


@pytest.fixture(scope="module")
def demo() -> Tokenizer:
    from launcher.host.model.resolve import demo_folder

    tokenizer = Tokenizer.from_file(str(demo_folder() / "tokenizer.json"))
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


CONTEXT = "The harvest was late that year, and the barns stood half empty until the first frost. " * 40


def spans_of_words(window: Encoding) -> list[tuple[int, int]]:
    """The position of the word of each token of the context, as the library tells them for one window."""
    return [
        (-1, -1) if side != 1 else window.word_to_chars(word, 1)
        for side, word in zip(window.sequence_ids, window.word_ids, strict=True)
    ]  # fmt: skip


@pytest.mark.parametrize("max_length", [384, 512, 64])
@pytest.mark.parametrize("words", [0, 5, 120])
def test_windows_are_those_of_the_tokenizers_library(demo: Tokenizer, max_length: int, words: int) -> None:
    limit = min(384, max_length)
    question = "Why was it late?" + " really" * min(words, limit // 8)
    layout = PairLayout.of(demo.encode("a", "a"))
    assert layout is not None
    truncating = Tokenizer.from_str(demo.to_str())
    for context in (CONTEXT, CONTEXT[:1000], "short", "unbelievably " * 300):
        truncating.enable_truncation(limit, stride=min(limit // 2, 128), strategy="only_second")
        first = truncating.encode(question, context)
        expected = [first, *first.overflowing]
        windows = Windows(demo.encode(question, context), layout, max_length)
        found = list(windows)
        assert len(windows) == len(found) == len(expected)
        assert [window.ids.tolist() for window in found] == [window.ids for window in expected]
        assert [window.type_ids.tolist() for window in found] == [window.type_ids for window in expected]
        spans = [[tuple(span) for span in window.spans.tolist()] for window in found]
        assert spans == [spans_of_words(window) for window in expected]


def test_a_question_must_leave_room_for_more_than_the_overlap(demo: Tokenizer) -> None:
    layout = PairLayout.of(demo.encode("a", "a"))
    assert layout is not None
    fits, too_long = demo.encode("a " * 252, CONTEXT), demo.encode("a " * 253, CONTEXT)
    tokens = len(demo.encode("", CONTEXT)) - 3
    assert len(Windows(fits, layout, 512)) == tokens - 128
    with pytest.raises(ValueError, match="has 253 tokens, but must have at most 252"):
        Windows(too_long, layout, 512)
    assert len(Windows(demo.encode("a " * 370, "short"), layout, 512)) == 1


# --- answers


def expected_answers(context: str, windows: list[Window], rules: AnswerRules) -> list[Answer]:
    """The same by trying every span of tokens, one by one."""
    totals: dict[str, list[Any]] = {}
    nulls = []
    for window in windows:
        probabilities = []
        for logits in window.logits.T:
            wanted = [
                float(logit) if window.spans[place, 0] >= 0 or window.ids[place] == CLS else -10000.0
                for place, logit in enumerate(logits)
            ]
            powers = np.exp(np.array(wanted) - max(wanted))
            probabilities.append((powers / powers.sum()).tolist())
        nulls.append(probabilities[0][0] * probabilities[1][0])
        probabilities[0][0] = probabilities[1][0] = 0.0
        count = len(window.ids)
        spans = [
            (probabilities[0][first] * probabilities[1][last], first, last)
            for first, last in itertools.product(range(count), repeat=2)
            if 0 <= last - first < rules.max_tokens
        ]
        spans.sort(key=lambda span: -span[0])
        for score, first, last in spans[: 2 * rules.top_k + 10]:
            if window.spans[first, 0] < 0 or window.spans[last, 0] < 0:
                continue
            start, end = window.spans[first, 0], window.spans[last, 1]
            totals.setdefault(context[start:end].lower(), [0.0, int(start), int(end)])[0] += score
    found = [Answer(score, start, end, context[start:end]) for score, start, end in totals.values()]
    found += [Answer(min(nulls), 0, 0, "")] if rules.impossible else []
    return sorted(found, key=lambda answer: -answer.score)[: rules.top_k]


@settings(deadline=None, max_examples=60)
@given(
    st.integers(1, 3), st.integers(1, 30), st.integers(1, 5), st.integers(1, 9), st.booleans(), st.integers(0, 2**32)
)  # fmt: skip
def test_answers_are_the_best_spans_of_all(
    count: int, tokens: int, top_k: int, max_tokens: int, impossible: bool, seed: int
) -> None:
    random = np.random.default_rng(seed)
    context = " ".join(f"W{place % 7}" for place in range(tokens * count + 9))
    windows = []
    for index in range(count):
        spans = np.full((tokens + 5, 2), -1, dtype=np.int32)
        places = 3 * (np.arange(tokens) + index * tokens // 2)
        spans[4:-1] = np.stack([places, places + 2], axis=1)
        ids = np.full(tokens + 5, 9, dtype=np.int32)
        ids[0] = CLS
        windows.append(Window(ids, spans, random.normal(size=(tokens + 5, 2)).astype(np.float32) * 3))
    rules = AnswerRules(CLS, top_k, max_tokens, impossible)
    found, expected = rules.answers(context, windows), expected_answers(context, windows, rules)
    assert [one.score for one in found] == pytest.approx([one.score for one in expected], rel=1e-9)
    assert [(one.start, one.end, one.answer) for one in found] == [(one.start, one.end, one.answer) for one in expected]


# --- requests


async def ask(make_front: Any, make_client: Any, answering: ModelInfo, body: Any) -> Any:
    """The response of a server whose model says that answers start at w8 (id 12) and end at w9 (id 13)."""
    front = make_front(model_info=answering)
    worker = await front.ready()

    async def answer() -> None:
        while True:
            run, data = await worker.receive()
            if not isinstance(run, Run):
                return
            ids = np.frombuffer(data, dtype=np.int32, count=sum(run.lengths))
            logits = np.stack([ids == 12, ids == 13], axis=1).astype(np.float32) * 20
            await worker.send(Done(run.batch, len(run.lengths), 2, 0.0001, len(ids)), logits.tobytes())

    serving = asyncio.ensure_future(answer())
    async with make_client(front.services(answering, FrontOptions())) as client:
        response = await client.post("/predict", json=body)
    serving.cancel()
    return response


async def test_a_question_is_answered_in_any_part_of_its_context(
    make_front: Any, make_client: Any, answering: ModelInfo
) -> None:
    long = " ".join(["w1"] * 40 + ["w8", "w9"] + ["w2"] * 40)
    inputs = [{"question": "w3", "context": "w1 w8 w9"}, {"question": "w3 w4", "context": long}]
    answer = (await ask(make_front, make_client, answering, {"inputs": inputs})).json()
    assert answer["task"] == "question-answering"
    (first,), (second,) = answer["predictions"]
    assert (first["start"], first["end"], first["answer"]) == (3, 8, "w8 w9")
    assert (second["start"], second["end"], second["answer"]) == (120, 125, "w8 w9")
    assert first["score"] > 0.99


async def test_a_request_has_a_limited_number_of_windows(
    make_front: Any, make_client: Any, answering: ModelInfo
) -> None:
    # A window has 12 tokens of the context, of which it shares 8 with the next one, so each of these has 23 windows.
    inputs = [{"question": "w3", "context": "w1 " * 100}] * 2
    front = make_front(model_info=answering)
    await front.ready()
    async with make_client(front.services(answering, FrontOptions(request_items=45))) as client:
        response = await client.post("/predict", json={"inputs": inputs})
    error = response.json()["error"]
    assert (response.status_code, error["code"], error["param"]) == (413, "too_many_windows", "inputs")
    assert error["message"].startswith("'inputs[1].context' is read in 23 windows")


async def test_a_lone_question_may_have_no_answer(make_front: Any, make_client: Any, answering: ModelInfo) -> None:
    body = {"inputs": {"question": "w3", "context": "w1 w8 w9"}, "top_k": 10, "handle_impossible_answer": True}
    answer = (await ask(make_front, make_client, answering, body)).json()
    (answers,) = answer["predictions"]
    assert answers[0]["answer"] == "w8 w9"
    assert [one["answer"] for one in answers].count("") == 1


@pytest.mark.parametrize(
    ("body", "code"),
    [
        ({"inputs": []}, "empty_input"),
        ({"inputs": "w1"}, "invalid_type"),
        ({"inputs": {"question": "w1", "context": ""}}, "empty_input"),
        ({"inputs": {"question": "w1"}}, "invalid_type"),
        ({"inputs": {"question": "w1 " * 30, "context": "w1"}}, "too_long"),
        ({"inputs": {"question": "w1", "context": "w1"}, "top_k": 0}, "invalid_type"),
    ],
)
async def test_invalid_questions_are_refused(
    make_front: Any, make_client: Any, answering: ModelInfo, body: Any, code: str
) -> None:
    answer = await ask(make_front, make_client, answering, body)
    assert (answer.status_code, answer.json()["error"]["code"]) == (400, code), answer.text
