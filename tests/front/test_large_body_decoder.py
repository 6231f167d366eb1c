"""Large bodies are decoded like small ones, and never block the event loop for long."""

from __future__ import annotations

import asyncio
import json
import time
import tracemalloc
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from launcher.errors import RequestError
from launcher.front.http.api.openai import EmbeddingsRequest
from launcher.front.http.api.predict.custom import CustomRequest
from launcher.front.http.body_decoder import BodyDecoder
from launcher.front.http.inputs import texts_or_token_ids
from launcher.front.http.large_body_decoder import CHUNK_BYTES, OTHER_FIELDS_BYTES, LargeBodyDecoder
from launcher.front.tokenizer import FrontTokenizer

LIMIT = 8
BODY_BYTES = 8 * 1024 * 1024
SMALL = BodyDecoder(EmbeddingsRequest)
LARGE = LargeBodyDecoder(EmbeddingsRequest, "input", LIMIT)

_id = st.integers(-(2**63), 2**63 - 1)
_text = st.text(st.sampled_from('a",[]{}\\\n 1é\u2028'), max_size=12)
_odd: st.SearchStrategy[Any] = (
    st.none() | st.booleans() | st.floats(allow_nan=False) | st.just({}) | st.lists(st.lists(_id, max_size=2))
)
_input = (
    _text
    | st.lists(_text, max_size=LIMIT + 2)
    | st.lists(_id, max_size=20)
    | st.lists(st.lists(_id, max_size=5), max_size=LIMIT + 2)
    | st.lists(_text | _id | st.lists(_id, max_size=2) | _odd, max_size=4)
    | _odd
)
_other = st.fixed_dictionaries(
    {}, optional={"truncate": st.booleans(), "dimensions": _id, "more": _odd, "model": _text}
)


def read(decoder: Any, body: bytes) -> tuple[Any, Any, Any, Sequence[str]] | RequestError:
    try:
        decoded, ignored = decoder.decode(body)
        texts, ids = texts_or_token_ids(decoded.input, "input", LIMIT)
    except RequestError as error:
        return error
    lists = None if ids is None else [np.asarray(one).tolist() for one in ids]
    return texts, lists, (decoded.truncate, decoded.dimensions, decoded.model), ignored


