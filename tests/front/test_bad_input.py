"""Whatever a client sends, it gets a clear error in the documented shape, and the server serves the next request."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from launcher.errors import RequestError
from launcher.front.http.api.openai import EmbeddingsRequest
from launcher.front.http.body_decoder import BodyDecoder
from launcher.front.http.inputs import texts_or_token_ids
from launcher.options import FrontOptions

pytestmark = pytest.mark.anyio
JSON = {"content-type": "application/json"}


@pytest.fixture
async def client(make_front: Any, make_client: Any, model_info: Any) -> Any:
    front = make_front()
    await front.serving()
    options = FrontOptions(body_bytes=20_000, request_items=50, text_characters=2_000, token_ids="accept")
    async with make_client(front.services(model_info, options)) as client:
        yield client
        # Whatever the test did, the server is unharmed.
        assert (await client.post("/v1/embeddings", json={"input": "w1"})).status_code == 200
        front.scheduler.check()


def error_of(answer: Any, status: int) -> dict[str, Any]:
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/json"
    body = answer.json()
    assert set(body) == {"error"}
    assert set(body["error"]) == {"message", "type", "param", "code"}
    assert body["error"]["message"]
    return dict(body["error"])


DEEP = b"[" * 5_000 + b"]" * 5_000
BODIES: dict[str, tuple[bytes, str, str]] = {
    "empty": (b"", "invalid_json", "empty"),
    "white space": (b"  \n", "invalid_json", "not valid JSON"),
    "half": (b'{"input": "w1"', "invalid_json", "not valid JSON"),
    "two": (b'{"input": "w1"} {"input": "w2"}', "invalid_json", "trailing"),
    "a list": (b'["w1"]', "invalid_type", "Expected `object`, got `array`"),
    "a form": (b"input=w1", "invalid_json", "not valid JSON"),
    "invalid UTF-8": (b'{"input": "w\xff1"}', "invalid_json", "not valid UTF-8"),
    "surrogate as bytes": (b'{"input": "\xed\xa0\x80"}', "invalid_json", "not valid UTF-8"),
    "half a surrogate pair": (b'{"input": "\\ud800"}', "invalid_json", "surrogate"),
    "half a surrogate pair in a text": (b'{"input": "w1 \\udc00 w2 w3 w4 w5"}', "invalid_json", "surrogate"),
    "NUL byte": (b'{"input": "w1\x00"}', "invalid_json", "invalid character"),
    "deep nesting in input": (b'{"input": ' + DEEP + b"}", "invalid_type", "Expected"),
    "deep nesting elsewhere": (b'{"input": "w1", "other": ' + DEEP + b"}", "invalid_json", "nested too deeply"),
    "NaN": (b'{"input": NaN}', "invalid_json", "not valid JSON"),
    "NaN as an id": (b'{"input": [NaN]}', "invalid_json", "not valid JSON"),
    "no input": (b'{"model": "words"}', "invalid_type", "missing required field `input`"),
    "null": (b'{"input": null}', "invalid_type", "got `null`"),
    "a number": (b'{"input": 5}', "invalid_type", "got `int`"),
    "an object": (b'{"input": {"text": "w1"}}', "invalid_type", "got `object`"),
    "floats": (b'{"input": [1.5]}', "invalid_type", "got `float`"),
    "booleans": (b'{"input": [true]}', "invalid_type", "got `bool`"),
    "mixed": (b'{"input": ["w1", 5]}', "invalid_type", "mixes texts with token ids (entry 1)"),
    "mixed lists": (b'{"input": [[5], "w1"]}', "invalid_type", "mixes lists of token ids with texts"),
    "texts in lists": (b'{"input": [["w1"]]}', "invalid_type", "Expected `int`, got `str`"),
    "empty list": (b'{"input": []}', "empty_input", "empty list"),
    "empty lists": (b'{"input": [[5], []]}', "empty_input", "'input[1]' is an empty list of token ids"),
    "empty string": (b'{"input": ""}', "empty_input", "'input' is an empty string"),
    "one empty string": (b'{"input": ["w1", ""]}', "empty_input", "'input[1]' is an empty string"),
    "id out of range": (b'{"input": [64]}', "token_out_of_range", "ids of this model are 0 to 63"),
    "negative id": (b'{"input": [-1]}', "token_out_of_range", "-1"),
    "huge id": (b'{"input": [' + b"9" * 300 + b"]}", "token_out_of_range", "digits"),
    "id over 64 bits": (b'{"input": [[18446744073709551616]]}', "token_out_of_range", "18446744073709551616"),
    "too long": (b'{"input": "' + b"w1 " * 30 + b'"}', "too_long", "32 tokens, but the model accepts at most 16"),
    "too many characters": (b'{"input": "' + b"w" * 3000 + b'", "truncate": true}', "too_long", "3000 characters"),
    "truncate is no bool": (b'{"input": "w1", "truncate": "yes"}', "invalid_type", "Expected `bool`"),
    "unknown encoding": (b'{"input": "w1", "encoding_format": "hex"}', "invalid_type", "hex"),
    "no dimensions": (b'{"input": "w1", "dimensions": 0}', "invalid_dimensions", "1 to 8"),
    "negative dimensions": (b'{"input": "w1", "dimensions": -3}', "invalid_dimensions", "-3"),
    "too many dimensions": (b'{"input": "w1", "dimensions": 9}', "invalid_dimensions", "'dimensions' is 9"),
    "huge dimensions": (b'{"input": "w1", "dimensions": 99999999999999999999}', "invalid_dimensions", "1 to 8"),
    "dimensions as bool": (b'{"input": "w1", "dimensions": true}', "invalid_type", "got `bool`"),
    "dimensions as float": (b'{"input": "w1", "dimensions": 2.5}', "invalid_type", "got `float`"),
    "dimensions as text": (b'{"input": "w1", "dimensions": "2"}', "invalid_type", "got `str`"),
}


@pytest.mark.parametrize(("body", "code", "message"), BODIES.values(), ids=BODIES.keys())
async def test_an_invalid_body_is_refused_with_400(body: bytes, code: str, message: str, client: Any) -> None:
    error = error_of(await client.post("/v1/embeddings", content=body, headers=JSON), 400)
    assert error["code"] == code
    assert message in error["message"]
    assert error["type"] == "invalid_request_error"


async def test_the_field_at_fault_is_named(client: Any) -> None:
    for body, param in (({"input": 5}, "input"), ({"input": "w1", "dimensions": 99}, "dimensions")):
        assert error_of(await client.post("/v1/embeddings", json=body), 400)["param"] == param


async def test_an_unknown_model_is_404_as_openai_clients_know_it(client: Any) -> None:
    error = error_of(await client.post("/v1/embeddings", json={"input": "w1", "model": "gpt-4"}), 404)
    assert (error["code"], error["param"]) == ("model_not_found", "model")
    assert "'words'" in error["message"]
    assert error_of(await client.get("/v1/models/gpt-4"), 404)["code"] == "model_not_found"


async def test_the_last_of_duplicate_keys_counts(client: Any) -> None:
    body = b'{"input": ["w1", "w2"], "input": "w3"}'
    answer = await client.post("/v1/embeddings", content=body, headers=JSON)
    assert len(answer.json()["data"]) == 1


async def test_more_inputs_than_the_limit_are_refused_with_413(client: Any) -> None:
    error = error_of(await client.post("/v1/embeddings", json={"input": ["w1"] * 51}), 413)
    assert error["code"] == "too_many_inputs"
    assert "has 51 inputs, the limit is 50 per request" in error["message"]
    answer = await client.post("/v1/embeddings", json={"input": ["w1"] * 50})
    assert answer.status_code == 200


async def test_a_body_announced_as_too_large_is_refused(client: Any) -> None:
    error = error_of(await client.post("/v1/embeddings", json={"input": "x" * 20_000}), 413)
    assert error["code"] == "body_too_large"
    assert "the limit is 20000" in error["message"]


async def test_a_body_without_a_length_is_counted_while_it_is_read(client: Any) -> None:
    sent = 0

    async def endless() -> AsyncIterator[bytes]:
        nonlocal sent
        while True:
            sent += 5_000
            yield b"x" * 5_000

    answer = await client.post("/v1/embeddings", content=endless(), headers=JSON)
    assert error_of(answer, 413)["code"] == "body_too_large"
    assert sent < 200_000_000


@pytest.mark.parametrize(
    "kind", ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data; boundary=x", ""]
)
async def test_another_content_type_is_refused(kind: str, client: Any) -> None:
    answer = await client.post("/v1/embeddings", content=b'{"input": "w1"}', headers={"content-type": kind})
    error = error_of(answer, 415)
    assert "send application/json" in error["message"]


@pytest.mark.parametrize("kind", ["application/json; charset=utf-8", "Application/JSON", None])
async def test_all_spellings_of_the_json_content_type_are_accepted(kind: str | None, client: Any) -> None:
    headers = {"content-type": kind} if kind else {}
    answer = await client.post("/v1/embeddings", content=b'{"input": "w1"}', headers=headers)
    assert answer.status_code == 200


@pytest.mark.parametrize("encoding", ["gzip", "br", "identity, gzip"])
async def test_an_encoded_body_is_refused_and_never_decompressed(encoding: str, client: Any) -> None:
    headers = {**JSON, "content-encoding": encoding}
    error = error_of(await client.post("/v1/embeddings", content=b"\x1f\x8b" + bytes(100), headers=headers), 415)
    assert error["code"] == "unsupported_encoding"


@pytest.mark.parametrize("method", ["GET", "PUT", "DELETE", "PATCH", "HEAD"])
async def test_a_wrong_method_is_405_and_says_which_are_right(method: str, client: Any) -> None:
    answer = await client.request(method, "/v1/embeddings")
    assert answer.status_code == 405
    assert answer.headers["allow"] == "OPTIONS, POST"
    if method != "HEAD":
        assert "it allows OPTIONS, POST" in error_of(answer, 405)["message"]


async def test_options_returns_the_allowed_methods_and_no_cors_headers(client: Any) -> None:
    headers = {"origin": "http://elsewhere", "access-control-request-method": "POST"}
    answer = await client.options("/v1/embeddings", headers=headers)
    assert (answer.status_code, answer.headers["allow"]) == (204, "OPTIONS, POST")
    assert not [name for name in answer.headers if name.startswith("access-control")]


@pytest.mark.parametrize(
    "path", ["/", "/v1", "/v1/embedding", "/v1/embeddings/more", "/v1/embeddings//", "/%00", "/..%2f"]
)
async def test_an_unknown_path_is_404(path: str, client: Any) -> None:
    assert error_of(await client.post(path, json={"input": "w1"}), 404)["code"] == "not_found"


_json = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=12), inner, max_size=4),
    max_leaves=12,
)
_fields = st.sampled_from(["input", "model", "encoding_format", "dimensions", "user", "truncate", "other"])
_bodies = st.dictionaries(_fields, _json, max_size=5).map(lambda value: json.dumps(value).encode()) | st.binary()


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(_bodies)
def test_any_body_is_either_decoded_or_refused(body: bytes) -> None:
    decoder = BodyDecoder(EmbeddingsRequest)
    refused = texts = ids = None
    try:
        decoded, _ = decoder.decode(body)
        texts, ids = texts_or_token_ids(decoded.input, "input", 10)
    except RequestError as error:
        refused = error
    assert [texts, ids, refused].count(None) == 2
    assert all(isinstance(text, str) for text in texts or ())
    assert all(type(entry) is int for entries in ids or () for entry in entries)
    if refused:
        assert refused.status in (400, 413)
        assert len(str(refused)) < 500
