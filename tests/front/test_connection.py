"""One connection without a socket: whatever the client sends, and in whatever pieces, what it costs is bounded."""

from __future__ import annotations

import asyncio
import gc
import json
import random
import weakref
from collections.abc import Iterator
from typing import Any

import pytest
import uvicorn
from uvicorn.server import ServerState

from launcher.front.http import connection as connection_module
from launcher.front.http.connection import CHUNKED_SEGMENT_BYTES, MAX_HEADER_FIELDS, MAX_PENDING_BYTES, HeldBytes
from launcher.front.http.connection import LimitedHttpProtocol as Protocol
from launcher.options import FrontOptions

pytestmark = pytest.mark.anyio

LIMIT = 2048
GET = b"GET /%d HTTP/1.1\r\nHost: front\r\n\r\n"
CHUNKED = b"POST /chunked HTTP/1.1\r\nHost: front\r\nTransfer-Encoding: chunked\r\n\r\n"
TRAILERS = b"X-Launcher-Priority: bulk\r\nContent-Type: text/html\r\nX-More: 1\r\n"
STREAM = b"".join(
    [
        GET % 1,
        b"POST /2 HTTP/1.1\r\nContent-Length: 9\r\n\r\n\r\n\r\nab\r\n\r",
        b"\r\n\r\n" + GET % 3,
        CHUNKED + b"4;name=value\r\n\r\n\r\n\r\n1\r\na\r\n0;last\r\n" + TRAILERS + b"\r\n",
        b"POST /5 HTTP/1.1\r\nConnection: Upgrade\r\nUpgrade: h2c\r\nContent-Length: 2\r\n\r\nab",
        CHUNKED + b"0\r\n\r\n",
        GET % 7,
    ]
)
BODIES = [("/1", b""), ("/2", b"\r\n\r\nab\r\n\r"), ("/3", b""), ("/chunked", b"\r\n\r\na"), ("/5", b"ab")]
BODIES += [("/chunked", b""), ("/7", b"")]


class MemoryTransport(asyncio.Transport):
    """Keeps what is written."""

    def __init__(self) -> None:
        super().__init__()
        self.written = b""
        self.closed = self.ended = False
        self.reading = True

    def write(self, data: Any) -> None:
        self.written += data

    def writelines(self, list_of_data: Any) -> None:
        self.written += b"".join(list_of_data)

    def get_write_buffer_size(self) -> int:
        return 0

    def can_write_eof(self) -> bool:
        return True

    def write_eof(self) -> None:
        self.ended = True

    def is_closing(self) -> bool:
        return self.closed

    def close(self) -> None:
        self.closed = True

    abort = close

    def pause_reading(self) -> None:
        self.reading = False

    def resume_reading(self) -> None:
        self.reading = True


class Connection:
    """A connection to an application that answers each request with its path and notes what it got."""

    def __init__(self, *, header_bytes: int = LIMIT, held_bytes: HeldBytes | None = None) -> None:
        self.requests: list[tuple[str, bytes]] = []
        self.headers: list[list[tuple[bytes, bytes]]] = []
        self.running = self.most_running = self.disconnects = 0
        self.blocked: asyncio.Event | None = None
        config = uvicorn.Config(self.app, interface="asgi3", log_config=None, access_log=False, proxy_headers=False)
        self.state = ServerState()
        self.held_bytes = held_bytes or HeldBytes()
        options = FrontOptions(header_bytes=header_bytes)
        self.protocol = Protocol(
            config=config, server_state=self.state, app_state={}, options=options, held_bytes=self.held_bytes
        )
        self.transport = MemoryTransport()
        self.protocol.connection_made(self.transport)

    async def app(self, scope: Any, receive: Any, send: Any) -> None:
        self.running += 1
        self.most_running = max(self.running, self.most_running)
        self.headers.append(scope["headers"])
        try:
            body, more = b"", True
            while more:
                message = await receive()
                if message["type"] == "http.disconnect":
                    self.disconnects += 1
                    return
                body += message["body"]
                more = message["more_body"]
            self.requests.append((scope["path"], body))
            if self.blocked is not None:
                await self.blocked.wait()
            path = scope["path"].encode()
            length = [(b"content-length", b"%d" % len(path))]
            await send({"type": "http.response.start", "status": 200, "headers": length})
            await send({"type": "http.response.body", "body": path})
        finally:
            self.running -= 1

    async def receive(self, *pieces: bytes) -> None:
        for piece in pieces:
            if not self.transport.closed:
                self.protocol.data_received(piece)
        await self.settle()

    async def settle(self) -> None:
        """Until everything that was received is answered, except what is blocked."""
        turns = 10
        while turns:
            await asyncio.sleep(0)
            busy = self.protocol._pending and self.blocked is None and not self.transport.closed
            turns = 10 if busy else turns - 1

    def statuses(self) -> list[int]:
        return [int(part[:3]) for part in self.transport.written.split(b"HTTP/1.1 ")[1:]]

    def paths(self) -> list[bytes]:
        return [part.split(b"\r\n\r\n")[1] for part in self.transport.written.split(b"HTTP/1.1 ")[1:]]

    def end(self) -> None:
        self.protocol.connection_lost(None)


