"""``POST /v1/embeddings`` and the list of models."""

from __future__ import annotations

import base64
from typing import Any

import msgspec
import numpy as np
import pytest

from launcher.front.http.json_results import truncate_dimensions
from launcher.options import FrontOptions

pytestmark = pytest.mark.anyio


@pytest.fixture
async def client(make_front: Any, make_client: Any, model_info: Any) -> Any:
    front = make_front()
    await front.serving()
    async with make_client(front.services(model_info, FrontOptions(token_ids="accept"))) as client:
        yield client


def vectors(answer: Any) -> np.ndarray:
    return np.array([entry["embedding"] for entry in answer.json()["data"]], dtype=np.float32)


async def test_a_string_gives_one_vector_in_exactly_the_shape_of_openai(client: Any, vector_of: Any) -> None:
    answer = await client.post("/v1/embeddings", json={"input": "w1 w2", "model": "words"})
    assert answer.status_code == 200
    assert answer.headers["content-type"] == "application/json"
    assert not [name for name in answer.headers if name.startswith("x-")]
    body = answer.json()
    vector = body["data"][0].pop("embedding")
    assert body == {
        "object": "list",
        "data": [{"object": "embedding", "index": 0}],
        "model": "words",
        "usage": {"prompt_tokens": 4, "total_tokens": 4},
    }
    np.testing.assert_array_equal(np.array(vector, dtype=np.float32), vector_of([2, 5, 6, 3]))


async def test_a_list_gives_its_vectors_in_order(client: Any, vector_of: Any) -> None:
    texts = [" ".join(["w1"] * (1 + number % 9)) for number in range(100)]
    answer = await client.post("/v1/embeddings", json={"input": texts})
    assert [entry["index"] for entry in answer.json()["data"]] == list(range(100))
    expected = [vector_of([2, *[5] * (1 + number % 9), 3]) for number in range(100)]
    np.testing.assert_array_equal(vectors(answer), expected)


@pytest.mark.parametrize(
    ("given", "items"), [([7, 8, 9], [[7, 8, 9]]), ([[7], [8, 9]], [[7], [8, 9]])], ids=["one list", "list of lists"]
)
async def test_token_ids_are_used_as_they_are(given: Any, items: Any, client: Any, vector_of: Any) -> None:
    answer = await client.post("/v1/embeddings", json={"input": given, "model": "words"})
    np.testing.assert_array_equal(vectors(answer), [vector_of(item) for item in items])
    assert answer.json()["usage"]["prompt_tokens"] == sum(map(len, items))


async def test_base64_is_the_little_endian_bytes_of_the_same_vectors(client: Any, vector_of: Any) -> None:
    answer = await client.post("/v1/embeddings", json={"input": ["w1", "w2"], "encoding_format": "base64"})
    found = [np.frombuffer(base64.b64decode(entry["embedding"]), dtype="<f4") for entry in answer.json()["data"]]
    np.testing.assert_array_equal(found, [vector_of([2, 5, 3]), vector_of([2, 6, 3])])


@pytest.mark.parametrize("encoding", ["float", "base64"])
async def test_dimensions_keep_the_leading_values_and_the_length(encoding: str, client: Any, vector_of: Any) -> None:
    body = {"input": ["w1", "w2"], "dimensions": 3, "encoding_format": encoding}
    data = (await client.post("/v1/embeddings", json=body)).json()["data"]
    if encoding == "base64":
        found = [np.frombuffer(base64.b64decode(entry["embedding"]), dtype="<f4") for entry in data]
    else:
        found = [np.array(entry["embedding"], dtype=np.float32) for entry in data]
    for vector, whole in zip(found, [vector_of([2, 5, 3]), vector_of([2, 6, 3])], strict=True):
        np.testing.assert_allclose(vector, whole[:3] / np.linalg.norm(whole[:3]), rtol=1e-6)


async def test_all_dimensions_leave_the_vector_as_it_is(client: Any, vector_of: Any) -> None:
    answer = await client.post("/v1/embeddings", json={"input": "w1", "dimensions": 8})
    np.testing.assert_array_equal(vectors(answer), [vector_of([2, 5, 3])])


def test_truncating_dimensions_normalizes_only_on_request_and_never_divides_by_zero() -> None:
    given = np.array([[0, 0, 5], [3, 4, 0]], dtype=np.float32)
    np.testing.assert_array_equal(truncate_dimensions(given, 2, normalize=False), [[0, 0], [3, 4]])
    np.testing.assert_allclose(truncate_dimensions(given, 2, normalize=True), [[0, 0], [0.6, 0.8]], rtol=1e-6)
    assert truncate_dimensions(given, 2, normalize=True).dtype == np.float32


async def test_truncated_texts_are_reported(client: Any, vector_of: Any) -> None:
    long = " ".join(["w1"] * 40)
    answer = await client.post("/v1/embeddings", json={"input": ["w2", long], "truncate": True})
    assert answer.json()["usage"] == {"prompt_tokens": 19, "total_tokens": 19, "truncated": [1]}
    assert answer.headers["x-launcher-truncated-inputs"] == "1"
    np.testing.assert_array_equal(vectors(answer)[1], vector_of([2, *[5] * 14, 3]))


async def test_unknown_fields_are_ignored_and_named(client: Any) -> None:
    body = {"input": "w1", "user": "me", "input_type": "query", "dimension": 3}
    answer = await client.post("/v1/embeddings", json=body)
    assert answer.status_code == 200
    assert answer.headers["x-launcher-ignored-fields"] == "dimension, input_type"


async def test_names_that_are_invalid_in_a_header_are_not_repeated(client: Any) -> None:
    answer = await client.post("/v1/embeddings", json={"input": "w1", "a\r\nset-cookie: b": 1, "ü": 2})
    assert answer.status_code == 200
    assert answer.headers["x-launcher-ignored-fields"] == "?"
    assert "set-cookie" not in answer.headers


async def test_nulls_mean_the_defaults(client: Any) -> None:
    body = {"input": "w1", "model": None, "encoding_format": None, "dimensions": None, "user": None}
    assert (await client.post("/v1/embeddings", json=body)).status_code == 200


async def test_the_served_model_is_listed_under_the_name_that_requests_may_use(client: Any) -> None:
    (model,) = (await client.get("/v1/models")).json()["data"]
    assert (model["id"], model["object"]) == ("words", "model")
    assert (await client.get("/v1/models/words")).json() == model
    for name in ("words", "demo"):  # the name in the model info, and the value of --model
        assert (await client.post("/v1/embeddings", json={"input": "w1", "model": name})).status_code == 200


async def test_a_slash_at_the_end_of_a_path_changes_nothing(client: Any) -> None:
    assert (await client.post("/v1/embeddings/", json={"input": "w1"})).status_code == 200
    assert (await client.get("/v1/models/")).status_code == 200


async def test_a_classifier_has_no_embeddings(make_front: Any, make_client: Any, model_info: Any) -> None:
    classifier = msgspec.structs.replace(model_info, task="classify", labels=("bad", "good"))
    front = make_front(model_info=classifier)
    async with make_client(front.services(classifier, FrontOptions())) as client:
        answer = await client.post("/v1/embeddings", json={"input": "w1"})
    assert answer.status_code == 400
    assert answer.json()["error"]["code"] == "wrong_task"
    assert "/predict" in answer.json()["error"]["message"]
