"""``POST /predict`` for pairs of texts: reranking, classification of pairs, zero-shot classification."""

from __future__ import annotations

import asyncio
import json
from contextlib import asynccontextmanager
from typing import Any

import msgspec
import numpy as np
import pytest

from launcher.core.protocol.messages import Done, Run
from launcher.errors import RequestError
from launcher.front.http.api.predict.classify import ClassifyRequest
from launcher.front.http.large_body_decoder import LargeBodyDecoder
from launcher.front.tasks.ranking import ranked
from launcher.front.tasks.zero_shot import hypotheses, parse_labels, truncated_texts, zero_shot_labels
from launcher.options import FrontOptions

pytestmark = pytest.mark.anyio

NLI = ("contradiction", "entailment", "neutral")
TYPED = {"token_types": 2, "sends_token_types": True}


class Exchange:
    """A client, and a worker whose results a test chooses. The items of a request must be of similar lengths, so that
    they are one batch."""

    def __init__(self, client: Any, worker: Any, width: int) -> None:
        self.client, self._worker, self._width = client, worker, width

    async def post(self, body: Any) -> Any:
        """The response to a request that is not computed."""
        return await self.client.post(
            "/predict", content=json.dumps(body), headers={"content-type": "application/json"}
        )

    async def answer(self, body: Any, rows: list[list[float]]) -> tuple[Any, list[tuple[list[int], list[int]]]]:
        """The response to a request for which the worker computes ``rows``, in the order of the request, and the ids
        and token types that the worker got, in this order too."""
        request = asyncio.ensure_future(self.post(body))
        run, data = await self._worker.expect(Run)
        tokens = sum(run.lengths)
        ids = np.frombuffer(data, dtype=np.int32, count=tokens)
        types = np.frombuffer(data, dtype=np.uint8, offset=4 * tokens) if run.typed else np.zeros(tokens, np.uint8)
        ends = np.cumsum(run.lengths)[:-1]
        items = [(a.tolist(), b.tolist()) for a, b in zip(np.split(ids, ends), np.split(types, ends), strict=True)]
        # Batches are sorted by length; items of equal length keep their order.
        order = sorted(range(len(items)), key=lambda index: -self._lengths(body)[index])
        sent = np.array([rows[index] for index in order], dtype=np.float32)
        await self._worker.send(Done(run.batch, len(rows), self._width, 0.001, tokens), sent.tobytes())
        restored = dict(zip(order, items, strict=True))
        return await request, [restored[index] for index in range(len(items))]

    def _lengths(self, body: Any) -> list[int]:
        if "query" in body:
            return [len(document.split()) for document in body["documents"]]
        inputs = body["inputs"] if isinstance(body["inputs"], list) else [body["inputs"]]
        if "candidate_labels" in body:
            return [len(text.split()) for text in inputs for _ in body["candidate_labels"]]
        return [
            len(one.split()) if isinstance(one, str)
            else len(one["input_ids"]) if "input_ids" in one
            else len(one["text"].split()) + len(one["text_pair"].split()) + 1
            for one in inputs
        ]  # fmt: skip


@pytest.fixture
def exchange(make_front: Any, make_client: Any, model_info: Any) -> Any:
    """Makes an ``Exchange`` for a model of a task."""

    @asynccontextmanager
    async def make(
        task: str,
        labels: tuple[str, ...],
        *,
        token_ids: str = "accept",
        text_characters: int = 1_000_000,
        **changes: Any,
    ) -> Any:
        model = msgspec.structs.replace(model_info, task=task, labels=labels, **{**TYPED, **changes})
        front = make_front(model_info=model)
        worker = await front.ready()
        async with make_client(
            front.services(model, FrontOptions(token_ids=token_ids, text_characters=text_characters))
        ) as client:
            yield Exchange(client, worker, model.result_width)

    return make


# --- rerank


QUERY = {"query": "w0 w1", "documents": ["w2", "w3 w4", "w5 w6 w7"]}
ROWS = [[-1.5, 0.18], [2.0, 0.88], [0.5, 0.62]]


async def test_documents_are_ranked_by_score(exchange: Any) -> None:
    async with exchange("rerank", ("LABEL_0",)) as server:
        answer, items = await server.answer(QUERY, ROWS)
    assert answer.json() == {
        "model": "words",
        "task": "rerank",
        "predictions": [{"index": 1, "score": 0.88}, {"index": 2, "score": 0.62}, {"index": 0, "score": 0.18}],
        "usage": {"prompt_tokens": 21, "total_tokens": 21},
    }
    assert items[1] == ([2, 4, 5, 3, 7, 8, 3], [0, 0, 0, 0, 1, 1, 1])


