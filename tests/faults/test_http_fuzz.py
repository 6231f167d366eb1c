"""Mutated and random requests, split at random places, against a real server.

A failure prints the seed and the bytes. ``FUZZ_SEED`` repeats a run, ``FUZZ_SECONDS`` changes its length.
"""

from __future__ import annotations

import contextlib
import os
import random
import re
import socket
import time
from collections.abc import Callable, Sequence

import pytest

from tests.e2e.running import Launch, Running
from tests.faults.http_clients import HEALTH, MEBIBYTE, Front, connected, finish, post, read_all, reset, statuses

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("http_edge")]

SECONDS = float(os.environ.get("FUZZ_SECONDS", "15"))
SEED = int(os.environ.get("FUZZ_SEED", "0")) or random.SystemRandom().getrandbits(32)
BURST = 40
UNEXPECTED = {status for status in range(500, 600) if status != 503}
CHUNKED = (
    b"POST /v1/embeddings HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ntransfer-encoding: chunked\r\n\r\n"
)
REQUESTS = [
    HEALTH,
    b"HEAD /ready HTTP/1.1\r\nhost: x\r\n\r\n",
    b"OPTIONS /v1/models HTTP/1.0\r\nconnection: keep-alive\r\n\r\n",
    b"GET /docs?a=%20b#c HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n",
    post("hello world"),
    post(["a", "b"], "expect: 100-continue"),
    post("x", "connection: upgrade, http2-settings", "upgrade: h2c", "http2-settings: AAMAAABkAAQAAP__"),
    post("x", "x-launcher-priority: bulk", "accept-encoding: gzip"),
    post([[1, 2, 3]]).replace(b"/v1/embeddings", b"/predict"),
    CHUNKED + b'10\r\n{"input": "hello\r\n5;a="b"\r\n you"\r\n1\r\n}\r\n0\r\nx: y\r\n\r\n',
    b"GET http://x/info HTTP/1.1\r\nhost: x\r\ncontent-length: 3\r\n\r\nabc",
]
TOKENS = [
    *(b"\r\n", b"\r\n\r\n", b"\n", b"\r", b"\0", b" ", b"\t", b":", b";", b",", b"0\r\n\r\n", b"ffffffffffffffff\r\n"),
    *(b"HTTP/1.1", b"HTTP/2.0", b"HTTP/0.9", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", b"CONNECT x:1 ", b"TRACE "),
    *(
        b"content-length: ",
        b"content-length: 5\r\n",
        b"content-length: -1\r\n",
        b"content-length: 99999999999999999999\r\n",
    ),
    *(b"transfer-encoding: chunked\r\n", b"transfer-encoding: gzip, chunked\r\n", b"connection: close\r\n"),
    *(
        b"connection: upgrade\r\nupgrade: websocket\r\n",
        b"expect: 100-continue\r\n",
        b"\xff\xfe",
        b"%00",
        b"%ff",
        b"../",
    ),
    *(b"[" * 500, b"{" * 500, b"a: b\r\n" * 300, b"x" * 5_000, b"\r\n" * 1_000, b'"\\ud800"', b"1e999", b"-1", b"null"),
]


def mutated(source: random.Random) -> bytes:
    """Some requests one after the other, with mutations; rarely only random bytes."""
    if source.random() < 0.03:
        return source.randbytes(source.randrange(1, 400))
    data = bytearray(b"".join(source.choice(REQUESTS) for _ in range(source.randint(1, 4))))
    for _ in range(source.choice((0, 1, 1, 2, 3, 8))):
        at = source.randrange(len(data) + 1)
        to = min(len(data), at + source.choice((1, 2, 8, 40)))
        source.choice(MUTATIONS)(source, data, at, to)
    return bytes(data)


def _flip(source: random.Random, data: bytearray, at: int, to: int) -> None:
    for place in range(at, min(to, at + 2)):
        data[place] ^= 1 << source.randrange(8)


def _delete(source: random.Random, data: bytearray, at: int, to: int) -> None:
    del data[at:to]


def _insert(source: random.Random, data: bytearray, at: int, to: int) -> None:
    data[at:at] = source.choice(TOKENS)


def _replace(source: random.Random, data: bytearray, at: int, to: int) -> None:
    data[at:to] = source.choice(TOKENS)


def _repeat(source: random.Random, data: bytearray, at: int, to: int) -> None:
    data[at:at] = data[at:to] * source.choice((1, 2, 200))


def _cut(source: random.Random, data: bytearray, at: int, to: int) -> None:
    del data[at:]


def _renumber(source: random.Random, data: bytearray, at: int, to: int) -> None:
    if number := re.compile(rb"\d+").search(data, at):
        data[number.start() : number.end()] = str(
            source.choice((0, 1, 7, 2**31, 2**64, source.randrange(300)))
        ).encode()


MUTATIONS: Sequence[Callable[[random.Random, bytearray, int, int], None]] = (
    *(_flip, _delete, _insert, _insert, _replace, _repeat, _cut, _renumber),
)


def send(server: Running, source: random.Random, data: bytes) -> bytes:
    """Send the bytes in pieces and end the connection in some way; returns what was received."""
    cuts = sorted(source.randrange(len(data) + 1) for _ in range(source.choice((0, 0, 1, 3, 20))))
    with connected(server) as client:
        client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        with contextlib.suppress(ConnectionError):
            for begin, end in zip((0, *cuts), (*cuts, len(data)), strict=True):
                client.sendall(data[begin:end])
            end_by = source.random()
            if end_by < 0.15:
                reset(client)
            elif end_by < 0.3:
                client.close()
            else:
                finish(client)
                return read_all(client)
    return b""


def good_response(server: Running) -> bytes:
    with connected(server) as client:
        client.sendall(post("hello world"))
        finish(client)
        received = read_all(client)
    assert statuses(received) == [200], received
    return received.rpartition(b"\r\n\r\n")[2]


def test_mode_27_mutated_requests_harm_neither_the_server_nor_other_requests(launch: Launch) -> None:
    source = random.Random(SEED)
    with launch("--model", "random:tiny", "--backend", "fake", "--instances", "1") as server:
        server.wait_serving()
        front, expected, end = Front(server), good_response(server), time.monotonic() + SECONDS
        sent: list[bytes] = []
        begun: tuple[int, int] | None = None
        while not sent or time.monotonic() < end:
            sent = [mutated(source) for _ in range(BURST)]
            for data in sent:
                try:
                    failed = [status for status in statuses(send(server, source, data)) if status in UNEXPECTED]
                except TimeoutError:
                    pytest.fail(f"seed {SEED}: the connection stayed open after {data!r}")
                assert not failed, f"seed {SEED}: {data!r} was answered with {failed}"
            assert good_response(server) == expected, f"seed {SEED}: after one of {sent!r}"
            begun = begun or (front.memory(), front.descriptors())
        assert front.memory() - begun[0] < 30 * MEBIBYTE, f"seed {SEED}"
        assert any(good_response(server) and front.descriptors() <= begun[1] for _ in range(1_000)), f"seed {SEED}"
        server.end()
        server.events_until_end()
        assert [record for record in server.records if record["level"] == "error"] == [], f"seed {SEED}"
        assert server.other_lines == [], f"seed {SEED}"
