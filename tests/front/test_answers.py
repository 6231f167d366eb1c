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
from tokenizers import Tokenizer

from launcher.core.protocol.messages import Done, Run
from launcher.core.protocol.model_info import ModelInfo
from launcher.core.protocol.task_settings import AnswerTokens
from launcher.front.tasks.answers import Answer, AnswerRules, Window
from launcher.front.windows import WindowEncoder, answer_spans
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

    return Tokenizer.from_file(str(demo_folder() / "tokenizer.json"))


CONTEXT = "The harvest was late that year, and the barns stood half empty until the first frost. " * 40


@pytest.mark.slow
@pytest.mark.parametrize("max_length", [384, 512, 64])
def test_windows_are_those_of_transformers(demo: Tokenizer, max_length: int) -> None:
    from transformers import AutoTokenizer

    from launcher.host.model.resolve import demo_folder

    limit = min(384, max_length)
    plain = AutoTokenizer.from_pretrained(demo_folder())
    expected = plain(
        "Why was it late?", CONTEXT, truncation="only_second", max_length=limit, stride=min(limit // 2, 128),
        return_overflowing_tokens=True,
    )  # fmt: skip
    (found,) = WindowEncoder(demo, max_length).encode([("Why was it late?", CONTEXT)])
    assert len(found) > 2
    assert [window.ids for window in found] == expected["input_ids"]
    assert [window.type_ids for window in found] == expected["token_type_ids"]


def test_tokens_are_aligned_to_the_words_of_the_context(demo: Tokenizer) -> None:
    context = "Unbelievably microarchitectural cores"
    ((encoding,),) = WindowEncoder(demo, 512).encode([("unbelievably what?", context)])
    spans = answer_spans(encoding)
    words = [context[start:end] for start, end in spans.tolist() if start >= 0]
    assert set(words) == set(context.split())
    assert len(words) > 3
    assert [side == 1 for side in encoding.sequence_ids] == (spans[:, 0] >= 0).tolist()


def test_the_tokenizer_of_other_requests_is_not_truncated(demo: Tokenizer) -> None:
    WindowEncoder(demo, 32)
    assert demo.truncation is None or demo.truncation["max_length"] != 32


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