@settings(max_examples=400, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(_input, _other, st.sampled_from([None, 1]), st.booleans())
def test_large_bodies_are_decoded_like_small_ones(value: Any, other: Any, indent: Any, ascii_only: bool) -> None:
    body = json.dumps({"input": value, **other}, indent=indent, ensure_ascii=ascii_only).encode()
    small, large = read(SMALL, body), read(LARGE, body)
    if isinstance(small, RequestError):
        assert isinstance(large, RequestError)
        assert large.status in (400, 413)
        assert len(str(large)) < 500
    else:
        assert large == small


@settings(max_examples=200, deadline=None)
@given(st.text(st.sampled_from('{}[]":,\\1a input'), max_size=30))
def test_invalid_json_is_refused(text: str) -> None:
    for body in (text, f'{{"input": {text}}}', f'{{"input": [{text}]}}'):
        if isinstance(small := read(SMALL, body.encode()), RequestError):
            assert isinstance(read(LARGE, body.encode()), RequestError)
        else:
            assert read(LARGE, body.encode()) == small


def test_ids_of_several_chunks_stay_in_order() -> None:
    ids = list(range(CHUNK_BYTES))
    _, lists, *_ = read(LARGE, json.dumps({"input": [ids, [7], ids[::-1]]}).encode())  # type: ignore[misc]
    assert lists == [ids, [7], ids[::-1]]
    _, lists, *_ = read(LARGE, json.dumps({"input": ids}).encode())  # type: ignore[misc]
    assert lists == [ids]


def test_an_id_of_more_than_64_bits_is_refused() -> None:
    error = read(LARGE, b'{"input": [[1], [%d]]}' % 2**64)
    assert isinstance(error, RequestError)
    assert error.code == "token_out_of_range"


def full(entry: bytes) -> bytes:
    """As many of these entries as a body can have."""
    return b'{"input": [' + b",".join([entry] * ((BODY_BYTES - 20) // (len(entry) + 1))) + b"]}"


def unknown() -> bytes:
    return b'{"input": "w1"' + b"".join(b',"f%d":1' % number for number in range(700_000)) + b"}"


@pytest.mark.parametrize(
    ("body", "code"),
    [
        (lambda: full(b"[]"), "too_many_inputs"),
        (lambda: full(b"[5]"), "too_many_inputs"),
        (lambda: full(b'"x"'), "too_many_inputs"),
        (lambda: full(b'"\\\\"'), "too_many_inputs"),
        (lambda: full(b"{}"), "invalid_type"),
        (lambda: full(b"null"), "invalid_type"),
        (lambda: b'{"input": [[1],' + full(b"5")[11:], "invalid_type"),
        (lambda: b'{"input": ["w1",' + full(b"5")[11:], "invalid_type"),
        (unknown, "body_too_large"),
    ],
    ids=["empty lists", "lists", "texts", "backslashes", "objects", "nulls", "ids", "text and ids", "fields"],
)
def test_too_many_inputs_are_refused_before_they_are_decoded(body: Any, code: str) -> None:
    raw = body()
    seconds = []
    for _ in range(3):
        start = time.thread_time()
        error = read(LARGE, raw)
        seconds.append(time.thread_time() - start)
        assert isinstance(error, RequestError)
        assert error.code == code
    assert min(seconds) < 0.2  # building takes 0.4 to 1.9 s, refusing 0.02 to 0.05 s


def test_the_limit_of_other_fields_applies_only_if_some_are_unknown() -> None:
    known = b'{"input": "%b", "user": "%b"}' % (b"w" * 100_000, b"u" * 2 * OTHER_FIELDS_BYTES)
    assert not isinstance(read(LARGE, known), RequestError)
    error = read(LARGE, known.replace(b"user", b"other"))
    assert isinstance(error, RequestError)
    assert f"the limit is {OTHER_FIELDS_BYTES}" in str(error)


@pytest.mark.anyio
async def test_the_loop_is_not_blocked_while_millions_of_ids_are_decoded(model_info: Any) -> None:
    tokenizer = FrontTokenizer(model_info, text_characters=1_000)
    body = full(b"5")

    async def read_all() -> Any:
        decoded, _ = await tokenizer.in_thread(1, LARGE.decode, body)
        _, lists = texts_or_token_ids(decoded.input, "input", LIMIT)
        return await tokenizer.ids(lists or (), truncate=True)

    task = asyncio.ensure_future(read_all())
    turns = 0
    while not task.done():
        await asyncio.sleep(0.001)
        turns += 1
    found = task.result()
    assert (found.tokens, found.truncated) == (16, (0,))
    assert turns > 15  # a loop that was held would have had one or two
    tokenizer.close()


_item = _text | _id | st.none() | st.lists(_text | _id, max_size=2) | st.dictionaries(_text, _id, max_size=2)
RAW = LargeBodyDecoder(CustomRequest, "inputs", LIMIT)


@settings(max_examples=200, deadline=None)
@given(st.lists(_item, max_size=LIMIT), st.sampled_from([None, 1]))
def test_items_of_a_custom_class_stay_raw(items: list[Any], indent: Any) -> None:
    assume("Infinity" not in json.dumps(items))  # not JSON
    body = json.dumps({"inputs": items, "more": 1}, indent=indent).encode()
    decoded, ignored = RAW.decode(body)

    assert [json.loads(bytes(item)) for item in decoded.inputs] == items
    assert ignored == ["more"]


def test_items_beyond_the_limit_are_not_decoded() -> None:
    for count, refused in ((LIMIT, False), (LIMIT + 1, True), (1_000_000, True)):
        body = b'{"inputs":[%b]}' % b",".join([b"1"] * count)
        tracemalloc.start()
        try:
            if refused:
                with pytest.raises(RequestError, match=f"'inputs' has more than {LIMIT} inputs"):
                    RAW.decode(body)
            else:
                assert len(RAW.decode(body)[0].inputs) == count
            _, peak = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
        assert peak < 4 * len(body) + 100_000  # an object for each item would take ten times as much
    with pytest.raises(RequestError, match="'inputs' is invalid: Expected `array`"):
        RAW.decode(b'{"inputs": {"a": 1}}')


def test_many_unknown_fields_are_refused_for_a_custom_class() -> None:
    body = b'{"inputs":[1],%b}' % b",".join(b'"a%d":1' % index for index in range(20_000))
    with pytest.raises(RequestError, match="the fields other than 'inputs' have"):
        RAW.decode(body)
