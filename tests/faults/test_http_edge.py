"""Hostile and unusual HTTP clients against a real server: what they cost is bounded, and others are served."""

from __future__ import annotations

import contextlib
import json
import select
import socket
from collections.abc import Iterator
from typing import Any

import pytest

from tests.e2e.running import Launch, Running
from tests.faults.http_clients import (
    HEALTH,
    MEBIBYTE,
    PATIENCE,
    Front,
    answers,
    connected,
    finish,
    post,
    read_all,
    reset,
    statuses,
)

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("http_edge")]

HEADERS = b"".join(b"a%d: %b\r\n" % (number, b"y" * 8_000) for number in range(7))
LARGE_HEAD = b"GET /health HTTP/1.1\r\nhost: x\r\n" + HEADERS + b"\r\n"
CHUNKED = (
    b"POST /v1/embeddings HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ntransfer-encoding: chunked\r\n\r\n"
)


@pytest.fixture(scope="module")
def server(launch: Launch) -> Iterator[Running]:
    with launch("--model", "random:tiny", "--backend", "fake", "--instances", "1") as server:
        server.wait_serving()
        for _ in range(50):
            assert answers(server, HEALTH + post("warm")) == [200, 200]
        yield server
        server.end()
        server.events_until_end()
        assert [record for record in server.records if record["level"] == "error"] == []
        assert server.other_lines == []


@pytest.fixture
def front(server: Running) -> Iterator[Front]:
    """The front, which must have closed all connections after the test."""
    front = Front(server)
    before = front.descriptors()
    yield front
    assert settled(server, front, before)


def settled(server: Running, front: Front, descriptors: int) -> bool:
    """Whether the server has no more descriptors than before, after it had time to notice what clients did."""
    return any(answers(server, HEALTH) == [200] and front.descriptors() <= descriptors for _ in range(10_000))


def until_blocked(client: socket.socket, data: bytes, most: int) -> int:
    """Send ``data`` again and again until the server does not read; returns the bytes sent, at most ``most``."""
    client.setblocking(False)
    sent = 0
    rest = memoryview(data)
    while sent < most and select.select([], [client], [], 1)[1]:
        count = client.send(rest)
        sent += count
        rest = rest[count:] or memoryview(data)
    client.setblocking(True)
    client.settimeout(PATIENCE)
    return sent


STAGES = {
    "after a response": (LARGE_HEAD, True),
    "in a head": (LARGE_HEAD[:-4], False),
    "in a body": (post("x" * 50_000)[:-10], False),
    "in a chunked body": (CHUNKED + b"c000\r\n" + b" " * 40_000, False),
    "while answering": (post(["x"] * 5), False),
    "in a large response": (b"GET /openapi.json HTTP/1.1\r\nhost: x\r\n\r\n" * 20, False),
    "with pipelined requests": (LARGE_HEAD * 3, True),
}


@pytest.mark.parametrize("stage", STAGES)
def test_mode_53_nothing_is_kept_of_connections_ended_by_rst(server: Running, front: Front, stage: str) -> None:
    data, read = STAGES[stage]
    with front.under_attack():
        for _ in range(1_200):
            client = connected(server)
            client.sendall(data)
            if read:
                client.recv(4096)
            reset(client)


