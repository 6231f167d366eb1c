"""A family of routes is added by its description alone: it is served, documented, and has its own error shape."""

from __future__ import annotations

import contextlib
import re
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from msgspec import Struct
from starlette.requests import Request
from starlette.responses import PlainTextResponse

from launcher.errors import RequestError
from launcher.front.http.admin_access import AdminAccess, Administration
from launcher.front.http.api import FAMILIES
from launcher.front.http.app import create_app
from launcher.front.http.body_reader import BodyMemoryFull
from launcher.front.http.error_response import ErrorFormat
from launcher.front.http.inference_route import INFERENCE_ERRORS, InferenceHandler, InferenceRoute
from launcher.front.http.inputs import Inputs
from launcher.front.http.json_results import vector_json
from launcher.front.http.route import ApiFamily, ResponseSpec, Route
from launcher.options import FrontOptions

pytestmark = pytest.mark.anyio

DOCUMENT = (Path(__file__).parents[2] / "docs" / "http.md").read_text()
JSON = {"content-type": "application/json"}


# --- a small family, as text-embeddings-inference has it


class EmbedRequest(Struct, frozen=True):
    """Body of ``POST /embed``."""

    inputs: Inputs
    truncate: bool = False


class Embedding(Struct, frozen=True):
    """A type of the same name as one of OpenAI's."""

    values: list[float]


class TeiError(Struct, frozen=True):
    """An error."""

    error: str
    error_type: str


def _tei_error(error: RequestError) -> TeiError:
    return TeiError(str(error), {429: "overloaded", 503: "unhealthy"}.get(error.status, error.code))


def _tei_status(error: RequestError) -> int:
    return 422 if error.status == 400 else error.status


class EmbedHandler(InferenceHandler[EmbedRequest]):
    """Embeds the inputs."""

    inputs_field = "inputs"

    def inputs(self, body: EmbedRequest) -> tuple[Any, bool]:
        return body.inputs, body.truncate

    def encode_results(self, body: EmbedRequest, results: Any, first: int) -> list[bytes]:
        return [vector_json(row) for row in results]

    def envelope(self, body: EmbedRequest, tokenized: Any) -> tuple[bytes, bytes]:
        return b"[", b"]"


async def get_embed(request: Request) -> PlainTextResponse:
    if "fail" in request.query_params:
        raise ValueError("secret")
    raise RequestError("send POST", code="no_body")


def tei(services: Any) -> ApiFamily:
    return ApiFamily(
        "tei",
        errors=ErrorFormat(TeiError, _tei_error, _tei_status),
        prefixes=("/tei",),
        routes=(
            InferenceRoute(
                path="/embed",
                summary="Embeddings, compatible with another server",
                handler=EmbedHandler,
                request=EmbedRequest,
                example={"inputs": "What is a core?"},
                responses={200: ResponseSpec("One vector per input.", list[Embedding])},
                errors={422: "The body is invalid.", **{s: INFERENCE_ERRORS[s] for s in (413, 415, 429, 503, 504)}},
            ),
            Route(path="/embed", summary="Nothing", handler=get_embed, responses={}, errors={422: "Always."}),
            Route(path="/tei/{model}/x", summary="Nothing", handler=get_embed, responses={}, errors={422: "Always."}),
        ),
    )


OPTIONS = FrontOptions(body_bytes=1_000)


@pytest.fixture
async def front(make_front: Any) -> Any:
    return make_front(queue_items=4)


@pytest.fixture
async def client(front: Any, make_client: Any, model_info: Any) -> AsyncIterator[Any]:
    async with make_client(front.services(model_info, OPTIONS), (*FAMILIES, tei)) as client:
        yield client


def error_type_of(answer: Any, status: int) -> str:
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/json"
    body = answer.json()
    assert set(body) == {"error", "error_type"}
    assert body["error"]
    return str(body["error_type"])


