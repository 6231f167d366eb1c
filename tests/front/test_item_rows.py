"""Results with several rows for an item: sparse vectors, token vectors and filled masks, from workers to responses."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import AsyncIterator, Callable
from typing import Any

import msgspec
import numpy as np
import pytest

from launcher.core.protocol.messages import Done, Run
from launcher.core.protocol.model_info import ModelInfo
from launcher.core.protocol.task_settings import MaskTokens, SparsePooling, TokenVectors
from launcher.front.request_results import make_results, split_rows
from launcher.options import FrontOptions

pytestmark = pytest.mark.anyio

MASK = 63  # the id of w59 in the tokenizer of these tests


def weights_of(ids: Any) -> np.ndarray:
    """(token id, weight) of each distinct word of an item, without those of w0 (id 4): it may have no row at all."""
    words = np.unique([id for id in np.asarray(ids).tolist() if id > 4])
    return np.stack([words, 0.5 + words / 8], axis=1).astype(np.float32).reshape(-1, 2)


@pytest.fixture
def sparse(model_info: ModelInfo) -> ModelInfo:
    return msgspec.structs.replace(model_info, task="sparse-embed", sparse=SparsePooling())


async def serve(worker: Any, rows_of: Callable[[Any], np.ndarray], width: int) -> None:
    """Answer every batch with the rows of its items, longest item first."""
    while True:
        run, body = await worker.receive()
        if not isinstance(run, Run):
            return
        ids = np.frombuffer(body, dtype=np.int32)
        parts = [rows_of(item) for item in np.split(ids, np.cumsum(run.lengths)[:-1])]
        done = Done(run.batch, len(parts), width, 0.0001, len(ids), tuple(map(len, parts)))
        await worker.send(done, b"".join(part.tobytes() for part in parts))


@pytest.fixture
async def client(make_front: Any, make_client: Any, sparse: ModelInfo) -> AsyncIterator[Any]:
    front = make_front(2, model_info=sparse, batch_tokens=32)
    serving = [asyncio.ensure_future(serve(await front.ready(index), weights_of, 2)) for index in range(2)]
    async with make_client(front.services(sparse, FrontOptions(token_ids="accept"))) as client:
        yield client
    for task in serving:
        task.cancel()


def expected(text: str) -> list[dict[str, float]]:
    ids = sorted({int(word[1:]) + 4 for word in text.split()} - {4})
    return [{"index": id, "value": 0.5 + id / 8} for id in ids]


async def test_items_with_any_number_of_rows_come_back_in_order(client: Any) -> None:
    texts = [" ".join(f"w{(i * j) % 50}" for j in range(1 + i % 12)) for i in range(120)] + ["w0", "w0 w0"]
    answer = await client.post("/predict", json={"inputs": texts})
    assert answer.status_code == 200, answer.text
    assert answer.json()["task"] == "sparse-embed"
    assert answer.json()["predictions"] == [expected(text) for text in texts]
    assert answer.json()["predictions"][-1] == []


async def test_all_items_of_a_request_may_have_no_rows(client: Any) -> None:
    assert (await client.post("/predict", json={"inputs": "w0"})).json()["predictions"] == [[]]


async def test_the_dispatcher_returns_the_number_of_rows_of_each_item(make_front: Any, sparse: ModelInfo) -> None:
    front = make_front(model_info=sparse)
    serving = asyncio.ensure_future(serve(await front.ready(), weights_of, 2))
    items = [np.array(ids, dtype=np.int32) for ids in ([2, 4, 3], [2, 9, 8, 7, 3], [2, 6, 3])]
    outcome = await front.dispatcher.enqueue(items)
    serving.cancel()
    assert outcome.rows == (0, 3, 1)
    assert outcome.results[:, 0].tolist() == [7, 8, 9, 6]
    assert [part[:, 0].tolist() for part in split_rows(outcome.results, outcome.rows)] == [[], [7, 8, 9], [6]]


@pytest.mark.parametrize(
    ("rows", "body", "reason"),
    [
        ((), bytes(16), r"numbers of rows \(\) for 1 items"),
        ((1, 1), bytes(16), r"numbers of rows \(1, 1\) for 1 items"),
        ((-1,), b"", r"numbers of rows \(-1,\) for 1 items"),
        ((2,), bytes(8), "8 bytes of results instead of 16"),
        ((0,), bytes(8), "8 bytes of results instead of 0"),
    ],
)
async def test_a_worker_with_wrong_numbers_of_rows_is_lost(
    make_front: Any, sparse: ModelInfo, rows: tuple[int, ...], body: bytes, reason: str
) -> None:
    front = make_front(model_info=sparse)
    worker = await front.ready()
    waiting = front.dispatcher.enqueue([np.array([2, 5, 3], dtype=np.int32)])
    run, _ = await worker.expect(Run)
    await worker.send(Done(run.batch, 1, 2, 0.001, 3, rows), body)
    lost = await front.listener.wait("lost", 0)
    assert re.search(reason, lost), lost
    waiting.cancel()


async def test_a_model_with_one_row_per_item_must_not_send_numbers_of_rows(make_front: Any) -> None:
    front = make_front()
    worker = await front.ready()
    waiting = front.dispatcher.enqueue([np.array([2, 5, 3], dtype=np.int32)])
    run, _ = await worker.expect(Run)
    await worker.send(Done(run.batch, 1, 8, 0.001, 3, (1,)), bytes(32))
    assert "numbers of rows (1,) for 1 items" in await front.listener.wait("lost", 0)
    waiting.cancel()


def test_results_are_collected_in_any_order() -> None:
    results = make_results("varying", [3, 4, 5], 2)
    results.put(2, np.full((1, 2), 3, dtype=np.float32))
    results.put(0, np.full((2, 2), 1, dtype=np.float32))
    values, rows = results.outcome()
    assert rows == (2, 0, 1)
    assert values[:, 0].tolist() == [1, 1, 3]
    assert [len(part) for part in split_rows(values, rows)] == [2, 0, 1]


async def test_results_beyond_the_limit_are_refused(make_front: Any, make_client: Any, sparse: ModelInfo) -> None:
    front = make_front(model_info=sparse)
    serving = asyncio.ensure_future(serve(await front.ready(), weights_of, 2))
    async with make_client(front.services(sparse, FrontOptions(result_bytes=8 * 3))) as client:
        assert (await client.post("/predict", json={"inputs": "w1 w2 w3"})).status_code == 200
        answer = await client.post("/predict", json={"inputs": ["w1 w2", "w3 w4"]})
    serving.cancel()
    assert answer.status_code == 413
    assert answer.json()["error"]["code"] == "too_many_results"


async def test_a_sparse_embedder_has_no_route_for_dense_embeddings(client: Any) -> None:
    answer = await client.post("/v1/embeddings", json={"input": "w1"})
    assert answer.json()["error"]["code"] == "wrong_task"
    assert "is for the task 'sparse-embed' and has no embeddings" in answer.json()["error"]["message"]


# --- token vectors


def vectors_of(ids: Any) -> np.ndarray:
    return np.stack([np.asarray(ids) + step / 4 for step in range(8)], axis=1).astype(np.float32)


@pytest.mark.parametrize("skip_first", [False, True])
async def test_token_vectors_have_a_row_for_each_token(
    make_front: Any, make_client: Any, model_info: ModelInfo, skip_first: bool
) -> None:
    tokens = msgspec.structs.replace(model_info, task="token-embed", token_vectors=TokenVectors(8, "", skip_first))
    front = make_front(model_info=tokens)
    worker = await front.ready()

    async def answer() -> None:
        while True:
            run, body = await worker.receive()
            ids = np.frombuffer(body, dtype=np.int32)
            await worker.send(Done(run.batch, len(run.lengths), 8, 0.0001, len(ids)), vectors_of(ids).tobytes())

    serving = asyncio.ensure_future(answer())
    async with make_client(front.services(tokens, FrontOptions(result_bytes=4 * 8 * 12))) as client:
        found = (await client.post("/predict", json={"inputs": ["w1 w2", "w3"]})).json()["predictions"]
        refused = await client.post("/predict", json={"inputs": ["w1 w2", "w3"] * 2})
    serving.cancel()
    ids = [[2, 5, 6, 3], [2, 7, 3]]
    assert found == [vectors_of(own[skip_first:]).tolist() for own in ids]
    assert refused.status_code == 413
    assert refused.json()["error"]["code"] == "too_many_tokens"


# --- masks


def fills_of(ids: Any) -> np.ndarray:
    """Seven tokens for each mask: the ids after that of the first word, with falling scores."""
    ids = np.asarray(ids)
    rows = [
        [place, 10 + (place + rank) % 40, 0.5 ** (rank + 1)]
        for place in np.flatnonzero(ids == MASK)
        for rank in range(7)
    ]
    return np.array(rows, dtype=np.float32).reshape(-1, 3)


@pytest.fixture
async def filling(make_front: Any, make_client: Any, model_info: ModelInfo) -> AsyncIterator[Any]:
    masks = msgspec.structs.replace(model_info, task="fill-mask", masks=MaskTokens(MASK, 0))
    front = make_front(model_info=masks)
    serving = asyncio.ensure_future(serve(await front.ready(), fills_of, 3))
    async with make_client(front.services(masks, FrontOptions(token_ids="accept"))) as client:
        yield client
    serving.cancel()


async def test_each_mask_token_has_its_best_tokens(filling: Any) -> None:
    answer = (await filling.post("/predict", json={"inputs": ["w1 w59", "w59 w2 w59"], "top_k": 2})).json()
    first, second = answer["predictions"]
    assert [[one["token"] for one in mask] for mask in first] == [[12, 13]]
    assert [[one["token"] for one in mask] for mask in second] == [[11, 12], [13, 14]]
    assert first[0][0] == {"score": 0.5, "token": 12, "token_str": "w8", "sequence": "[CLS] w1 w8 [SEP]"}
    assert "w59" in second[0][0]["sequence"]  # the other mask stays


async def test_five_tokens_are_the_default(filling: Any) -> None:
    answer = (await filling.post("/predict", json={"inputs": "w59"})).json()
    assert [len(mask) for mask in answer["predictions"][0]] == [5]


@pytest.mark.parametrize(
    ("body", "status", "code"),
    [
        ({"inputs": "w1"}, 400, "no_mask"),
        ({"inputs": ["w59", "w1"]}, 400, "no_mask"),
        ({"inputs": [[5, 6]]}, 400, "no_mask"),
        ({"inputs": "w59", "top_k": 0}, 400, "invalid_type"),
        ({"inputs": "w59", "top_k": 101}, 400, "invalid_type"),
        ({"inputs": "w59", "targets": ["w1"]}, 400, "unsupported"),
        ({"inputs": ["w59 w59"] * 30, "top_k": 100}, 413, "too_many_results"),
    ],
)
async def test_invalid_requests_to_fill_masks_are_refused(filling: Any, body: Any, status: int, code: str) -> None:
    answer = await filling.post("/predict", json=body)
    assert (answer.status_code, answer.json()["error"]["code"]) == (status, code), answer.text


async def test_the_openapi_document_has_the_types_of_each_task(client: Any, filling: Any) -> None:
    for some, name in ((client, "SparseEmbedRequest"), (filling, "FillMaskRequest")):
        document = (await some.get("/openapi.json")).json()
        assert name in json.dumps(document["paths"]["/predict"])
