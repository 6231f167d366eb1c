"""API keys and CORS: files of keys, which requests are accepted, and the shape of refusals."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from launcher.errors import UsageError
from launcher.front.http.api import FAMILIES
from launcher.front.http.authentication import ApiKeys, load_api_keys
from launcher.front.http.cors import check_origins
from launcher.front.http.route import ApiFamily, ResponseSpec, Route
from launcher.options import FrontOptions
from tests.front.test_api_families import tei

pytestmark = pytest.mark.anyio

TEXT = """\
# all clients
alice  sk-alice   # the notebook of Alice

sk-second
alice sk-alice-new
sk-a=b:c+/~#d
"""


@pytest.fixture
def keys(tmp_path: Path) -> ApiKeys:
    file = tmp_path / "keys"
    file.write_text(TEXT)
    return ApiKeys(file, "from-environment")


@pytest.mark.parametrize(
    ("key", "client"),
    [
        ("sk-alice", "key:alice"),
        ("sk-second", "key:2"),
        ("sk-alice-new", "key:alice"),
        ("sk-a=b:c+/~#d", "key:4"),
        ("from-environment", "key:5"),
        ("", None),
        ("alice", None),
        ("SK-ALICE", None),
        ("sk-alice sk-second", None),
    ],
)
def test_a_key_stands_for_its_name_or_its_number(keys: ApiKeys, key: str, client: str | None) -> None:
    assert keys.client_of(key.encode()) == client


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "there is no key"),
        (b"# only a comment\n\n", "there is no key"),
        (b"good\none two three\n", "line 2: has 3 words"),
        (b"sk-1,sk-2", "other than the comma"),
        (b"caf\xc3\xa9", "visible ASCII"),
        (b"sk-secret\x00", "visible ASCII"),
        (b"sk-secret\nb sk-secret", "line 2: this key occurs twice"),
        (b"7 sk-secret", "a name must begin with a letter"),
        (b"sk-secret\xff", "not a text in UTF-8"),
        (b"x" * 2_000_000, "more than 1048576 bytes"),
    ],
)
def test_a_file_that_cannot_be_used_is_refused_without_showing_a_key(
    tmp_path: Path, content: bytes, reason: str
) -> None:
    file = tmp_path / "keys"
    file.write_bytes(content)
    with pytest.raises(UsageError, match=reason) as refused:
        ApiKeys(file, "")
    error: BaseException | None = refused.value
    while error is not None:
        assert "secret" not in repr(error)
        error = error.__cause__


def test_no_file_and_no_variable_is_no_keys_and_an_absent_file_is_an_error(tmp_path: Path) -> None:
    assert load_api_keys(None, {"LAUNCH_API_KEY": ""}) is None
    assert len(load_api_keys(None, {"LAUNCH_API_KEY": "a\nb"}) or ()) == 2
    with pytest.raises(UsageError, match="No such file"):
        load_api_keys(tmp_path / "absent\x1b[31m", {})


def test_a_reload_replaces_the_keys_and_a_failed_one_keeps_them(tmp_path: Path) -> None:
    file = tmp_path / "keys"
    file.write_text("old")
    keys = ApiKeys(file, "")
    file.write_text("\n")
    with pytest.raises(UsageError):
        keys.reload()
    assert keys.client_of(b"old") == "key:1"
    file.write_text("new")
    keys.reload()
    assert (keys.client_of(b"old"), keys.client_of(b"new")) == (None, "key:1")


def test_keys_are_not_kept_as_text(keys: ApiKeys) -> None:
    assert "sk-" not in repr(vars(keys))


Open = Callable[..., httpx.AsyncClient]


@pytest.fixture
def open_client(make_front: Any, make_client: Any, model_info: Any, keys: ApiKeys) -> Open:
    """A client of a server with keys and the families of the program, one of TEI, and a route that names its client."""

    async def who(request: Request) -> Response:
        return JSONResponse({"client": request.state.client})

    route = Route(path="/who", summary="The client", handler=who, responses={200: ResponseSpec("It.")})

    def open_(**changes: Any) -> httpx.AsyncClient:
        services = make_front().services(model_info, FrontOptions(**changes), api_keys=keys)
        client: httpx.AsyncClient = make_client(services, (*FAMILIES, tei, lambda _: ApiFamily("who", (route,))))
        return client

    return open_


@pytest.mark.parametrize("path", ["/health", "/ready", "/health/", "/ready/", "/ready?deep=1"])
async def test_probes_need_no_key(open_client: Open, path: str) -> None:
    async with open_client() as client:
        expected = 503 if "deep" in path else 200  # no instance computes here
        assert (await client.get(path)).status_code == expected


CLOSED = [
    "/info",
    "/metrics",
    "/docs",
    "/openapi.json",
    "/lengths",
    "/v1/models",
    "/",
    "/absent",
    "/healthy",
    "//health",
]


@pytest.mark.parametrize("path", CLOSED)
async def test_all_other_paths_need_a_key(open_client: Open, path: str) -> None:
    async with open_client() as client:
        without = await client.get(path)
        assert without.status_code == 401
        assert without.headers["www-authenticate"] == 'Bearer realm="launch"'
        assert without.json()["error"]["code"] == "missing_api_key"
        assert (await client.get(path, headers={"api-key": "sk-second"})).status_code in (200, 404)
        for method in ("HEAD", "OPTIONS", "DELETE"):
            assert (await client.request(method, path)).status_code == 401


@pytest.mark.parametrize(
    ("name", "value", "client"),
    [
        ("authorization", "Bearer sk-alice", "key:alice"),
        ("Authorization", "bearer   sk-second ", "key:2"),
        ("x-api-key", "sk-alice", "key:alice"),
        ("api-key", "from-environment", "key:5"),
        ("authorization", "sk-alice", None),
        ("authorization", "Basic sk-alice", None),
        ("authorization", "Bearer", None),
        ("authorization", "Bearer sk-alice sk-second", None),
        ("authorization", "Bearer sk-alic", None),
        ("x-api-key", "Bearer sk-alice", None),
        ("x-api-key", "", None),
    ],
)
async def test_a_valid_key_names_the_client(open_client: Open, name: str, value: str, client: str | None) -> None:
    async with open_client() as opened:
        answer = await opened.get("/who", headers={name: value})
    if client is not None:
        assert (answer.status_code, answer.json()) == (200, {"client": client})
        return
    assert answer.status_code == 401
    assert answer.headers["www-authenticate"] == 'Bearer realm="launch", error="invalid_token"'
    assert "sk-" not in answer.text


async def test_one_valid_key_is_enough_but_a_header_sent_twice_is_refused(open_client: Open) -> None:
    async with open_client() as client:
        both = await client.get("/who", headers=[("authorization", "Bearer stale"), ("x-api-key", "sk-second")])
        assert both.json() == {"client": "key:2"}
        twice = await client.get("/who", headers=[("x-api-key", "stale"), ("x-api-key", "sk-second")])
        assert twice.status_code == 401
        assert "twice" in twice.json()["error"]["message"]


async def test_a_refusal_has_the_shape_of_the_family_and_is_counted(open_client: Open) -> None:
    async with open_client() as client:
        answer = await client.post("/embed", json={"inputs": "w1"}, headers={"authorization": "Bearer no"})
        assert answer.status_code == 401
        assert answer.json() == {"error": "the API key is not valid", "error_type": "invalid_api_key"}
        metrics = await client.get("/metrics", headers={"api-key": "sk-second"})
    assert "launcher_unauthorized_requests_total 1.0" in metrics.text.splitlines()


async def test_the_documentation_says_which_routes_need_a_key(open_client: Open) -> None:
    async with open_client() as client:
        document = (await client.get("/openapi.json", headers={"api-key": "sk-second"})).json()
    assert document["security"] == [{"bearer": []}, {"x-api-key": []}, {"api-key": []}]
    assert set(document["components"]["securitySchemes"]) == {"bearer", "x-api-key", "api-key"}
    assert document["paths"]["/health"]["get"]["security"] == []
    assert "401" not in document["paths"]["/health"]["get"]["responses"]
    assert "401" in document["paths"]["/v1/embeddings"]["post"]["responses"]


PREFLIGHT = {"access-control-request-method": "POST", "access-control-request-headers": "authorization,x-own"}


async def test_mode_33_without_the_option_no_response_has_cors_headers(open_client: Open) -> None:
    async with open_client() as client:
        for method in ("GET", "OPTIONS"):
            answer = await client.request(method, "/health", headers={"origin": "https://a.example", **PREFLIGHT})
            assert [name for name in answer.headers if name.startswith("access-control")] == []


async def test_mode_33_only_pages_of_the_given_origins_are_allowed(open_client: Open) -> None:
    async with open_client(cors_origin=("https://A.example", "http://localhost:3000")) as client:
        for origin in ("https://a.example", "http://localhost:3000"):
            preflight = await client.options("/v1/embeddings", headers={"origin": origin, **PREFLIGHT})
            assert preflight.status_code == 200
            assert preflight.headers["access-control-allow-origin"] == origin
            assert preflight.headers["access-control-allow-headers"] == "authorization,x-own"
            refused = await client.post("/v1/embeddings", json={"input": "w1"}, headers={"origin": origin})
            assert refused.status_code == 401
            assert refused.headers["access-control-allow-origin"] == origin
        for origin in ("https://b.example", "https://a.example.evil", "http://a.example", "null"):
            preflight = await client.options("/v1/embeddings", headers={"origin": origin, **PREFLIGHT})
            assert preflight.status_code == 400
            assert "access-control-allow-origin" not in preflight.headers


async def test_mode_33_any_origin_is_never_combined_with_credentials(open_client: Open) -> None:
    async with open_client(cors_origin=("*",)) as client:
        for more in ({}, {"cookie": "a=b"}):
            headers = {"origin": "https://a.example", "api-key": "sk-second", **more}
            answer = await client.get("/who", headers=headers)
            assert answer.headers["access-control-allow-origin"] in ("*", "https://a.example")
            assert "access-control-allow-credentials" not in answer.headers


@pytest.mark.parametrize(
    "origin", ["a.example", "https://a.example/", "https://a.example/x", "null", "", "https://*.a b"]
)
def test_what_is_not_an_origin_is_refused(origin: str) -> None:
    with pytest.raises(UsageError, match="must be an origin"):
        check_origins([origin])
