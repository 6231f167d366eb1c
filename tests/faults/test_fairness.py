"""Clients share the instances, the queue and the memory for bodies, whatever one of them does.

The clients are addresses of the loopback interface. Order is judged by what is still in flight when a response arrives.
"""

from __future__ import annotations

import contextlib
import json
import re
import socket
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import pytest

from tests.e2e.running import Launch, Running

pytestmark = pytest.mark.slow

GREEDY, OTHER, THIRD = "127.0.0.2", "127.0.0.3", "127.0.0.4"
BULK = {"x-launcher-priority": "bulk"}
# Two instances that take 0.1 ms per token, and batches of at most 50 ms.
FAKE = (
    *("--model", "random:tiny", "--backend", "fake", "--fake-seconds-per-token", "0.0001"),
    *("--instances", "2", "--oversubscribe", "--token-ids", "accept", "--batch-tokens", "512"),
)
ITEM = [2] * 100
LARGE = [ITEM] * 100  # 1 s of one instance


class Client:
    """A client at an address, which can have many requests in flight."""

    def __init__(self, server: Running, address: str) -> None:
        limits = httpx.Limits(max_connections=200)
        transport = httpx.HTTPTransport(local_address=address, limits=limits)
        self._http = httpx.Client(base_url=server.address, transport=transport, timeout=120)
        self._threads = ThreadPoolExecutor(100)

    def close(self) -> None:
        self._threads.shutdown(wait=True)
        self._http.close()

    def ask(self, content: Any, headers: dict[str, str] | None = None) -> httpx.Response:
        body = {"input": content, "encoding_format": "base64"}
        return self._http.post("/v1/embeddings", json=body, headers=headers)

    def start(self, content: Any, headers: dict[str, str] | None = None) -> Any:
        return self._threads.submit(self.ask, content, headers)

    @contextlib.contextmanager
    def endless(self, content: Any, connections: int) -> Iterator[list[int]]:
        """Send requests on so many connections, each as soon as the one before is answered. Yields their statuses."""
        stop, statuses = threading.Event(), list[int]()

        def send() -> None:
            while not stop.is_set():
                statuses.append(self.ask(content).status_code)

        senders = [self._threads.submit(send) for _ in range(connections)]
        try:
            yield statuses
        finally:
            stop.set()
            for sender in senders:
                sender.result()


@pytest.fixture(scope="module")
def server(launch: Launch) -> Iterator[Running]:
    with launch(*FAKE) as server:
        yield server.wait_serving()


@pytest.fixture(scope="module")
def small_queue(launch: Launch) -> Iterator[Running]:
    with launch(*FAKE, "--max-queue-seconds", "2") as server:
        yield server.wait_serving()


Connect = Callable[[Running, str], Client]


@pytest.fixture
def connect() -> Iterator[Connect]:
    """Make a client at an address; all requests are answered at the end."""
    clients: list[Client] = []

    def make(server: Running, address: str) -> Client:
        clients.append(Client(server, address))
        return clients[-1]

    yield make
    for client in clients:
        client.close()


def in_flight(server: Running) -> int:
    found = re.search(r"^launcher_requests_in_flight (\S+)$", server.get("/metrics").text, re.MULTILINE)
    assert found is not None
    return int(float(found[1]))


def wait_in_flight(server: Running, count: int) -> None:
    while in_flight(server) < count:
        pass


def error_of(response: httpx.Response) -> tuple[int, str]:
    return response.status_code, response.json()["error"]["code"]


# ----------------------------------------------------------------- the instances


@pytest.mark.parametrize(("large", "items"), [(1, 400), (4, 100), (8, 50), (50, 16)])
def test_mode_57_short_requests_of_others_are_bounded_with_any_number_of_large_ones(
    server: Running, connect: Connect, large: int, items: int
) -> None:
    greedy, other = connect(server, GREEDY), connect(server, OTHER)
    requests = [greedy.start([ITEM] * items) for _ in range(large)]  # 2 to 4 s of two instances
    wait_in_flight(server, max(1, int(0.7 * large)))
    for _ in range(3):
        assert other.ask("a short text").status_code == 200
    unfinished = sum(not request.done() for request in requests)
    assert unfinished >= 0.5 * large, "they waited for large requests"
    assert {request.result().status_code for request in requests} == {200}


def test_mode_20_short_requests_of_the_same_client_overtake_large_ones(server: Running, connect: Connect) -> None:
    client = connect(server, GREEDY)
    large = [client.start(LARGE) for _ in range(4)]
    wait_in_flight(server, 4)
    for _ in range(3):
        assert client.ask("a short text").status_code == 200
    assert not any(request.done() for request in large)
    assert {request.result().status_code for request in large} == {200}


