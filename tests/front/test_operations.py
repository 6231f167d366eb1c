"""The routes for operators, the OpenAPI document and the documentation page."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from launcher.core.cost.cost_model import CostModel
from launcher.core.cost.length_histogram import parse_histogram
from launcher.engine.costs import watch_costs
from launcher.front.quarantine import Quarantine
from launcher.options import FrontOptions, ServeOptions
from launcher.options.option import options_of

pytestmark = pytest.mark.anyio


@pytest.fixture
def open_client(make_front: Any, make_client: Any, model_info: Any) -> Any:
    """Opens a client; returns the front too."""

    def open_(**changes: Any) -> Any:
        front = make_front(2)
        return front, make_client(front.services(model_info, FrontOptions(), **changes))

    return open_


async def test_health_does_not_depend_on_the_workers(open_client: Any) -> None:
    _, client = open_client(is_ready=lambda: False)
    async with client:
        answer = await client.get("/health")
        assert (answer.status_code, answer.json()) == (200, {"status": "ok"})
        head = await client.head("/health")
        assert (head.status_code, head.content) == (200, b"")


async def test_ready_returns_the_state_of_each_instance(open_client: Any) -> None:
    ready = False
    states = {0: {"state": "ready"}, 1: {"state": "loading"}}
    _, client = open_client(is_ready=lambda: ready, states=lambda: states)
    async with client:
        answer = await client.get("/ready")
        assert answer.status_code == 503
        assert answer.json() == {"ready": False, "instances": {"0": {"state": "ready"}, "1": {"state": "loading"}}}
        assert answer.headers["retry-after"] == "1"
        ready = True
        answer = await client.get("/ready")
        assert (answer.status_code, answer.json()["ready"]) == (200, True)


async def test_a_request_before_an_instance_is_ready_gets_503_with_retry_after(open_client: Any) -> None:
    _, client = open_client()
    async with client:
        answer = await client.post("/v1/embeddings", json={"input": "w1"})
    assert answer.status_code == 503
    assert answer.headers["retry-after"] == "1"
    assert answer.json()["error"]["code"] == "not_ready"


async def test_a_request_during_a_drain_gets_503(open_client: Any) -> None:
    front, client = open_client()
    await front.serving()
    front.dispatcher.begin_drain()
    async with client:
        answer = await client.post("/v1/embeddings", json={"input": "w1"})
    assert (answer.status_code, answer.json()["error"]["code"]) == (503, "draining")


async def test_a_request_during_an_overload_gets_429_with_retry_after(
    make_front: Any, make_client: Any, model_info: Any, until: Any
) -> None:
    front = make_front(queue_items=2)
    await front.ready()
    future = front.dispatcher.enqueue([np.array([5], dtype=np.int32)] * 2, client="127.0.0.1")
    async with make_client(front.services(model_info, FrontOptions())) as client:
        answer = await client.post("/v1/embeddings", json={"input": "w1"})
    assert answer.status_code == 429
    assert int(answer.headers["retry-after"]) >= 1
    assert answer.json()["error"]["type"] == "rate_limit_error"
    future.cancel()
    await until(lambda: front.dispatcher.in_flight == 0)


async def test_info_returns_what_the_server_provides(open_client: Any) -> None:
    _, client = open_client(info=lambda: {"model": "words", "plan": {"instances": []}})
    async with client:
        assert (await client.get("/info")).json() == {"model": "words", "plan": {"instances": []}}


async def test_lengths_returns_a_histogram_that_the_planner_accepts(open_client: Any) -> None:
    front, client = open_client()
    async with client:
        assert (await client.get("/lengths")).json() == {}
        for count, length in ((3, 5), (1, 12)):
            future = front.dispatcher.enqueue([np.ones(length, dtype=np.int32)] * count)
            future.cancel()
        answer = await client.get("/lengths")
    assert answer.json() == {"5": 3, "12": 1}
    assert parse_histogram(answer.text).counts == ((5, 3.0), (12, 1.0))


async def test_an_unexpected_exception_is_500_in_the_default_error_shape(open_client: Any) -> None:
    def broken() -> Any:
        raise RuntimeError("secret")

    _, client = open_client(info=broken)
    async with client:
        answer = await client.get("/info")
        assert answer.status_code == 500
        assert answer.json()["error"]["code"] == "internal_error"
        assert "secret" not in answer.text
        assert (await client.get("/health")).status_code == 200


def samples(text: str) -> dict[str, float]:
    lines = [line for line in text.splitlines() if not line.startswith("#")]
    return {name: float(value) for name, value in (line.rsplit(" ", 1) for line in lines)}


async def test_metrics_count_requests_items_tokens_batches_and_stages(open_client: Any) -> None:
    front, client = open_client()
    await front.serving(0)
    async with client:
        await client.post("/v1/embeddings", json={"input": ["w1", "w2 w2"]})
        await client.post("/predict", json={"inputs": "w1"})
        await client.post("/v1/embeddings", json={"input": ""})
        answer = await client.get("/metrics")
    assert answer.headers["content-type"].startswith("text/plain; version=0.0.4")
    found = samples(answer.text)
    assert found['launcher_requests_total{route="/v1/embeddings",status="200"}'] == 1
    assert found['launcher_requests_total{route="/v1/embeddings",status="400"}'] == 1
    assert found['launcher_requests_total{route="/predict",status="200"}'] == 1
    assert found['launcher_items_total{route="/v1/embeddings"}'] == 2
    assert found['launcher_tokens_total{route="/v1/embeddings"}'] == 7
    for stage in ("parse", "tokenize", "queue", "compute", "reply"):
        assert found[f'launcher_stage_seconds_count{{stage="{stage}"}}'] == 2
    assert found['launcher_batch_items_sum{class="all",instance="0"}'] == 3
    assert found['launcher_computed_tokens_total{class="all",instance="0",kind="real"}'] == 10
    padding = found['launcher_computed_tokens_total{class="all",instance="0",kind="padding"}']
    assert 0 <= padding <= 2
    assert found['launcher_queue_items{class="all"}'] == 0
    assert found['launcher_instance_ready{class="all",instance="0"}'] == 1
    assert found['launcher_instance_ready{class="all",instance="1"}'] == 0
    ours = [name for name in found if not name.startswith(("launcher_", "process_"))]
    assert ours == []


async def test_the_openapi_document_has_only_served_routes_and_no_dangling_references(open_client: Any) -> None:
    _, client = open_client()
    async with client:
        document = (await client.get("/openapi.json")).json()
        for path, methods in document["paths"].items():
            for method in methods:
                answer = await client.request(method, path.replace("{id}", "words"))
                assert answer.status_code not in (404, 405), (method, path)
    references = set(re.findall(r'"#/components/schemas/(\w+)"', str(document).replace("'", '"')))
    assert references
    assert references <= set(document["components"]["schemas"])
    fields = document["components"]["schemas"]["EmbeddingsRequest"]["properties"]
    assert set(fields) == {
            "input", "model", "encoding_format", "dimensions", "user", "truncate", "prompt", "prompt_name",
            "route",
        }  # fmt: skip


async def test_the_docs_page_loads_nothing_from_other_servers(open_client: Any) -> None:
    _, client = open_client()
    async with client:
        answer = await client.get("/docs")
    page = answer.text
    assert answer.headers["content-type"].startswith("text/html")
    for shown in ("/v1/embeddings", "/predict", "encoding_format", "EmbeddingsResponse", "curl http://HOST:PORT"):
        assert shown in page
    loaded = re.findall(r'(?:src|href)=["\']([^"\']+)', page) + re.findall(r"@import|url\(", page)
    assert [target for target in loaded if not target.startswith(("#", "/"))] == []


DOCUMENT = (Path(__file__).parents[2] / "docs" / "http.md").read_text()


async def test_the_documentation_names_every_metric_and_no_other(make_front: Any) -> None:
    front = make_front()
    front.metrics.watch_in_flight(lambda: 0)
    watch_costs(front.metrics, lambda instance: CostModel())
    front.metrics.watch_quarantine(Quarantine("embed", 3600.0))
    described = set(re.findall(r"`(launcher_\w+)`", DOCUMENT))
    counted = {
        f"{family.name}_total" if family.type == "counter" else family.name
        for family in front.metrics.registry.collect()
        if family.name.startswith("launcher_")
    }
    # The server also watches itself and its resources.
    watched = (Path(__file__).parents[2] / "launcher" / "serve").glob("*.py")
    counted |= {name for file in watched for name in re.findall(r'"(launcher_\w+)"', file.read_text())}
    assert described == counted


def test_the_documentation_names_the_limits_and_their_options() -> None:
    limits = DOCUMENT.partition("## Limits")[2].partition("\n## ")[0]
    rows = [[cell.strip() for cell in line.split("|")[2:4]] for line in limits.splitlines() if line.count("|") > 3]
    flags = {option.flag: option for option in options_of(ServeOptions)}
    documented = {flag.strip("`"): limit for limit, flag in rows if flag.startswith("`--")}
    assert set(documented) < set(flags)
    for flag, limit in documented.items():
        if flags[flag].default is None:  # chosen at the start
            continue
        assert limit.lstrip("[").startswith(shown(flags[flag].name, flags[flag].default)), flag


def shown(name: str, default: float) -> str:
    if name.endswith("_seconds"):
        return f"{default:g} s"
    if name.endswith("_bytes"):
        return f"{int(default) >> 20} MiB" if default >= 1 << 20 else f"{int(default) >> 10} KiB"
    return f"{default:,}"
