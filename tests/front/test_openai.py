"""``POST /v1/embeddings`` and the list of models."""

from __future__ import annotations

import base64
from typing import Any

import numpy as np
import pytest

from launcher.options import FrontOptions

pytestmark = pytest.mark.anyio


@pytest.fixture
async def client(make_front: Any, make_client: Any, card: Any) -> Any:
    front = make_front()
    await front.serving()
    async with make_client(front.services(card, FrontOptions())) as client:
        yield client


async def test_a_string_gives_one_vector_in_exactly_the_shape_of_openai(client: Any, vector_of: Any) -> None:
    answer = await client.post("/v1/embeddings", json={"input": "w1 w2", "model": "words"})
    assert answer.status_code == 200
    assert answer.headers["content-type"] == "application/json"
    body = answer.json()
    vector = body["data"][0].pop("embedding")
    assert body == {
        "object": "list",
        "data": [{"object": "embedding", "index": 0}],
        "model": "words",
        "usage": {"prompt_tokens": 4, "total_tokens": 4},
    }
    np.testing.assert_array_equal(np.array(vector, dtype=np.float32), vector_of([2, 5, 6, 3]))


async def test_base64_is_the_little_endian_bytes_of_the_same_vectors(client: Any, vector_of: Any) -> None:
    answer = await client.post("/v1/embeddings", json={"input": ["w1", "w2"], "encoding_format": "base64"})
    vectors = [np.frombuffer(base64.b64decode(entry["embedding"]), dtype="<f4") for entry in answer.json()["data"]]
    np.testing.assert_array_equal(vectors, [vector_of([2, 5, 3]), vector_of([2, 6, 3])])