async def test_the_best_documents_come_with_raw_scores_and_texts_on_request(exchange: Any) -> None:
    body = {**QUERY, "top_k": 2, "raw_scores": True, "return_documents": True}
    async with exchange("rerank", ("LABEL_0",)) as server:
        answer, _ = await server.answer(body, ROWS)
    assert answer.json()["predictions"] == [
        {"index": 1, "score": 2.0, "text": "w3 w4"},
        {"index": 2, "score": 0.5, "text": "w5 w6 w7"},
    ]


@pytest.mark.parametrize(
    ("changes", "code", "words"),
    [
        ({"documents": []}, "empty_input", "'documents' is an empty list"),
        ({"documents": ["w1", ""]}, "empty_input", "'documents[1]' is an empty string"),
        ({"query": ""}, "empty_input", "'query' is an empty string"),
        ({"documents": ["w1", "w2 " * 20]}, "too_long", "the pair of 'query' and 'documents[1]' has 25 tokens"),
        ({"documents": ["w1"] * 3000}, "too_many_inputs", "'documents' has 3000 inputs"),
        ({"documents": [[5, 6]]}, "invalid_type", "Expected `str`"),
        ({"documents": [[5, 6]] * 20_000}, "invalid_type", "documents"),
        ({"documents": [[5] * 40_000]}, "invalid_type", "'documents' is invalid: Expected"),
        ({"top_k": 0}, "invalid_type", "top_k"),
        ({"query": 5}, "invalid_type", "query"),
    ],
)
async def test_requests_that_cannot_be_ranked_are_refused(exchange: Any, changes: Any, code: str, words: str) -> None:
    async with exchange("rerank", ("LABEL_0",)) as server:
        answer = await server.post({**QUERY, **changes})
    error = answer.json()["error"]
    assert (answer.status_code >= 400, error["code"] in (code, "too_many_inputs")) == (True, True), error
    if error["code"] == code:
        assert words in error["message"]


async def test_a_long_document_is_truncated_on_request_and_reported(exchange: Any) -> None:
    body = {"query": "w0", "documents": ["w1 " * 20, "w2 " * 11], "truncate": True}
    async with exchange("rerank", ("LABEL_0",)) as server:
        answer, items = await server.answer(body, ROWS[:2])
    assert [len(ids) for ids, _ in items] == [16, 15]
    assert answer.json()["usage"]["truncated"] == [0]


def test_equal_scores_keep_the_order_of_the_documents() -> None:
    results = np.array([[0.1, 0.5], [0.9, 0.7], [0.4, 0.5]], dtype=np.float32)
    assert list(ranked(results, raw_scores=False, top_k=None)) == [(1, 0.7), (0, 0.5), (2, 0.5)]
    assert list(ranked(results, raw_scores=True, top_k=2)) == [(1, 0.9), (2, 0.4)]


# --- classify


async def test_pairs_are_classified(exchange: Any) -> None:
    body = {"inputs": [{"text": "w0 w1", "text_pair": "w2"}, {"text": "w3", "text_pair": "w4"}]}
    async with exchange("classify", ("no", "yes")) as server:
        answer, items = await server.answer(body, [[0.25, 0.75], [0.5, 0.5]])
    assert answer.json()["predictions"][0] == [{"label": "yes", "score": 0.75}, {"label": "no", "score": 0.25}]
    assert items == [([2, 4, 5, 3, 6, 3], [0, 0, 0, 0, 1, 1]), ([2, 7, 3, 8, 3], [0, 0, 0, 1, 1])]


async def test_one_pair_needs_no_list(exchange: Any) -> None:
    async with exchange("classify", ("no", "yes")) as server:
        answer, items = await server.answer({"inputs": {"text": "w0", "text_pair": "w1"}}, [[0.25, 0.75]])
    assert len(answer.json()["predictions"]) == 1
    assert items == [([2, 4, 3, 5, 3], [0, 0, 0, 1, 1])]


async def test_ids_with_types_are_computed_as_they_are(exchange: Any) -> None:
    body = {"inputs": [{"input_ids": [2, 4, 3], "token_type_ids": [0, 1, 1]}, {"input_ids": [2, 5]}]}
    async with exchange("classify", ("no", "yes")) as server:
        answer, items = await server.answer(body, [[0.25, 0.75], [0.5, 0.5]])
    assert answer.status_code == 200
    assert items == [([2, 4, 3], [0, 1, 1]), ([2, 5], [0, 0])]