@pytest.mark.parametrize("block", [b"y" * 65_536, b"x-launcher-priority: %b\r\n" % (b"y" * 40) * 1_000])
def test_mode_54_trailers_are_counted_as_headers_and_dropped(server: Running, front: Front, block: bytes) -> None:
    with front.under_attack(), connected(server) as client:
        with contextlib.suppress(ConnectionError):
            client.sendall(CHUNKED + b"2\r\n{}\r\n0\r\nx: ")
            for _ in range(50 * MEBIBYTE // len(block)):
                client.sendall(block)
            finish(client)
        assert statuses(read_all(client)) == [431]


def test_mode_54_trailers_are_no_headers(server: Running) -> None:
    body = b'{"input": "hello"}'
    chunk = CHUNKED + b"%x\r\n%b\r\n0\r\n" % (len(body), body)
    assert answers(server, chunk + b"x-launcher-priority: none\r\n\r\n" + post("hello")) == [200, 200]
    assert answers(server, CHUNKED.replace(b"host", b"x-launcher-priority: none\r\nhost") + b"0\r\n\r\n") == [400]


def test_mode_55_pipelined_requests_of_a_client_that_does_not_read(server: Running, front: Front) -> None:
    clients = [connected(server) for _ in range(4)]
    with front.under_attack():
        for client in clients:
            assert until_blocked(client, HEALTH * 500, 64 * MEBIBYTE) < 64 * MEBIBYTE
    for client in clients:
        reset(client)


def test_mode_55_pipelined_requests_of_a_client_that_reads(server: Running, front: Front) -> None:
    with front.under_attack():
        assert answers(server, HEALTH * 10_000) == [200] * 10_000


def test_mode_56_all_pipelined_requests_of_one_packet_are_answered(server: Running, front: Front) -> None:
    assert answers(server, HEALTH * 20_000) == [200] * 20_000
    with connected(server) as client:
        client.sendall(b"".join(b"GET /%d HTTP/1.1\r\nhost: x\r\n\r\n" % number for number in range(2_000)))
        finish(client)
        received = read_all(client)
    paths = [part.split()[0] for part in received.split(b"there is no route ")[1:]]
    assert paths == [b"/%d;" % number for number in range(2_000)]
    posts = b"".join(post(f"text {number}") for number in range(300))
    assert answers(server, posts) == [200] * 300


@pytest.mark.parametrize("piece", [7, 1_000, 1 << 20])
def test_mode_56_a_head_over_the_limit_is_refused_in_whatever_pieces(server: Running, piece: int) -> None:
    with connected(server) as client:
        client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        data = HEALTH + b"GET /health HTTP/1.1\r\nx: " + b"y" * 65_536 + b"\r\n\r\n" + HEALTH
        for at in range(0, len(data), piece):
            client.sendall(data[at : at + piece])
        finish(client)
        assert statuses(read_all(client)) == [200, 431]


def test_mode_67_a_half_closed_client_gets_its_response(server: Running, front: Front) -> None:
    assert answers(server, post("hello")) == [200]
    assert answers(server, post("hello").replace(b"HTTP/1.1", b"HTTP/1.0")) == [200]
    assert answers(server, post("hello") * 5 + HEALTH + b"GET /hea") == [200] * 6


def test_mode_67_a_half_closed_client_waits_as_long_as_others_and_a_closed_one_is_noticed(launch: Launch) -> None:
    slow = ("--fake-seconds-per-token", "0.001")
    with launch("--model", "random:tiny", "--backend", "fake", "--instances", "1", *slow) as server:
        server.wait_serving()
        texts = ["word " * 100] * 20  # 2 s
        closed = connected(server)
        closed.sendall(post(texts))
        closed.close()
        with connected(server) as client:
            client.sendall(post(texts))
            finish(client)
            received = read_all(client)
        assert statuses(received) == [100, 200]
        assert len(json.loads(received.rpartition(b"\r\n\r\n")[2])["data"]) == len(texts)
        assert 'launcher_requests_total{route="/v1/embeddings",status="499"} 1.0' in server.get("/metrics").text


def test_mode_49_no_descriptors_are_left_over_reconnects(server: Running, front: Front) -> None:
    before = front.descriptors()
    ends: tuple[Any, ...] = (reset, socket.socket.close, finish)
    sent = (b"", HEALTH, HEALTH[:-1], post("x"), post("x")[:-1], b"no HTTP\r\n\r\n", LARGE_HEAD * 2, HEALTH * 100)
    for number in range(1_500):
        client = connected(server)
        client.sendall(sent[number % len(sent)])
        ends[number % len(ends)](client)
        client.close()
    assert settled(server, front, before)


def body_of(text: bytes, *headers: bytes) -> bytes:
    lines = [b"POST /v1/embeddings HTTP/1.1", b"host: x", *(headers or [b"content-type: application/json"])]
    return b"\r\n".join([*lines, b"content-length: %d" % len(text), b"", b""]) + text


MALFORMED = {
    "over the limit": (body_of(b" " * (8 * MEBIBYTE + 1)), 413),
    "over the limit without length": (CHUNKED + b"900000\r\n" + b" " * 0x900000 + b"\r\n0\r\n\r\n", 413),
    "compressed": (body_of(b"\x1f\x8b" * 50, b"content-type: application/json", b"content-encoding: gzip"), 415),
    "another content type": (body_of(b"{}", b"content-type: text/plain"), 415),
    "not UTF-8": (body_of(b'{"input": "\xff\xfe"}'), 400),
    "a lone surrogate": (body_of(b'{"input": "\\ud800"}'), 400),
    "deep JSON": (body_of(b'{"input": ' + b"[" * 100_000 + b"]" * 100_000 + b"}"), 400),
    "a huge number": (body_of(b'{"input": "x", "dimensions": ' + b"9" * 100_000 + b"}"), 400),
    "NaN": (body_of(b'{"input": "x", "dimensions": NaN}'), 400),
    "empty": (body_of(b""), 400),
    "NUL in a text": (body_of(b'{"input": "a\\u0000b"}'), 200),
    "a key twice": (body_of(b'{"input": "", "input": "x"}'), 200),
    "one-byte chunks": (CHUNKED + b"".join(b"1\r\n%c\r\n" % c for c in b'{"input": "x"}') + b"0\r\n\r\n", 200),
    "long chunk extensions": (CHUNKED + b'e;%b\r\n{"input": "x"}\r\n0;%b\r\n\r\n' % (b"x" * 9_000, b"y" * 9_000), 200),
    "a trailing slash": (post("x").replace(b"embeddings ", b"embeddings/ "), 200),
    "OPTIONS": (b"OPTIONS /v1/embeddings HTTP/1.1\r\nhost: x\r\n\r\n", 204),
    "a wrong method": (b"GET /v1/embeddings HTTP/1.1\r\nhost: x\r\n\r\n", 405),
    "HEAD": (b"HEAD /health HTTP/1.1\r\nhost: x\r\n\r\n", 200),
}


@pytest.mark.parametrize("kind", MALFORMED)
def test_mode_27_unusual_requests_get_their_status_and_the_next_one_is_served(
    server: Running, front: Front, kind: str
) -> None:
    data, status = MALFORMED[kind]
    received = answers(server, data + HEALTH)
    assert received == ([413] if status == 413 else [status, 200])  # after 413 the connection is closed
    assert answers(server, post("hello")) == [200]


def test_mode_27_the_cost_of_small_pieces_is_proportional_to_their_bytes(server: Running, front: Front) -> None:
    def cost(pieces: int) -> float:
        before = front.cpu_seconds()
        body = b'{"input": "' + b"x" * pieces + b'"}'
        chunks = b"".join(b"1\r\n%c\r\n" % c for c in body)
        assert answers(server, CHUNKED + chunks + b"0\r\n\r\n") in ([200], [400])  # too many tokens
        return front.cpu_seconds() - before

    cost(1_000)
    small, large = cost(100_000), cost(800_000)
    # In 8 times the bytes: 64 times the cost if it were quadratic. The clock has ticks of 10 ms.
    assert large < 24 * (small + 0.02)
