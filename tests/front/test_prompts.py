"""Prompts: prepended to texts before they are tokenized, chosen by requests, left out of the pooling where asked."""

from __future__ import annotations

from typing import Any

import msgspec
import numpy as np
import pytest

from launcher.core.protocol.messages import Run
from launcher.core.protocol.model_info import ModelInfo
from launcher.errors import RequestError
from launcher.front.tokenizer import FrontTokenizer
from launcher.options import FrontOptions

pytestmark = pytest.mark.anyio

PROMPTS = {"query": "w1 w1 ", "passage": "w4 ", "none": ""}


@pytest.fixture
def prompted(model_info: ModelInfo) -> ModelInfo:
    return msgspec.structs.replace(model_info, prompts=PROMPTS, default_prompt=PROMPTS["query"])


# [CLS] is 2, [SEP] is 3, and w1 is 5.
@pytest.mark.parametrize(
    ("fields", "ids"),
    [
        ({}, [2, 5, 5, 6, 3]),
        ({"prompt_name": "passage"}, [2, 8, 6, 3]),
        ({"prompt_name": "none"}, [2, 6, 3]),
        ({"prompt": ""}, [2, 6, 3]),
        ({"prompt": "w3 "}, [2, 7, 6, 3]),
        ({"prompt": "w3 ", "prompt_name": "passage"}, [2, 7, 6, 3]),
        ({"prompt": None, "prompt_name": None}, [2, 5, 5, 6, 3]),
    ],
)
@pytest.mark.parametrize(("path", "field"), [("/predict", "inputs"), ("/v1/embeddings", "input")])
async def test_a_request_chooses_the_prompt(
    path: str, field: str, fields: Any, ids: list[int], make_front: Any, make_client: Any, prompted: Any, vector_of: Any
) -> None:
    front = make_front(model_info=prompted)
    await front.serving()
    async with make_client(front.services(prompted, FrontOptions())) as client:
        answer = await client.post(path, json={field: "w2", **fields})
    assert answer.status_code == 200
    body = answer.json()
    found = body["predictions"][0] if path == "/predict" else body["data"][0]["embedding"]
    np.testing.assert_array_equal(np.array(found, np.float32), vector_of(ids))
    assert body["usage"]["prompt_tokens"] == len(ids)


@pytest.mark.parametrize(("path", "field"), [("/predict", "inputs"), ("/v1/embeddings", "input")])
async def test_a_prompt_that_cannot_be_prepended_is_an_error_of_the_client(
    path: str, field: str, make_front: Any, make_client: Any, prompted: Any
) -> None:
    front = make_front(model_info=prompted)
    await front.serving()
    async with make_client(front.services(prompted, FrontOptions(token_ids="accept"))) as client:
        unknown = await client.post(path, json={field: "w2", "prompt_name": "corpus"})
        long = await client.post(path, json={field: "w2", "prompt": "w " * 6000})
        ids = await client.post(path, json={field: [5, 6], "prompt": "w1 "})
        assert (await client.post(path, json={field: [5, 6]})).json()["usage"]["prompt_tokens"] == 2
    assert (unknown.status_code, long.status_code, ids.status_code) == (400, 400, 400)
    error = unknown.json()["error"]
    assert (error["code"], error["param"]) == ("invalid_prompt", "prompt_name")
    assert "the prompts of this model are 'document', 'none', 'passage', 'query'" in error["message"]
    assert long.json()["error"]["param"] == "prompt"
    assert "to texts only" in ids.json()["error"]["message"]


async def test_a_large_body_can_choose_a_prompt(
    make_front: Any, make_client: Any, prompted: Any, vector_of: Any
) -> None:
    front = make_front(model_info=prompted)
    await front.serving()
    async with make_client(front.services(prompted, FrontOptions())) as client:
        body = {"inputs": ["w2"] * 20, "prompt_name": "passage", "filler": " " * 65_000}
        answer = await client.post("/predict", json=body)
    assert answer.status_code == 200
    np.testing.assert_array_equal(np.array(answer.json()["predictions"][-1], np.float32), vector_of([2, 8, 6, 3]))


async def test_the_length_of_a_prompt_that_pooling_ignores_goes_to_the_worker(
    make_front: Any, make_client: Any, prompted: Any
) -> None:
    front = make_front(model_info=prompted)
    worker = await front.ready()
    tokenizer = FrontTokenizer(msgspec.structs.replace(prompted, include_prompt=False), text_characters=1000)
    tokenized = await tokenizer.texts(["w2", "w3 w3"], prompt="w4 ")
    tokenizer.close()
    future = front.dispatcher.enqueue(tokenized.items, details=tokenized.details)
    run, body = await worker.expect(Run)
    await worker.answer(run, body)
    await future
    assert run.prompt_lengths == (2, 2)  # [CLS] and w4


@pytest.mark.parametrize(("prompt", "length"), [("w1 ", 2), ("w1 w2 w3 ", 4), ("w1 " * 50, 15)])
async def test_the_length_of_a_prompt_has_no_closing_special_token(
    prompt: str, length: int, model_info: ModelInfo
) -> None:
    ignoring = msgspec.structs.replace(model_info, include_prompt=False, max_length=16)
    tokenizer = FrontTokenizer(ignoring, text_characters=1000)
    tokenized = await tokenizer.texts(["w5"], prompt=prompt, truncate=True)
    plain = await tokenizer.texts(["w5"], prompt="")
    tokenizer.close()
    assert tokenized.details is not None
    assert list(tokenized.details.prompt_lengths) == [length]
    assert plain.details is None


async def test_texts_get_no_special_tokens_if_the_model_has_none(model_info: ModelInfo) -> None:
    tokenizer = FrontTokenizer(msgspec.structs.replace(model_info, special_tokens=False), text_characters=1000)
    tokenized = await tokenizer.texts(["w1 w2", "w3 " * 40], truncate=True)
    with pytest.raises(RequestError, match="has no tokens for this model"):
        await tokenizer.texts(["  "])
    tokenizer.close()
    assert tokenized.items[0].tolist() == [5, 6]
    assert set(tokenized.items[1].tolist()) == {7}
    assert tokenized.truncated == ((1,) if len(tokenized.items[1]) < 40 else ())
