"""``POST /predict``: the task's own result."""

from __future__ import annotations

import asyncio
from typing import Any

import msgspec
import numpy as np
import pytest

from launcher.core.protocol.messages import Done, Run
from launcher.front.tasks.label_scores import ranked_labels
from launcher.options import FrontOptions

pytestmark = pytest.mark.anyio


async def test_an_embedder_gives_vectors(make_front: Any, make_client: Any, model_info: Any, vector_of: Any) -> None:
    front = make_front()
    await front.serving()
    async with make_client(front.services(model_info, FrontOptions())) as client:
        answer = await client.post("/predict", json={"inputs": ["w1", "w2 w2"]})
    body = answer.json()
    found = np.array(body.pop("predictions"), dtype=np.float32)
    np.testing.assert_array_equal(found, [vector_of([2, 5, 3]), vector_of([2, 6, 6, 3])])
    assert body == {"model": "words", "task": "embed", "usage": {"prompt_tokens": 7, "total_tokens": 7}}


async def test_a_classifier_gives_all_labels_best_first(make_front: Any, make_client: Any, model_info: Any) -> None:
    classifier = msgspec.structs.replace(model_info, task="classify", labels=("bad", "fair", "good"))
    front = make_front(model_info=classifier)
    worker = await front.ready()
    async with make_client(front.services(classifier, FrontOptions())) as client:
        request = asyncio.ensure_future(client.post("/predict", json={"inputs": ["w1", "w2"]}))
        run, _ = await worker.expect(Run)
        scores = np.array([[0.1, 0.2, 0.7], [0.25, 0.5, 0.25]], dtype=np.float32)
        await worker.send(Done(run.batch, 2, 3, 0.001, 6), scores.tobytes())
        answer = await request
    assert answer.json()["predictions"] == [
        [{"label": "good", "score": 0.7}, {"label": "fair", "score": 0.2}, {"label": "bad", "score": 0.1}],
        [{"label": "fair", "score": 0.5}, {"label": "bad", "score": 0.25}, {"label": "good", "score": 0.25}],
    ]
    assert answer.json()["task"] == "classify"


async def test_a_single_text_gives_a_list_of_one(make_front: Any, make_client: Any, model_info: Any) -> None:
    front = make_front()
    await front.serving()
    async with make_client(front.services(model_info, FrontOptions())) as client:
        answer = await client.post("/predict", json={"inputs": "w1"})
        assert len(answer.json()["predictions"]) == 1
        refused = await client.post("/predict", json={"inputs": ["w1", ""]})
    assert refused.status_code == 400
    assert refused.json()["error"]["param"] == "inputs"


def test_equal_scores_keep_the_order_of_the_labels() -> None:
    entries = ranked_labels(np.array([0.5, 0.1, 0.5], dtype=np.float32), ("a", "b", "c"))
    assert [(entry.label, entry.score) for entry in entries] == [("a", 0.5), ("c", 0.5), ("b", 0.1)]


@pytest.mark.parametrize(("path", "field"), [("/predict", "inputs"), ("/v1/embeddings", "input")])
@pytest.mark.parametrize(
    "ids", [[5, 6], [[5], [6, 7]], [100_256], [[5] * 16] * 2000], ids=["one", "lists", "tiktoken", "large body"]
)
async def test_token_ids_are_refused_by_default_with_both_ways_out(
    path: str, field: str, ids: Any, make_front: Any, make_client: Any, model_info: Any
) -> None:
    front = make_front()
    worker = await front.serving()
    async with make_client(front.services(model_info, FrontOptions())) as client:
        answer = await client.post(path, json={field: ids})
        assert (await client.post(path, json={field: "w1"})).status_code == 200
    error = answer.json()["error"]
    assert answer.status_code == 400
    assert (error["code"], error["param"]) == ("token_ids_refused", field)
    assert "--token-ids accept" in error["message"]
    assert "check_embedding_ctx_length=False" in error["message"]
    assert "--token-ids cl100k_base" in error["message"]
    assert worker.batches == [(3,)]