@pytest.mark.parametrize(
    ("inputs", "code", "words"),
    [
        ([{"text": "w1", "text_pair": ""}], "empty_input", "'inputs.text_pair' is an empty string"),
        ([{"text": "w1"}, {"text": "w2 " * 20, "text_pair": "w1"}], "too_long", "'inputs[1]' has 24 tokens"),
        ([{"text": "w1", "text_pair": "w2"}, "w3"], "invalid_type", "mixes objects with texts"),
        ([{"text_pair": "w2"}], "invalid_type", "must have 'text' and optionally 'text_pair'"),
        ([{}], "invalid_type", "has an invalid object"),
        ([{"text": "w1", "input_ids": [5]}], "invalid_type", "has an invalid object"),
        ([{"text": "w1"}, {"input_ids": [5]}], "invalid_type", "mixes texts with token ids"),
        ([{"text": "w1", "attention_mask": [1]}], "invalid_type", "unknown field"),
        ([{"input_ids": [5, 6], "token_type_ids": [0]}], "invalid_token_types", "has 1 entries for 2 token ids"),
        ([{"input_ids": [5, 6], "token_type_ids": [0, 2]}], "invalid_token_types", "must be from 0 to 1"),
        ([{"input_ids": [5, 6], "token_type_ids": [0, -1]}], "invalid_token_types", "must be from 0 to 1"),
        ([{"input_ids": []}], "empty_input", "empty list of token ids"),
    ],
)
async def test_objects_that_are_no_pairs_are_refused(exchange: Any, inputs: Any, code: str, words: str) -> None:
    async with exchange("classify", ("no", "yes")) as server:
        answer = await server.post({"inputs": inputs})
    error = answer.json()["error"]
    assert (answer.status_code, error["code"]) == (400, code), error
    assert words in error["message"]


async def test_ids_with_types_are_refused_by_default(exchange: Any) -> None:
    async with exchange("classify", ("no", "yes"), token_ids="refuse") as server:
        answer = await server.post({"inputs": [{"input_ids": [5, 6]}]})
    assert answer.json()["error"]["code"] == "token_ids_refused"


@pytest.mark.parametrize(
    ("inputs", "status", "words"),
    [
        ([{"text": "w1" * 10}] * 3000, 413, "'inputs' has 3000 inputs, the limit is 2048"),
        ([{"text": "w1", "text_pair": "w2"}] * 3000, 413, "'inputs' has more than 2048 inputs, the limit is 2048"),
        ([{"text": "w1", "text_pair": "w2"}] * 9000, 413, "'inputs' has more than 2048 inputs"),
        ([{"text": "w" * 70_000, "other": 1}], 400, "unknown field `other`"),
        ([{"text": "w1", "text_pair": "w2"}] * 1999 + [{}] * 4000, 400, "missing required field `text` - at `$[1999]`"),
        ([{}] * 40_000, 400, "missing required field `text` - at `$[0]`"),
        ([{"input_ids": [5] * 10, "token_type_ids": [0] * 10}] * 2000 + [{"text": "w1"}], 400, "unknown field `text`"),
        ([{"input_ids": [5] * 40_000}], 400, "has 40000 tokens"),
        ([{"text": "w1 " * 30_000, "text_pair": "w2"}], 400, "has 90000 characters; the limit is"),
    ],
)
async def test_large_bodies_of_objects_are_refused_like_small_ones(
    exchange: Any, inputs: Any, status: int, words: str
) -> None:
    async with exchange("classify", ("no", "yes"), text_characters=80_000) as server:
        answer = await server.post({"inputs": inputs})
    assert answer.status_code == status, answer.json()
    assert words in answer.json()["error"]["message"]


def test_large_bodies_of_objects_are_decoded_like_small_ones() -> None:
    decoder = LargeBodyDecoder(ClassifyRequest, "inputs", 10)
    pairs = [{"text": 'a "text" {', "text_pair": "}, {"}, {"text": "input_ids", "text_pair": "text"}]
    ids = [{"input_ids": [5, 6], "token_type_ids": [0, 1]}, {"input_ids": [7]}]
    for inputs in (pairs, ids, pairs * 5, ids * 5):
        body = json.dumps({"inputs": inputs}).encode()
        found, _ = decoder.decode(body)
        assert found == msgspec.json.decode(body, type=ClassifyRequest)


async def test_other_tasks_take_no_pairs(exchange: Any) -> None:
    for task, labels in (("embed", ()), ("tag", ("O",))):
        async with exchange(task, labels) as server:
            answer = await server.post({"inputs": [{"text": "w1", "text_pair": "w2"}]})
            assert (answer.status_code, answer.json()["error"]["code"]) == (400, "invalid_type")


# --- zero-shot


ZERO_SHOT = {"inputs": ["w0", "w1 w2"], "candidate_labels": ["w3", "w4"], "hypothesis_template": "w9 {}."}