async def test_it_is_served_in_addition_to_the_others(front: Any, client: Any, vector_of: Any) -> None:
    await front.serving()
    for path in ("/embed", "/embed/"):
        answer = await client.post(path, json={"inputs": ["w1", "w2"]})
        assert answer.status_code == 200
        found = np.array(answer.json(), dtype=np.float32)
        np.testing.assert_array_equal(found, [vector_of([2, 5, 3]), vector_of([2, 6, 3])])
    assert (await client.post("/v1/embeddings", json={"input": "w1"})).status_code == 200
    assert b'launcher_requests_total{route="/embed",status="200"} 2.0' in front.metrics.render()


async def test_it_is_documented_with_its_types(client: Any) -> None:
    document = (await client.get("/openapi.json")).json()
    operation, schemas = document["paths"]["/embed"]["post"], document["components"]["schemas"]

    def named(schema: Any) -> Any:
        return schemas[schema["$ref"].removeprefix("#/components/schemas/")]

    content = operation["requestBody"]["content"]["application/json"]
    assert set(named(content["schema"])["properties"]) == {"inputs", "truncate"}
    assert content["example"] == {"inputs": "What is a core?"}
    assert list(operation["responses"]) == ["200", "413", "415", "422", "429", "503", "504"]
    vectors = operation["responses"]["200"]["content"]["application/json"]["schema"]
    assert set(named(vectors["items"])["properties"]) == {"values"}
    openai = document["paths"]["/v1/embeddings"]["post"]["responses"]["200"]["content"]["application/json"]["schema"]
    vectors = named(openai)["properties"]["data"]
    assert set(named(vectors["items"])["properties"]) == {"object", "index", "embedding"}
    error = operation["responses"]["422"]["content"]["application/json"]["schema"]
    assert set(named(error)["properties"]) == {"error", "error_type"}
    assert set(document["paths"]["/embed"]) == {"get", "post"}
    (parameter,) = document["paths"]["/tei/{model}/x"]["get"]["parameters"]
    assert (parameter["name"], parameter["in"]) == ("model", "path")

    page = (await client.get("/docs")).text
    for shown in ("/embed", "EmbedRequest", "Embeddings, compatible with another server", "TeiError"):
        assert shown in page


async def test_errors_of_the_body_have_its_shape(front: Any, client: Any) -> None:
    await front.serving()
    assert error_type_of(await client.post("/embed", content=b"{", headers=JSON), 422) == "invalid_json"
    assert error_type_of(await client.post("/embed", json={"inputs": ""}), 422) == "empty_input"
    assert error_type_of(await client.post("/embed", content=b"x" * 1_001, headers=JSON), 413) == "body_too_large"
    answer = await client.post("/embed", content=b"x", headers={"content-type": "text/plain"})
    assert error_type_of(answer, 415) == "unsupported_content_type"
    answer = await client.post("/embed", json={"inputs": "w1"}, headers={"x-launcher-deadline-ms": "no"})
    assert error_type_of(answer, 422) == "invalid_deadline"
    assert b'launcher_requests_total{route="/embed",status="422"} 3.0' in front.metrics.render()


async def test_errors_of_the_scheduler_have_its_shape(front: Any, client: Any, until: Any) -> None:
    answer = await client.post("/embed", json={"inputs": "w1"})
    assert error_type_of(answer, 503) == "unhealthy"
    assert answer.headers["retry-after"] == "1"
    await front.ready()
    waiting = [
        front.dispatcher.enqueue([np.array([5], dtype=np.int32)], client="127.0.0.1") for _ in range(2)
    ]  # one runs, one is next
    answer = await client.post("/embed", json={"inputs": "w1"}, headers={"x-launcher-deadline-ms": "50"})
    assert error_type_of(answer, 504) == "deadline_exceeded"
    waiting.append(front.dispatcher.enqueue([np.array([5], dtype=np.int32)] * 2, client="127.0.0.1"))
    answer = await client.post("/embed", json={"inputs": "w1"})
    assert error_type_of(answer, 429) == "overloaded"
    assert int(answer.headers["retry-after"]) >= 1
    for future in waiting:
        future.cancel()
    await until(lambda: front.dispatcher.in_flight == 0)


