"""Requests that would make more work than their bodies suggest: repeated texts, long lists, many results."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import msgspec
import numpy as np
import pytest

from launcher.core.protocol.messages import Done, Run
from launcher.core.protocol.model_info import ModelInfo
from launcher.core.protocol.task_settings import AnswerTokens, MaskTokens, SparsePooling, TokenVectors
from launcher.errors import RequestError
from launcher.front.http.api.predict import TASK_ROUTES
from launcher.front.http.api.predict.zero_shot import ZeroShotRequest
from launcher.front.http.large_body_decoder import OTHER_FIELDS_BYTES, LargeBodyDecoder
from launcher.front.request_results import make_results
from launcher.front.tasks.zero_shot import MAX_TEMPLATE_CHARACTERS, hypotheses
from launcher.front.tokenizer import MAX_REPEATED_CHARACTERS, FrontTokenizer
from launcher.options import FrontOptions

pytestmark = pytest.mark.anyio

SETTINGS: dict[str, dict[str, Any]] = {
    "embed": {},
    "zero-shot": {"labels": ("contradiction", "entailment"), "entailment": 1},
    "rerank": {"labels": ("LABEL_0",)},
    "question-answering": {"answers": AnswerTokens(2)},
    "fill-mask": {"masks": MaskTokens(63, 0)},
}


def model_for(model_info: ModelInfo, task: str) -> ModelInfo:
    return msgspec.structs.replace(model_info, task=task, **SETTINGS[task])


async def refusal(make_front: Any, make_client: Any, model: ModelInfo, body: dict[str, Any]) -> tuple[int, str, Any]:
    """Status, code and parameter of the response to a request that is refused before anything is computed."""
    front = make_front(model_info=model, queue_items=3000)
    await front.ready()
    async with make_client(front.services(model, FrontOptions())) as client:
        response = await client.post("/predict", content=json.dumps(body))
    error = response.json()["error"]
    return response.status_code, error["code"], error["param"]


LONG = "w1 " * 2000


@pytest.mark.parametrize(
    ("task", "body", "param"),
    [
        ("embed", {"inputs": ["w1"] * 2000, "prompt": LONG}, "inputs"),
        ("rerank", {"query": LONG, "documents": ["w1"] * 2000, "truncate": True}, "documents"),
        ("zero-shot", {"inputs": LONG, "candidate_labels": ["w1"] * 2000, "truncate": True}, "inputs"),
        (
            "zero-shot",
            {"inputs": "w1", "candidate_labels": ["w1" * 50] * 100, "hypothesis_template": "{0}" * 3000},
            "hypothesis_template",
        ),
    ],
)
async def test_texts_that_are_repeated_for_each_input_are_limited_together(
    make_front: Any, make_client: Any, model_info: ModelInfo, task: str, body: dict[str, Any], param: str
) -> None:
    found = await refusal(make_front, make_client, model_for(model_info, task), body)
    assert found == (413, "too_many_characters", param)


async def test_a_limit_of_characters_does_not_concern_texts_that_are_not_repeated(model_info: ModelInfo) -> None:
    tokenizer = FrontTokenizer(model_info, text_characters=MAX_REPEATED_CHARACTERS * 2)
    text = "w1 " + " " * MAX_REPEATED_CHARACTERS
    assert (await tokenizer.texts([text])).tokens == 3
    tokenizer.close()


async def test_a_long_prompt_is_counted_in_a_thread(model_info: ModelInfo) -> None:
    model = msgspec.structs.replace(model_info, include_prompt=False, max_length=8000)
    tokenizer = FrontTokenizer(model, text_characters=1_000_000)
    threads: list[int] = []
    in_thread = tokenizer.in_thread

    def recorded(inputs: int, *work: Any) -> Any:
        threads.append(inputs)
        return in_thread(inputs, *work)

    tokenizer.in_thread = recorded  # type: ignore[method-assign]
    for prompt, calls in (("w1 ", 0), ("w1 " * 3000, 2)):
        threads.clear()
        tokenized = await tokenizer.texts(["w2"], prompt=prompt)
        assert tokenized.details is not None
        assert tokenized.details.prompt_lengths == (1 + len(prompt) // 3,)
        assert len(threads) == calls
    tokenizer.close()


def test_the_length_of_a_template_is_limited() -> None:
    with pytest.raises(RequestError, match="the limit is 10000"):
        hypotheses(["a"], "{}" + "{{" * MAX_TEMPLATE_CHARACTERS)


@pytest.mark.parametrize("labels", [["a"] * 20_000, ",".join(["a"] * 40_000)])
def test_large_bodies_have_a_limited_number_of_labels(labels: Any) -> None:
    decoder = LargeBodyDecoder(ZeroShotRequest, "inputs", 8)
    body = json.dumps({"inputs": "w1", "candidate_labels": labels}).encode()
    with pytest.raises(RequestError, match=rf"'candidate_labels' has \d+ bytes, the limit is {OTHER_FIELDS_BYTES}"):
        decoder.decode(body)


def test_labels_of_large_bodies_are_decoded() -> None:
    decoder = LargeBodyDecoder(ZeroShotRequest, "inputs", 8)
    text = "w" * 100_000
    body, ignored = decoder.decode(json.dumps({"inputs": [text], "candidate_labels": ["a", "b"]}).encode())
    assert (body, ignored) == (ZeroShotRequest([text], ["a", "b"]), ())
    with pytest.raises(RequestError) as caught:
        decoder.decode(json.dumps({"inputs": [text], "candidate_labels": ["a", 1]}).encode())
    assert (caught.value.code, caught.value.param) == ("invalid_type", "candidate_labels")


async def test_large_bodies_have_a_limited_number_of_questions(
    make_front: Any, make_client: Any, model_info: ModelInfo
) -> None:
    body = {"inputs": [{"question": "w1", "context": "w2"}] * 5000}
    found = await refusal(make_front, make_client, model_for(model_info, "question-answering"), body)
    assert found == (413, "too_many_inputs", "inputs")


async def test_masks_of_long_texts_are_limited_by_the_tokens_of_the_results(
    make_front: Any, make_client: Any, model_info: ModelInfo
) -> None:
    model = msgspec.structs.replace(model_for(model_info, "fill-mask"), max_length=8192)
    body = {"inputs": "w1 " * 5000 + "w59 " * 100, "top_k": 5}
    assert await refusal(make_front, make_client, model, body) == (413, "too_many_results", "inputs")


def test_results_beyond_the_limit_are_counted_and_not_kept() -> None:
    results = make_results("varying", [3, 3, 3], 2, 4)
    rows = np.ones((3, 2), dtype=np.float32)
    for index in (1, 0, 2):
        results.put(index, rows)
    values, counts = results.outcome()
    assert counts == (3, 3, 3)
    assert values.shape == (0, 2)


TYPED = {"token_types": 2, "sends_token_types": True, "prompts": {"query": "w2 "}}
WRONG: list[Any] = [
    None, True, 0, -1, 1.5, 2**70, "", " ", [], [[]], [[[]]], {}, [{}], [None], [True], [1.5], [1, "a"], ["a", 1],
    ["a", None], [["a"]], ["a", ["b"]], [["a", "b"], ["c"]], [1, 2], [[1], [2]], [[1], 2], [2**70], [[-1]],
    {"text": "a"}, {"text": None}, [{"text": "a", "text_pair": None}], [{"text_pair": "a"}], [{"text": "a"}, "b"],
    [{"input_ids": []}], [{"input_ids": [1], "token_type_ids": [9]}], [{"input_ids": [1], "token_type_ids": []}],
    [{"input_ids": [1]}, {"text": "a"}], {"question": "a"}, {"question": "a", "context": ""}, ["a", {"question": "a"}],
    {"question": None, "context": 1}, "\0", "w1 " * 40, ["w1", ""], "x" * 200_000, ["x"] * 3000, [[4]] * 3000,
    [{"text": "a"}] * 3000, [4] * 100_000,
]  # fmt: skip
OTHERS: dict[str, Any] = {
    "truncate": ["no", 1, None], "top_k": [0, -1, 10**30, "1", 1.5], "candidate_labels": WRONG,
    "hypothesis_template": ["", "a", "{", "{1}", "{a}", "{:9}", None, 5], "prompt": [1, []], "prompt_name": ["none", 1],
    "aggregation": ["all", 1], "targets": ["a", []], "max_answer_len": [0, 10**9], "query": ["", None, 1, []],
    "documents": WRONG, "inputs": WRONG, "multi_label": ["yes"], "raw_scores": [2], "return_documents": [None],
    "handle_impossible_answer": ["maybe"],
}  # fmt: skip
MODELS: dict[str, dict[str, Any]] = {
    "sparse-embed": {"sparse": SparsePooling()}, "token-embed": {"token_vectors": TokenVectors(8, "", True)},
    "classify": {"labels": ("no", "yes")}, "tag": {"labels": ("O", "B-A")}, **SETTINGS,
}  # fmt: skip


async def answer_zeros(worker: Any, model: ModelInfo) -> None:
    """Answer every batch with zeros, or with no rows if their number varies."""
    while True:
        run, _ = await worker.receive()
        if not isinstance(run, Run):
            return
        items, tokens, width = len(run.lengths), sum(run.lengths), model.result_width
        rows = {"item": items, "token": tokens, "varying": 0}[model.rows]
        counts = (0,) * items if model.rows == "varying" else ()
        await worker.send(Done(run.batch, items, width, 0.0001, tokens, counts), bytes(4 * rows * width))


@pytest.mark.parametrize("token_ids", ["refuse", "accept"])
@pytest.mark.parametrize("task", sorted(MODELS))
async def test_no_wrong_body_is_an_internal_error(
    make_front: Any, make_client: Any, model_info: ModelInfo, task: str, token_ids: Any
) -> None:
    model = msgspec.structs.replace(model_info, task=task, **TYPED, **MODELS[task])
    front = make_front(model_info=model)
    example = dict(TASK_ROUTES[task].example)  # type: ignore[index]
    raw = [
        b"",
        b"{",
        b"null",
        b"[]",
        b'{"inputs": NaN}',
        b'{"inputs": "\\ud800"}',
        b'{"inputs": "\xff"}',
        b"[" * 10_000,
    ]
    bodies = raw + [
        json.dumps({**example, name: value}).encode()
        for name, values in OTHERS.items()
        if name in TASK_ROUTES[task].request.__struct_fields__  # type: ignore[index]
        for value in values
    ]
    assert len(bodies) > 40
    serving = asyncio.ensure_future(answer_zeros(await front.ready(), model))
    async with make_client(front.services(model, FrontOptions(token_ids=token_ids))) as client:
        for body in bodies:
            response = await client.post("/predict", content=body)
            assert response.status_code in (200, 400, 413), (body[:200], response.text)
            assert ("error" in response.json()) == (response.status_code != 200), body[:200]
    serving.cancel()