@pytest.fixture
async def connect() -> Any:
    """Makes connections, which end with the test."""
    made: list[Connection] = []

    def connect_(**options: Any) -> Connection:
        made.append(Connection(**options))
        return made[-1]

    yield connect_
    for one in made:
        if one.blocked is not None:
            one.blocked.set()
        if one.protocol.parser is not None:
            one.end()
        await one.settle()


def pieces_of(data: bytes, size: int) -> Iterator[bytes]:
    return (data[at : at + size] for at in range(0, len(data), size))


def error_code(connection: Connection) -> tuple[int, str]:
    head, body = connection.transport.written.rsplit(b"\r\n\r\n", 1)
    return int(head.rsplit(b"HTTP/1.1 ", 1)[1][:3]), json.loads(body)["error"]["code"]


@pytest.mark.parametrize("size", [1, 2, 3, 5, 7, 50, len(STREAM)])
async def test_requests_are_the_same_in_whatever_pieces_they_arrive(connect: Any, size: int) -> None:
    connection = connect()
    await connection.receive(*pieces_of(STREAM, size))
    assert connection.requests == BODIES
    assert connection.statuses() == [200] * len(BODIES)
    assert connection.paths() == [path.encode() for path, _ in BODIES]
    assert not connection.transport.closed


async def test_requests_are_the_same_if_cut_at_any_two_places(connect: Any) -> None:
    source = random.Random(5)
    for first in range(len(STREAM)):
        connection = connect()
        second = source.randrange(len(STREAM))
        cuts = sorted((first, second))
        await connection.receive(STREAM[: cuts[0]], STREAM[cuts[0] : cuts[1]], STREAM[cuts[1] :])
        assert connection.requests == BODIES, cuts


@pytest.mark.parametrize("length", [b"0" * 5000 + b"2", b"2" + b" " * 5000])
@pytest.mark.parametrize("size", [1000, 10_000])
async def test_a_length_may_have_zeros_before_it_and_spaces_after_it(connect: Any, length: bytes, size: int) -> None:
    connection = connect(header_bytes=8000)
    await connection.receive(
        *pieces_of(b"POST /1 HTTP/1.1\r\nContent-Length: " + length + b"\r\n\r\nab" + GET % 2, size)
    )
    assert connection.requests == [("/1", b"ab"), ("/2", b"")]


def head_of(size: int) -> bytes:
    head = b"GET /long HTTP/1.1\r\nX-Padding: "
    return head + b"x" * (size - len(head) - 4) + b"\r\n\r\n"


@pytest.mark.parametrize("before", [b"", GET % 1, b"\r\n\r\n", CHUNKED + b"1\r\na\r\n0\r\n\r\n"])
@pytest.mark.parametrize("piece", [1, 100, LIMIT, 10 * LIMIT])
async def test_the_bytes_of_a_head_are_counted_exactly(connect: Any, before: bytes, piece: int) -> None:
    for excess in (0, 1):
        connection = connect()
        await connection.receive(*pieces_of(before + head_of(LIMIT + excess) + GET % 2, piece))
        answered = [] if before in (b"", b"\r\n\r\n") else [200]
        assert connection.statuses() == answered + ([431] if excess else [200, 200])
    assert error_code(connection) == (431, "head_too_large")
    assert connection.transport.ended