async def test_bodies_of_all_families_share_one_memory(client: Any) -> None:
    app = client._transport.app
    memories = {id(app._inference[path]._body_memory) for path in ("/embed", "/predict", "/v1/embeddings")}
    assert len(memories) == 1
    memory = app._inference["/embed"]._body_memory
    with contextlib.suppress(BodyMemoryFull):
        while True:
            memory.hold("127.0.0.1", 10)
    held = memory.used
    assert held
    answer = await client.post("/embed", json={"inputs": "w1"})
    assert error_type_of(answer, 429) == "overloaded"
    assert memory.used == held


async def test_errors_of_routing_have_its_shape(client: Any) -> None:
    answer = await client.put("/embed")
    assert error_type_of(answer, 405) == "method_not_allowed"
    assert answer.headers["allow"] == "GET, HEAD, OPTIONS, POST"
    assert error_type_of(await client.get("/tei/unknown"), 404) == "not_found"
    assert error_type_of(await client.get("/embed"), 422) == "no_body"
    assert error_type_of(await client.get("/tei/words/x"), 422) == "no_body"


async def test_unexpected_failures_have_its_shape(front: Any, client: Any, monkeypatch: Any) -> None:
    answer = await client.get("/embed?fail=1")
    assert error_type_of(answer, 500) == "internal_error"
    assert "secret" not in answer.text
    await front.serving()
    monkeypatch.setattr(EmbedHandler, "envelope", None)
    assert error_type_of(await client.post("/embed", json={"inputs": "w1"}), 500) == "internal_error"


async def test_the_other_families_keep_their_shape(client: Any) -> None:
    for answer, status in (
        (await client.post("/v1/embeddings", content=b"{", headers=JSON), 400),
        (await client.post("/v1/embeddings", content=b"x" * 1_001, headers=JSON), 413),
        (await client.put("/v1/embeddings"), 405),
        (await client.get("/v1/models/other"), 404),
        (await client.get("/nowhere"), 404),
    ):
        assert answer.status_code == status
        assert set(answer.json()["error"]) == {"message", "type", "param", "code"}


async def test_two_families_cannot_have_the_same_route(make_front: Any, model_info: Any) -> None:
    services = make_front().services(model_info, OPTIONS)
    with pytest.raises(ValueError, match="POST /embed is described twice: by tei and by tei"):
        create_app(services, (tei, tei))


# --- the documentation


def described(families: Any, services: Any) -> set[str]:
    routes = [route for family in families for route in family(services).routes]
    return {f"{route.method} {re.sub(':path}', '}', route.path)}" for route in routes}


@pytest.mark.parametrize("task", ["embed", "tag"])
async def test_the_documentation_lists_every_route_and_no_other(
    task: str, make_front: Any, make_client: Any, model_info: Any
) -> None:
    served = msgspec.structs.replace(model_info, task=task, labels=("O", "X") if task == "tag" else ())
    services = make_front(model_info=served).services(served, FrontOptions())
    actions: Any = None  # no route is called
    services = replace(services, administration=Administration(actions, AdminAccess()))
    table = DOCUMENT.partition("## Routes")[2].partition("\n## ")[0]
    rows = [line.split("|")[1] for line in table.splitlines() if line.startswith("| `")]
    documented = {route for row in rows for route in re.findall(r"`((?:GET|POST) [^`]+)`", row)}
    assert documented == described(FAMILIES, services)
    async with make_client(services) as client:
        paths = (await client.get("/openapi.json")).json()["paths"]
    assert {f"{method.upper()} {path}" for path, methods in paths.items() for method in methods} == documented