@pytest.mark.parametrize("address", [GREEDY, OTHER])
def test_mode_21_a_large_request_is_answered_during_endless_short_ones(
    server: Running, connect: Connect, address: str
) -> None:
    short, long = connect(server, GREEDY), connect(server, address)
    with short.endless([2] * 30, connections=32) as statuses:
        while len(statuses) < 64:
            pass
        before = len(statuses)
        assert long.ask(LARGE).status_code == 200
        during = len(statuses) - before
    assert set(statuses) == {200}
    # As much work of short requests as of the large one, and what was running.
    assert during < 4 * len(LARGE) * len(ITEM) / 30


def test_mode_22_bulk_of_one_client_delays_no_interactive_request(server: Running, connect: Connect) -> None:
    greedy, other = connect(server, GREEDY), connect(server, OTHER)
    bulk = [greedy.start(LARGE, BULK) for _ in range(4)]
    wait_in_flight(server, 4)
    for client in (greedy, other) * 2:
        assert client.ask(ITEM).status_code == 200
    assert not any(request.done() for request in bulk)
    assert {request.result().status_code for request in bulk} == {200}


def test_mode_23_two_clients_get_equal_shares_whatever_they_send(server: Running, connect: Connect) -> None:
    many, few = connect(server, GREEDY), connect(server, OTHER)
    with many.endless(ITEM, connections=32) as statuses:
        while len(statuses) < 32:
            pass
        before = len(statuses)
        assert few.ask(LARGE * 2).status_code == 200
        during = len(statuses) - before
    assert set(statuses) == {200}
    assert 0.2 < during / 200 < 1.8, "inputs of the one, for those of the other"


# --------------------------------------------------------------------- the queue


def test_mode_16_a_client_that_queues_too_much_gets_429_with_retry_after(
    small_queue: Running, connect: Connect
) -> None:
    client = connect(small_queue, GREEDY)
    requests = [client.start(LARGE) for _ in range(20)]  # 10 s of two instances
    responses = [request.result() for request in requests]
    refused = [response for response in responses if response.status_code == 429]
    assert {response.status_code for response in responses} == {200, 429}
    assert all(error_of(response) == (429, "queue_full") for response in refused)
    assert all(1 <= int(response.headers["retry-after"]) <= 10 for response in refused)


def test_mode_17_a_request_larger_than_the_limit_is_refused_for_good(small_queue: Running, connect: Connect) -> None:
    client = connect(small_queue, GREEDY)
    response = client.ask(LARGE * 6)  # 3 s of two instances
    assert error_of(response) == (413, "too_much_work")
    assert "retry-after" not in response.headers
    assert client.ask(LARGE).status_code == 200


def test_mode_58_the_backlog_of_one_client_does_not_close_admission_for_others(
    small_queue: Running, connect: Connect
) -> None:
    greedy, other, third = (connect(small_queue, address) for address in (GREEDY, OTHER, THIRD))
    with greedy.endless(LARGE[:50], connections=20) as statuses:
        while 429 not in statuses:
            pass
        assert {other.ask("a word").status_code for _ in range(10)} == {200}
        assert {greedy.ask("a word").status_code for _ in range(3)} == {200}, "nor for its own small requests"
        assert third.ask(LARGE[:50]).status_code == 200


# ------------------------------------------------------------------------ bodies


def test_mode_59_unfinished_uploads_lock_nobody_out_and_end(launch: Launch, connect: Connect) -> None:
    sizes = ("--max-body-bytes", "1000000", "--max-total-body-bytes", "8000000")
    with launch(*FAKE, *sizes, "--upload-window-seconds", "2") as server:
        server.wait_serving()
        url = httpx.URL(server.address)
        lines = ("POST /v1/embeddings HTTP/1.1", "host: x", "content-type: application/json", "content-length: 1000000")
        head = "\r\n".join([*lines, "", ""]).encode()
        with contextlib.ExitStack() as opened:
            uploads = []
            for _ in range(34):
                upload = opened.enter_context(
                    socket.create_connection((url.host, url.port or 80), 30, source_address=(GREEDY, 0))
                )
                upload.sendall(head + b" " * 700_000)
                uploads.append(upload)
            greedy, other = connect(server, GREEDY), connect(server, OTHER)
            assert greedy.ask("hello").status_code == 200
            assert other.ask("hello " * 100_000).status_code in (200, 400)  # read, whether or not it is too long
            ends = []
            for upload in uploads:
                with upload.makefile("rb") as response:
                    ends.append(int(response.readline().split()[1]))
            assert set(ends) == {408, 429}
            assert 3 <= ends.count(408) <= 10, "one client holds at most half of the memory"
        body = json.dumps({"input": ["hello"], "user": "x" * 900_000})
        answer = httpx.post(
            server.address + "/v1/embeddings", content=body, headers={"content-type": "application/json"}
        )
        assert answer.status_code == 200, answer.text