async def test_labels_of_the_request_are_scored_for_each_text(exchange: Any) -> None:
    rows = [[0.0, 1.0, 0.0], [0.0, 3.0, 0.0], [1.0, 0.0, 0.0], [0.0, 0.0, 2.0]]
    async with exchange("zero-shot", NLI, entailment=1) as server:
        answer, items = await server.answer(ZERO_SHOT, rows)
    assert items[0] == ([2, 4, 3, 13, 7, 1, 3], [0, 0, 0, 1, 1, 1, 1])
    found = answer.json()["predictions"]
    assert [[entry["label"] for entry in entries] for entries in found] == [["w4", "w3"], ["w4", "w3"]]
    assert found[0][0]["score"] == pytest.approx(1 / (1 + np.exp(-2)), rel=1e-6)
    assert found[1][0]["score"] == pytest.approx(0.5, rel=1e-6)


async def test_labels_are_scored_independently_on_request(exchange: Any) -> None:
    rows = [[0.0, 1.0, 5.0], [2.0, 1.0, 5.0]]
    body = {**ZERO_SHOT, "inputs": "w0", "multi_label": True}
    async with exchange("zero-shot", NLI, entailment=1) as server:
        answer, _ = await server.answer(body, rows)
    (found,) = answer.json()["predictions"]
    assert [entry["label"] for entry in found] == ["w3", "w4"]
    assert [entry["score"] for entry in found] == pytest.approx([1 / (1 + np.exp(-1)), 1 / (1 + np.exp(1))], rel=1e-6)


async def test_the_text_is_truncated_and_reported_once(exchange: Any) -> None:
    body = {**ZERO_SHOT, "inputs": ["w1 " * 30, "w0 " * 9], "truncate": True}
    async with exchange("zero-shot", NLI, entailment=1) as server:
        answer, items = await server.answer(body, [[0.0, 1.0, 0.0]] * 4)
    assert items[0][0] == [2, *[5] * 10, 3, 13, 7, 1, 3]
    assert answer.json()["usage"]["truncated"] == [0]


@pytest.mark.parametrize(
    ("changes", "code", "words"),
    [
        ({"candidate_labels": []}, "empty_input", "'candidate_labels' has no labels"),
        ({"candidate_labels": " , "}, "empty_input", "'candidate_labels' has no labels"),
        ({"inputs": []}, "empty_input", "'inputs' is an empty list"),
        ({"inputs": ["w1", ""]}, "empty_input", "'inputs[1]' is an empty string"),
        ({"hypothesis_template": "w1"}, "invalid_template", "it has no place for the label"),
        ({"hypothesis_template": "{} {}"}, "invalid_template", "it has the fields {}, {}"),
        ({"hypothesis_template": "{0.__class__}"}, "invalid_template", "it has the fields"),
        ({"hypothesis_template": "{:>1000000000}"}, "invalid_template", "format specifications"),
        ({"hypothesis_template": "{!r}"}, "invalid_template", "format specifications"),
        ({"hypothesis_template": "{"}, "invalid_template", "Single '{'"),
        ({"inputs": ["w1 " * 30]}, "too_long", "the pair of 'inputs[0]' and 'candidate_labels[0]' has 36 tokens"),
        ({"candidate_labels": ["w1 " * 30], "truncate": True}, "too_long", "'inputs[0]' is too short to be truncated"),
        ({"inputs": ["w1"] * 1000, "candidate_labels": ["w1"] * 3}, "too_many_inputs", "1000 × 3 labels = 3000"),
    ],
)
async def test_requests_for_zero_shot_that_make_no_sense_are_refused(
    exchange: Any, changes: Any, code: str, words: str
) -> None:
    async with exchange("zero-shot", NLI, entailment=1) as server:
        answer = await server.post({**ZERO_SHOT, **changes})
    error = answer.json()["error"]
    assert error["code"] == code, error
    assert words in error["message"]


def test_hypotheses_are_those_of_str_format() -> None:
    for template in ("This is {}.", "{0} or not {0}", "{{}} {}", "{}"):
        assert hypotheses(["a", "b c", "{}"], template) == [template.format(label) for label in ("a", "b c", "{}")]
    assert parse_labels("a, b c ,,d") == ["a", "b c", "d"]
    with pytest.raises(RequestError, match="'labels' has no labels"):
        parse_labels([], field="labels")


def test_large_logits_do_not_overflow() -> None:
    logits = np.array([[0.0, 1000.0], [0.0, 999.0]], dtype=np.float32)
    found = zero_shot_labels(logits, ["a", "b"], 1, multi_label=False)
    assert [entry.score for entry in found] == pytest.approx([1 / (1 + np.exp(-1)), 1 / (1 + np.exp(1))], rel=1e-6)
    assert [entry.score for entry in zero_shot_labels(logits, ["a", "b"], 1, multi_label=True)] == [1.0, 1.0]
    assert truncated_texts((0, 1, 5), 2) == (0, 2)
