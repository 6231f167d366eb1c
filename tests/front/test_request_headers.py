"""Priorities and deadlines, from the headers to the worker."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from launcher.core.protocol.messages import Run
from launcher.errors import RequestError
from launcher.front.http.api import FAMILIES
from launcher.front.http.inference_route import InferenceRoute
from launcher.front.http.request_headers import RequestHeaders, parse_request_headers
from launcher.options import FrontOptions

ONE = {"input": "w1 w2"}
PRIORITY, DEADLINE = "x-launcher-priority", "x-launcher-deadline-ms"


@pytest.mark.parametrize(
    ("headers", "request_headers"),
    [
        ([(b"host", b"x")], RequestHeaders()),
        ([(b"x-launcher-priority", b"bulk")], RequestHeaders("bulk")),
        ([(b"x-launcher-priority", b" Interactive ")], RequestHeaders("interactive")),
        ([(b"x-launcher-deadline-ms", b"250"), (b"x-launcher-priority", b"bulk")], RequestHeaders("bulk", 0.25)),
    ],
)
def test_priority_and_deadline_are_parsed(headers: list[tuple[bytes, bytes]], request_headers: RequestHeaders) -> None:
    assert parse_request_headers(headers) == request_headers


@pytest.mark.parametrize("value", [b"0", b"-5", b"1.5", b"", b"soon", b"1e3", b"9999999999", "٣".encode(), b"5 5"])
def test_a_deadline_that_is_not_a_positive_whole_number_is_refused(value: bytes) -> None:
    with pytest.raises(RequestError, match="positive whole number") as error:
        parse_request_headers([(b"x-launcher-deadline-ms", value)])
    assert (error.value.status, error.value.code, error.value.param) == (400, "invalid_deadline", DEADLINE)


@pytest.mark.parametrize("value", [b"", b"high", b"bulk, interactive", b"\xff"])
def test_an_unknown_priority_is_refused_with_the_list_of_priorities(value: bytes) -> None:
    with pytest.raises(RequestError, match="interactive or bulk") as error:
        parse_request_headers([(b"x-launcher-priority", value)])
    assert (error.value.status, error.value.code) == (400, "invalid_priority")


def test_a_duplicate_header_is_refused() -> None:
    with pytest.raises(RequestError, match="twice"):
        parse_request_headers([(b"x-launcher-deadline-ms", b"5")] * 2)


# --------------------------------------------------------------- over HTTP


def body_of(reply: Any) -> dict[str, Any]:
    error: dict[str, Any] = reply.json()["error"]
    return error


def inference_routes(services: Any) -> list[InferenceRoute]:
    routes = [route for family in FAMILIES for route in family(services).routes]
    return [route for route in routes if isinstance(route, InferenceRoute)]


def sample(front: Any, name: str, **labels: str) -> float:
    value = front.metrics.registry.get_sample_value(name, labels)
    assert value is not None, f"{name}{labels} is not counted"
    return float(value)


@pytest.mark.anyio
async def test_every_inference_route_accepts_its_example_and_both_headers(
    make_front: Any, make_client: Any, model_info: Any
) -> None:
    front = make_front()
    await front.serving()
    services = front.services(model_info, FrontOptions())
    routes = inference_routes(services)
    async with make_client(services) as client:
        for route in routes:
            reply = await client.post(route.path, json=route.example, headers={PRIORITY: "bulk", DEADLINE: "60000"})
            assert reply.status_code == 200
            for name, value, code in ((PRIORITY, "high", "invalid_priority"), (DEADLINE, "0", "invalid_deadline")):
                refused = await client.post(route.path, json=route.example, headers={name: value})
                assert refused.status_code == 400
                assert (body_of(refused)["code"], body_of(refused)["param"]) == (code, name)
    assert sample(front, "launcher_requests_by_priority_total", priority="bulk") == len(routes) >= 2


@pytest.mark.anyio
async def test_interactive_requests_overtake_bulk(
    make_front: Any, make_client: Any, model_info: Any, until: Any
) -> None:
    front = make_front(batch_tokens=8)
    worker = await front.ready()
    order: list[str] = []
    async with make_client(front.services(model_info, FrontOptions())) as client:

        async def ask(name: str, inputs: list[str], headers: dict[str, str]) -> None:
            reply = await client.post("/v1/embeddings", json={"input": inputs}, headers=headers)
            assert reply.status_code == 200
            order.append(name)

        bulk = asyncio.ensure_future(ask("bulk", ["w1 w2"] * 30, {PRIORITY: "bulk"}))
        runs = [await worker.expect(Run)]
        await until(lambda: front.dispatcher.in_flight == 1)
        other = asyncio.ensure_future(ask("interactive", ["w3"], {}))
        await until(lambda: front.dispatcher.in_flight == 2)
        sent = 0
        while not other.done():
            run, body = runs.pop() if runs else await worker.expect(Run)
            await worker.answer(run, body)
            sent += 1
            assert sent <= 3, "the running batch, the ready one, and its own"
            await asyncio.sleep(0)
            if sent == 3:
                await other
        worker.serve_in_background()
        await asyncio.wait_for(bulk, 60)
    assert order == ["interactive", "bulk"]


@pytest.mark.anyio
async def test_a_deadline_that_passes_in_the_queue_gets_504_and_the_time(
    make_front: Any, make_client: Any, model_info: Any, until: Any
) -> None:
    front = make_front()
    worker = await front.ready()
    async with make_client(front.services(model_info, FrontOptions())) as client:
        running = [asyncio.ensure_future(client.post("/v1/embeddings", json=ONE)) for _ in range(2)]
        runs = [await worker.expect(Run), await worker.expect(Run)]  # running and ready: further requests wait
        refused = await client.post("/v1/embeddings", json=ONE, headers={DEADLINE: "80"})
        assert refused.status_code == 504
        assert body_of(refused)["code"] == "deadline_exceeded"
        assert "s in the queue; 1 of 1 inputs were still waiting" in body_of(refused)["message"]
        assert "retry-after" not in refused.headers
        for run, body in runs:
            await worker.answer(run, body)
        assert {reply.status_code for reply in await asyncio.gather(*running)} == {200}
        await until(lambda: front.dispatcher.in_flight == 0)
    front.scheduler.check()
    assert sum(front.scheduler.queued_by_class().values()) == 0
    assert sample(front, "launcher_deadlines_missed_total", priority="interactive", kind="expired") == 1


@pytest.mark.anyio
async def test_a_deadline_that_cannot_be_met_gets_504_at_once_with_the_prediction(
    make_front: Any, make_client: Any, model_info: Any
) -> None:
    front = make_front(queue_items=10_000)
    await front.ready()  # measured as 1 ms for 16 tokens, but it never answers
    async with make_client(front.services(model_info, FrontOptions())) as client:
        headers = {PRIORITY: "bulk", DEADLINE: "1000"}
        texts = [" ".join(["w1"] * 14)] * 2000  # 32 000 tokens, 2 s
        refused = await client.post("/v1/embeddings", json={"input": texts}, headers=headers)
    assert refused.status_code == 504
    assert body_of(refused)["code"] == "deadline_unreachable"
    assert "is predicted in 2." in body_of(refused)["message"]
    assert sample(front, "launcher_deadlines_missed_total", priority="bulk", kind="refused") == 1


@pytest.mark.anyio
async def test_bulk_requests_are_tokenized_one_at_a_time_while_interactive_ones_continue(
    make_front: Any, make_client: Any, model_info: Any, until: Any
) -> None:
    front = make_front(queue_items=10_000)
    await front.serving()
    services = front.services(model_info, FrontOptions())
    async with make_client(services) as client:
        async with services.bulk_lock:
            bulk = asyncio.ensure_future(
                client.post("/v1/embeddings", json={"input": ["w1"] * 600}, headers={PRIORITY: "bulk"})
            )
            assert (await client.post("/v1/embeddings", json={"input": ["w1"] * 600})).status_code == 200
            assert not bulk.done()
            late = await client.post("/v1/embeddings", json=ONE, headers={PRIORITY: "bulk", DEADLINE: "30"})
            assert (late.status_code, body_of(late)["code"]) == (504, "deadline_exceeded")
        assert (await bulk).status_code == 200


@pytest.mark.anyio
async def test_the_document_and_the_page_name_both_headers(make_front: Any, make_client: Any, model_info: Any) -> None:
    front = make_front()
    services = front.services(model_info, FrontOptions())
    async with make_client(services) as client:
        document = (await client.get("/openapi.json")).json()
        page = (await client.get("/docs")).text
    for route in inference_routes(services):
        operation = document["paths"][route.path]["post"]
        names = {parameter["name"] for parameter in operation["parameters"]}
        assert names == {PRIORITY, DEADLINE}
        assert "504" in operation["responses"]
    assert PRIORITY in page
    assert DEADLINE in page