@pytest.mark.parametrize("head", [b"GET /", b"GET / HTTP/1.1\r\nX: ", b"GET / HTTP/1.1\r\n", b"GET / HTTP/1.1\r\nX:"])
@pytest.mark.parametrize("more", [b"x", b" ", b"a:\r\n"])
@pytest.mark.parametrize("piece", [1, 4096])
async def test_an_endless_head_is_refused(connect: Any, head: bytes, more: bytes, piece: int) -> None:
    connection = connect()
    await connection.receive(*pieces_of(head + more * (4096 // len(more)), piece))
    assert connection.statuses()[0] in (400, 431)
    assert connection.requests == []
    connection = connect(header_bytes=1 << 20)
    await connection.receive(head + more * 4096)
    assert connection.protocol._head_bytes <= 1 << 20


async def test_the_number_of_headers_is_limited(connect: Any) -> None:
    for excess in (0, 1):
        connection = connect(header_bytes=64 * 1024)
        await connection.receive(b"GET /1 HTTP/1.1\r\n" + b"a:\r\n" * (MAX_HEADER_FIELDS + excess) + b"\r\n")
        assert connection.statuses() == [431 if excess else 200]
    assert error_code(connection) == (431, "head_too_large")


@pytest.mark.parametrize("first", [CHUNKED, CHUNKED + b"2\r\n", CHUNKED + b"2\r\na"])
async def test_a_chunked_body_may_arrive_after_its_head(connect: Any, first: bytes) -> None:
    connection = connect()
    await connection.receive(first)
    await connection.receive((CHUNKED + b"2\r\nab\r\n0\r\n\r\n" + GET % 1)[len(first) :])
    assert connection.requests == [("/chunked", b"ab"), ("/1", b"")]


async def test_trailers_are_dropped(connect: Any) -> None:
    connection = connect()
    await connection.receive(CHUNKED + b"2\r\nab\r\n0\r\n" + TRAILERS + b"\r\n" + GET % 1)
    assert connection.requests == [("/chunked", b"ab"), ("/1", b"")]
    assert connection.headers == [
        [(b"host", b"front"), (b"transfer-encoding", b"chunked")],
        [(b"host", b"front")],
    ]


@pytest.mark.parametrize("field", [b"x: y\r\n", b"y"])
@pytest.mark.parametrize("piece", [1, 1000, 1 << 20])
async def test_trailers_count_as_part_of_the_head(connect: Any, field: bytes, piece: int) -> None:
    body = b"1\r\na\r\n0\r\nx: "
    allowed = field * ((LIMIT - len(CHUNKED) - len(body)) // len(field))
    connection = connect()
    await connection.receive(*pieces_of(CHUNKED + body + allowed.removesuffix(b"\r\n") + b"\r\n\r\n", piece))
    assert connection.statuses() == [200]
    connection = connect()
    await connection.receive(*pieces_of(CHUNKED + body + field * (LIMIT + 2 * CHUNKED_SEGMENT_BYTES), piece))
    assert error_code(connection) == (431, "head_too_large")
    assert connection.requests == []
    assert connection.disconnects == 1


@pytest.mark.parametrize("piece", [1, 1000, 1 << 20])
async def test_an_endless_chunk_extension_is_refused(connect: Any, piece: int) -> None:
    connection = connect()
    data = CHUNKED + b"1;" + b"x" * (LIMIT + 2 * CHUNKED_SEGMENT_BYTES)
    await connection.receive(*pieces_of(data, piece))
    assert error_code(connection) == (431, "head_too_large")


@pytest.mark.parametrize("body", [b"x" * 20_000, b"\r\n" * 10_000, b"0\r\n\r\n" * 4_000])
@pytest.mark.parametrize("chunk", [1, 7, 20_000])
async def test_chunks_of_any_size_are_joined(connect: Any, body: bytes, chunk: int) -> None:
    connection = connect()
    chunks = b"".join(b"%x;ext=1\r\n%b\r\n" % (len(part), part) for part in pieces_of(body, chunk))
    await connection.receive(*pieces_of(CHUNKED + chunks + b"0\r\n\r\n" + GET % 1, 65_536))
    assert connection.requests == [("/chunked", body), ("/1", b"")]


async def test_a_body_in_many_segments_lets_other_connections_take_turns(connect: Any) -> None:
    connection = connect()
    body = b"\r\n\r\n" * 10_000
    connection.protocol.data_received(CHUNKED + b"%x\r\n%b\r\n0\r\n\r\n" % (len(body), body))
    assert connection.protocol._pending
    await connection.settle()
    assert connection.requests == [("/chunked", body)]


async def test_pipelined_requests_are_answered_one_at_a_time_and_in_order(connect: Any) -> None:
    connection = connect()
    await connection.receive(b"".join(GET % number for number in range(20_000)))
    assert connection.paths() == [b"/%d" % number for number in range(20_000)]
    assert connection.most_running == 1


async def test_reading_stays_paused_until_all_pipelined_requests_are_parsed(connect: Any) -> None:
    connection = connect()
    connection.blocked = asyncio.Event()
    await connection.receive(GET % 0 * 3)
    assert connection.transport.reading  # so that a disconnect is noticed
    await connection.receive(b"".join(GET % number for number in range(MAX_PENDING_BYTES // 20)))
    held = len(connection.protocol._pending)
    assert (held > MAX_PENDING_BYTES, connection.transport.reading) == (True, False)
    release, connection.blocked = connection.blocked, None
    release.set()
    while connection.protocol._pending:
        assert not connection.transport.reading
        await asyncio.sleep(0)
    await connection.settle()
    assert connection.transport.reading
    assert connection.statuses() == [200] * (3 + MAX_PENDING_BYTES // 20)


async def test_a_full_buffer_lets_other_connections_take_turns(connect: Any) -> None:
    connection = connect()
    size = connection_module.RECEIVE_BUFFER_BYTES
    head = b"POST /1 HTTP/1.1\r\nContent-Length: %d\r\n\r\n" % size
    connection.protocol.data_received(head + b"x" * (size - len(head)))
    assert not connection.transport.reading
    await connection.settle()
    assert connection.transport.reading
    await connection.receive(b"x" * len(head))
    assert connection.requests == [("/1", b"x" * size)]


async def test_an_answered_request_is_not_kept_by_its_idle_connection(connect: Any) -> None:
    connection = connect()
    for data in (head_of(LIMIT), b"POST /1 HTTP/1.1\r\nContent-Length: 1\r\n\r\na"):
        await connection.receive(data)
        protocol = connection.protocol
        assert (protocol.cycle, protocol.scope, protocol.headers, protocol.url) == (None, None, None, b"")


STAGES = {
    "connected": b"",
    "in a head": b"GET / HTTP/1.1\r\nHost: fr",
    "in a body": b"POST / HTTP/1.1\r\nContent-Length: 9\r\n\r\nab",
    "in a chunked body": CHUNKED + b"5\r\nab",
    "in trailers": CHUNKED + b"1\r\na\r\n0\r\nx: y",
    "while answering": GET % 1,
    "with pipelined requests": GET % 1 * 5,
    "with many pipelined requests": GET % 1 * 5_000,
    "after a response": GET % 1,
    "after a refusal": b"no HTTP\r\n\r\n",
    "half-closed": GET % 1,
    "half-closed with pipelined requests": GET % 1 * 5,
}


@pytest.mark.parametrize("error", [None, ConnectionResetError()])
@pytest.mark.parametrize("stage", STAGES)
async def test_nothing_of_a_connection_is_kept_after_it_ends(connect: Any, stage: str, error: Any) -> None:
    connection = connect()
    blocked = connection.blocked = None if stage == "after a response" else asyncio.Event()
    await connection.receive(STAGES[stage])
    if stage.startswith("half-closed"):
        assert connection.protocol.eof_received()
    protocol = weakref.ref(connection.protocol)
    gc.collect()
    gc.disable()
    try:
        connection.protocol.connection_lost(error)
        if blocked is not None:
            blocked.set()
        await connection.settle()
        del connection.protocol
        assert protocol() is None
        assert not connection.state.connections
        assert not connection.state.tasks
        assert connection.running == 0
        assert connection.held_bytes.used == 0
    finally:
        gc.enable()
        connection.protocol = Connection().protocol


async def test_an_invalid_body_is_refused_and_its_request_cancelled(connect: Any) -> None:
    connection = connect()
    await connection.receive(CHUNKED + b"2\r\nab\r\n", b"no size\r\n")
    assert error_code(connection) == (400, "invalid_http")
    assert (connection.statuses(), connection.disconnects, connection.requests) == ([400], 1, [])
    await connection.receive(b"more" * 1000)
    assert not connection.transport.closed  # so that the client can read the response
    assert connection.protocol._pending == b""


async def test_invalid_data_after_a_request_does_not_precede_its_response(connect: Any) -> None:
    connection = connect()
    connection.blocked = asyncio.Event()
    await connection.receive(GET % 1 + b"no HTTP\r\n\r\n")
    assert connection.transport.written == b""
    connection.blocked.set()
    await connection.settle()
    assert connection.statuses() == [200, 400]


async def test_a_half_closed_client_gets_all_its_responses(connect: Any) -> None:
    rest = (b"GET /", b"POST / HTTP/1.1\r\nContent-Length: 9\r\n\r\nab", CHUNKED + b"1\r\na\r\n0\r\n")
    cases = [(GET % 1, 1), (GET % 1 * 3, 3), (GET % 1 + b"no HTTP\r\n\r\n", 2), *((GET % 1 + one, 1) for one in rest)]
    for data, count in cases:
        connection = connect()
        connection.blocked = asyncio.Event()
        await connection.receive(data)
        assert connection.protocol.eof_received()
        connection.blocked.set()
        connection.blocked = None
        await connection.settle()
        assert len(connection.statuses()) == count
        assert connection.transport.closed or connection.transport.ended


async def test_a_connection_ends_with_its_client_if_no_request_is_complete(connect: Any) -> None:
    for data in (b"", b"GET / HT", b"POST / HTTP/1.1\r\nContent-Length: 9\r\n\r\nab", CHUNKED + b"2\r\nab\r\n0\r\n"):
        connection = connect()
        await connection.receive(data)
        assert not connection.protocol.eof_received()
    connection = connect()
    await connection.receive(GET % 1)
    assert not connection.protocol.eof_received()


LARGE_HEAD = head_of(10_000)


@pytest.mark.parametrize(
    "data", [LARGE_HEAD[:-1], LARGE_HEAD, CHUNKED.replace(b"Host", LARGE_HEAD[20:-4] + b"\r\nHost")]
)
async def test_large_heads_of_many_connections_are_refused_and_small_ones_are_not(connect: Any, data: bytes) -> None:
    held = HeldBytes(limit=45_000)
    connections = [connect(header_bytes=64 * 1024, held_bytes=held) for _ in range(8)]
    for connection in connections:
        connection.blocked = asyncio.Event()
        await connection.receive(data)
    assert 39_000 < held.used <= 45_000
    assert [connection.statuses() for connection in connections] == [[]] * 4 + [[429]] * 4
    assert error_code(connections[-1]) == (429, "too_much_inside")
    assert b"retry-after: 1\r\n" in connections[-1].transport.written
    small = connect(held_bytes=held)
    await small.receive(GET % 1)
    assert small.statuses() == [200]
    for connection in connections:
        connection.end()
    assert held.used == 0


async def test_large_heads_are_held_until_the_response(connect: Any) -> None:
    connection = connect(header_bytes=64 * 1024)
    connection.blocked = asyncio.Event()
    await connection.receive(LARGE_HEAD)
    assert connection.held_bytes.used == len(LARGE_HEAD)
    connection.blocked.set()
    await connection.settle()
    assert connection.held_bytes.used == 0


async def test_connections_with_many_pipelined_requests_are_closed_if_all_hold_too_much(connect: Any) -> None:
    held = HeldBytes(limit=50_000)
    connections = [connect(held_bytes=held) for _ in range(8)]
    for connection in connections:
        connection.blocked = asyncio.Event()
        await connection.receive(GET % 1 + GET % 2 * 300)
    assert [connection.transport.closed for connection in connections] == [False] * 5 + [True] * 3
    for connection in connections[5:]:
        connection.end()
    assert 40_000 < held.used <= 50_000
    for connection in connections[:5]:
        connection.blocked.set()
        connection.blocked = None
        await connection.settle()
        assert connection.statuses() == [200] * 301
    assert held.used == 0
