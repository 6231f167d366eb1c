"""The server on a real socket: connections, slow and misbehaving clients, and shutdown."""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import AsyncIterator
from typing import Any

import anyio
import httpx
import openai
import pytest

from launcher.core.protocol.messages import Run
from launcher.front.http.app import create_app
from launcher.front.http.http_server import HttpServer
from launcher.options import FrontOptions

pytestmark = pytest.mark.anyio


class Running:
    """A front with its HTTP server on an ephemeral port."""

    def __init__(self, front: Any, model_info: Any, options: FrontOptions, sweep_seconds: int) -> None:
        self.listener = sock = socket.create_server(("127.0.0.1", 0))
        self.front = front
        self.port = sock.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        services = front.services(model_info, options)
        self.tokenizer = services.tokenizer
        self.app = create_app(services)
        self.server = HttpServer(self.app, sock, options, sweep_seconds=sweep_seconds)
        self.task = asyncio.ensure_future(self.server.run())

    async def connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        return await asyncio.open_connection("127.0.0.1", self.port)

    async def stop(self) -> None:
        if not self.task.done():
            await asyncio.wait_for(self.server.stop(2), 60)
        await asyncio.wait_for(self.task, 60)


@pytest.fixture
async def start(make_front: Any, model_info: Any) -> AsyncIterator[Any]:
    """Starts a server in front of one worker."""
    started: list[Running] = []

    def start_(
        options: FrontOptions = FrontOptions(),  # noqa: B008  # frozen
        *,
        queue_items: int = 10_000,
        sweep_seconds: int = 5,
    ) -> Running:
        running = Running(make_front(queue_items=queue_items), model_info, options, sweep_seconds)
        started.append(running)
        return running

    yield start_
    for running in started:
        await running.stop()


def request(body: bytes, *headers: str, path: str = "/v1/embeddings") -> bytes:
    lines = [f"POST {path} HTTP/1.1", "Host: front", "Content-Type: application/json", *headers]
    return "\r\n".join([*lines, f"Content-Length: {len(body)}", "", ""]).encode() + body


async def answer_of(reader: asyncio.StreamReader) -> tuple[int, dict[str, str], bytes]:
    head = (await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 60)).decode()
    status_line, *lines = head.strip().split("\r\n")
    headers = {name.lower(): value.strip() for name, value in (line.split(":", 1) for line in lines)}
    body = await asyncio.wait_for(reader.readexactly(int(headers.get("content-length", "0"))), 60)
    return int(status_line.split()[1]), headers, body


GOOD = b'{"input": "w1"}'


async def test_the_official_openai_client_works(start: Any) -> None:
    running = start()
    await running.front.serving()
    async with openai.AsyncOpenAI(base_url=f"{running.url}/v1", api_key="none", max_retries=0) as client:
        texts = [" ".join(["w1"] * (1 + number % 12)) for number in range(100)]
        many = await client.embeddings.create(model="words", input=texts)  # this client requests base64
        assert [entry.index for entry in many.data] == list(range(100))
        one = await client.embeddings.create(model="words", input="w1", encoding_format="float")
        assert one.data[0].embedding == pytest.approx(many.data[0].embedding)
        assert one.usage.prompt_tokens == 3
        assert [model.id for model in (await client.models.list()).data] == ["words"]
        with pytest.raises(openai.NotFoundError, match="gpt-4"):
            await client.embeddings.create(model="gpt-4", input="w1")
        with pytest.raises(openai.BadRequestError, match="empty string"):
            await client.embeddings.create(model="words", input="")


async def test_a_connection_stays_open_after_errors_and_accepts_pipelined_requests(start: Any) -> None:
    running = start()
    await running.front.serving()
    reader, writer = await running.connect()
    for body, status in ((GOOD, 200), (b"", 400), (b"{", 400), (GOOD, 200)):
        writer.write(request(body))
        assert (await answer_of(reader))[0] == status
    writer.write(request(GOOD) * 5 + request(b'{"input": []}') + request(GOOD))
    assert [(await answer_of(reader))[0] for _ in range(7)] == [200] * 5 + [400, 200]
    writer.close()


@pytest.mark.parametrize("chunked", [False, True])
@pytest.mark.parametrize("connection", ["Upgrade", "keep-alive, Upgrade, HTTP2-Settings"])
async def test_an_upgrade_offer_is_ignored_and_the_body_is_read(
    connection: str, chunked: bool, start: Any, caplog: pytest.LogCaptureFixture
) -> None:
    running = start()
    await running.front.serving()
    reader, writer = await running.connect()
    offer = (f"Connection: {connection}", "Upgrade: h2c", "HTTP2-Settings: AAEAAEAAAAIAAAAB")
    whole = request(GOOD, *offer)
    if chunked:
        head = whole.split(b"Content-Length")[0] + b"Transfer-Encoding: chunked\r\n\r\n"
        whole = head + b"%x\r\n%b\r\n0\r\n\r\n" % (len(GOOD), GOOD)
    writer.write(whole)
    assert (await answer_of(reader))[0] == 200
    for byte in whole:  # whatever the pieces in which it comes
        writer.write(bytes([byte]))
        await writer.drain()
        await asyncio.sleep(0)
    assert (await answer_of(reader))[0] == 200
    writer.write(whole + request(GOOD) + whole + whole)
    for _ in range(4):
        status, headers, _ = await answer_of(reader)
        assert (status, "connection" in headers) == (200, False)
    assert caplog.records == []
    writer.close()


async def test_connect_is_refused(start: Any) -> None:
    running = start()
    for target in (b"elsewhere:443", b"/health"):
        reader, writer = await running.connect()
        writer.write(b"CONNECT %b HTTP/1.1\r\nHost: elsewhere\r\n\r\n" % target)
        status, _, body = await answer_of(reader)
        assert (status, json.loads(body)["error"]["code"]) == (400, "invalid_http")
        assert await asyncio.wait_for(reader.read(), 60) == b""
        writer.close()


async def test_a_request_is_cancelled_when_its_client_disconnects(start: Any, until: Any) -> None:
    running = start()
    worker = await running.front.ready()
    reader, writer = await running.connect()
    writer.write(request(GOOD))
    run, body = await worker.expect(Run)
    writer.close()
    await until(lambda: running.front.dispatcher.in_flight == 0)
    running.front.scheduler.check()
    assert b'launcher_requests_total{route="/v1/embeddings",status="499"} 1.0' in running.front.metrics.render()
    await worker.answer(run, body)  # late: nobody waits
    worker.serve_in_background()
    async with httpx.AsyncClient(base_url=running.url) as client:
        assert (await client.post("/v1/embeddings", json={"input": "w1"})).status_code == 200
    assert reader is not None


async def test_a_request_with_a_large_body_is_cancelled_when_its_client_disconnects(
    start: Any, until: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    # uvicorn stops reading when this much data has not been consumed: here with the last piece.
    monkeypatch.setattr("uvicorn.protocols.http.httptools_impl.HIGH_WATER_LIMIT", 100)
    running = start()
    worker = await running.front.ready()
    _, writer = await running.connect()
    whole = request(b'{"input": "w1"%b}' % (b" " * 1_000))
    for piece in (whole[:-500], whole[-500:]):
        writer.write(piece)
        await writer.drain()
        await asyncio.sleep(0.05)
    await worker.expect(Run)
    assert running.front.dispatcher.in_flight == 1
    writer.close()
    await until(lambda: running.front.dispatcher.in_flight == 0)


@pytest.mark.parametrize("served", [0, 1])
async def test_pipelined_requests_are_dropped_when_their_client_disconnects(
    served: int, start: Any, until: Any, caplog: pytest.LogCaptureFixture
) -> None:
    running = start()
    worker = await running.front.ready()
    reader, writer = await running.connect()
    writer.write(request(GOOD) * 3)
    for _ in range(served):
        await worker.answer(*await worker.expect(Run))
        assert (await answer_of(reader))[0] == 200
    run, body = await worker.expect(Run)
    writer.close()
    await until(lambda: running.front.dispatcher.in_flight == 0)
    await worker.answer(run, body)  # late: nobody waits
    with pytest.raises(asyncio.TimeoutError):  # Python 3.10 has two
        await asyncio.wait_for(worker.receive(), 0.1)  # the other requests are not computed
    assert caplog.records == []


LONG = b'{"truncate": true, "input": ["%b"]}' % b'", "'.join([b"w1 " * 1_200] * 2_000)


async def test_a_request_that_would_be_refused_is_not_tokenized(start: Any) -> None:
    running = start()
    await running.front.ready()
    running.front.dispatcher.begin_drain()
    async with httpx.AsyncClient(base_url=running.url) as client:
        for body in (LONG, GOOD):
            headers = {"content-type": "application/json"}
            answer = await client.post("/v1/embeddings", content=body, headers=headers)
            assert (answer.status_code, answer.json()["error"]["code"]) == (503, "draining")
    assert not running.tokenizer._threads._threads  # none was ever needed


async def test_inputs_being_tokenized_count_against_the_queue(start: Any) -> None:
    running = start(queue_items=2_500)
    (await running.front.ready()).serve_in_background()
    writers = []
    statuses = []
    for _ in range(8):
        reader, writer = await running.connect()
        writer.write(request(LONG))
        writers.append((reader, writer))
    for reader, writer in writers:
        statuses.append((await answer_of(reader))[0])
        writer.close()
    assert set(statuses) == {200, 429}


async def test_tokenizing_is_cancelled_when_the_client_disconnects(start: Any, until: Any) -> None:
    running = start()
    await running.front.ready()
    _, writer = await running.connect()
    writer.write(request(LONG))
    await until(lambda: running.tokenizer.pending == 2_000)
    writer.close()
    await until(lambda: running.tokenizer.pending == 0)
    await until(lambda: b'status="499"} 1.0' in running.front.metrics.render())
    assert running.front.dispatcher.in_flight == 0


async def test_a_client_that_sends_too_much_still_receives_the_error(start: Any) -> None:
    running = start(FrontOptions(body_bytes=1_000))
    await running.front.serving()
    async with httpx.AsyncClient(base_url=running.url) as client:
        big = await client.post(
            "/v1/embeddings", content=b"x" * 3_000_000, headers={"content-type": "application/json"}
        )
        assert (big.status_code, big.json()["error"]["code"]) == (413, "body_too_large")
        assert big.headers["connection"] == "close"
        assert (await client.post("/v1/embeddings", json={"input": "w1"})).status_code == 200


async def test_a_body_announced_as_too_large_is_refused_before_100_continue(start: Any) -> None:
    running = start(FrontOptions(body_bytes=1_000))
    reader, writer = await running.connect()
    writer.write(
        b"POST /v1/embeddings HTTP/1.1\r\nHost: front\r\nContent-Type: application/json\r\n"
        b"Content-Length: 9000000000\r\nExpect: 100-continue\r\n\r\n"
    )
    status, _, body = await answer_of(reader)
    assert (status, json.loads(body)["error"]["code"]) == (413, "body_too_large")
    writer.close()


async def test_an_endless_chunked_body_is_refused(start: Any) -> None:
    running = start(FrontOptions(body_bytes=1_000))
    reader, writer = await running.connect()
    writer.write(
        b"POST /v1/embeddings HTTP/1.1\r\nHost: front\r\nContent-Type: application/json\r\n"
        b"Transfer-Encoding: chunked\r\n\r\n"
    )
    chunk = b"1000\r\n" + b"x" * 0x1000 + b"\r\n"
    writer.write(chunk)
    status, headers, _ = await answer_of(reader)
    assert (status, headers["connection"]) == (413, "close")

    async def go_on() -> None:
        while True:
            writer.write(chunk * 256)
            await writer.drain()

    with pytest.raises(ConnectionError):
        await asyncio.wait_for(go_on(), 30)
    writer.close()


UNFINISHED = {"nothing": b"", "head": b"POST /v1/embeddings HTTP/1.1\r\nHost:", "body": request(GOOD)[:-5]}


@pytest.mark.parametrize("sent", UNFINISHED.values(), ids=UNFINISHED.keys())
async def test_a_slow_client_is_disconnected(sent: bytes, start: Any, until: Any) -> None:
    running = start(FrontOptions(request_seconds=0.02))
    reader, writer = await running.connect()
    writer.write(sent)
    ended = asyncio.ensure_future(reader.read())
    await sweep_until(running, ended.done, until)
    assert ended.result() == b""
    writer.close()


async def sweep_until(running: Any, condition: Any, until: Any) -> None:
    async def sweep() -> None:
        while True:
            await running.server.sweep()
            await asyncio.sleep(0.005)

    sweeping = asyncio.ensure_future(sweep())
    await until(condition)
    sweeping.cancel()


async def test_a_client_that_is_slow_between_requests_of_a_connection_is_disconnected(start: Any, until: Any) -> None:
    running = start(FrontOptions(request_seconds=0.02))
    reader, writer = await running.connect()
    writer.write(b"GET /health HTTP/1.1\r\nHost: front\r\n\r\n")
    assert (await answer_of(reader))[0] == 200
    writer.write(b"GET /hea")
    ended = asyncio.ensure_future(reader.read())
    await sweep_until(running, ended.done, until)
    writer.close()


async def test_waiting_and_idle_clients_are_not_slow(start: Any, until: Any) -> None:
    running = start(FrontOptions(request_seconds=0.02))
    worker = await running.front.ready()
    resting_reader, resting_writer = await running.connect()
    resting_writer.write(b"GET /health HTTP/1.1\r\nHost: front\r\n\r\n")
    assert (await answer_of(resting_reader))[0] == 200
    reader, writer = await running.connect()
    writer.write(request(GOOD))
    run, body = await worker.expect(Run)
    slow_reader, slow_writer = await running.connect()
    ended = asyncio.ensure_future(slow_reader.read())
    # A client with an incomplete request was disconnected in the meantime.
    await sweep_until(running, ended.done, until)
    await worker.answer(run, body)
    assert (await answer_of(reader))[0] == 200
    resting_writer.write(b"GET /health HTTP/1.1\r\nHost: front\r\n\r\n")
    assert (await answer_of(resting_reader))[0] == 200
    for one in (writer, slow_writer, resting_writer):
        one.close()


@pytest.mark.slow
async def test_the_server_sweeps_slow_clients_itself(start: Any) -> None:
    running = start(FrontOptions(request_seconds=0.05), sweep_seconds=0)
    reader, writer = await running.connect()
    assert await asyncio.wait_for(reader.read(), 60) == b""
    writer.close()


async def unread(running: Any) -> socket.socket:
    """A client that reads none of its responses, which exceed the buffers of the system."""
    running.listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)  # connections inherit it
    sock = socket.socket()
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    sock.setblocking(False)
    loop = asyncio.get_running_loop()
    await loop.sock_connect(sock, ("127.0.0.1", running.port))
    await loop.sock_sendall(sock, b"GET /docs HTTP/1.1\r\nHost: front\r\n\r\n" * 20)
    return sock


def unsent(running: Any) -> int:
    return sum(connection.transport.sent()[1] for connection in running.server._server.server_state.connections)


async def test_a_client_that_does_not_read_is_disconnected(start: Any, until: Any) -> None:
    running = start(FrontOptions(request_seconds=0.05))
    await running.front.serving()
    sock = await unread(running)
    await until(lambda: unsent(running) > 0)
    await sweep_until(running, lambda: not running.server._server.server_state.connections, until)
    await until(lambda: not running.server._server.server_state.tasks)
    sock.close()


async def test_a_client_that_reads_slowly_is_kept(start: Any, until: Any) -> None:
    running = start(FrontOptions(request_seconds=10))
    sock = await unread(running)
    await until(lambda: unsent(running) > 0)
    (connection,) = running.server._server.server_state.connections
    loop = asyncio.get_running_loop()
    connection.close_if_slow(0)
    for round_ in range(1, 4):
        before, _ = connection.transport.sent()
        while connection.transport.sent()[0] == before:
            await loop.sock_recv(sock, 1 << 10)
            await asyncio.sleep(0)
        connection.close_if_slow(11 * round_)
        assert unsent(running) > 0
        assert not connection.transport.is_closing()
    connection.close_if_slow(11 * 4)
    assert connection.transport.is_closing()
    sock.close()


async def test_endless_headers_are_refused(start: Any) -> None:
    running = start()
    reader, writer = await running.connect()
    writer.write(b"GET /health HTTP/1.1\r\n")
    answer = asyncio.ensure_future(answer_of(reader))
    piece = b"x-padding: " + b"x" * 1000 + b"\r\n"
    for _ in range(2 * FrontOptions().header_bytes // len(piece)):
        writer.write(piece)
        await asyncio.wait({answer}, timeout=0.002)
        if answer.done() or writer.is_closing():
            break
    status, headers, body = await answer
    assert (status, headers["connection"]) == (431, "close")
    assert json.loads(body)["error"]["code"] == "head_too_large"
    writer.close()


async def test_invalid_http_is_refused_in_the_default_error_shape(start: Any) -> None:
    running = start()
    reader, writer = await running.connect()
    writer.write(b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03")  # a client that tries TLS
    status, _, body = await answer_of(reader)
    assert (status, json.loads(body)["error"]["code"]) == (400, "invalid_http")
    writer.close()


async def test_a_path_that_is_not_ascii_is_refused(start: Any) -> None:
    running = start()
    for path in ("/%ff%fe", "/\u00fc", "//evil", "/" + "x" * 5000):
        reader, writer = await running.connect()
        writer.write(f"GET {path} HTTP/1.1\r\nHost: front\r\n\r\n".encode())
        status, _, body = await answer_of(reader)
        assert status in (400, 404)
        assert json.loads(body)["error"]["message"]
        writer.close()


async def test_stop_answers_pending_requests_and_closes_idle_connections(start: Any) -> None:
    running = start()
    worker = await running.front.ready()
    idle_reader, idle_writer = await running.connect()
    idle_writer.write(b"GET /health HTTP/1.1\r\nHost: front\r\n\r\n")
    assert (await answer_of(idle_reader))[0] == 200
    reader, writer = await running.connect()
    writer.write(request(GOOD))
    run, body = await worker.expect(Run)
    stopping = asyncio.ensure_future(running.server.stop(10))
    assert await asyncio.wait_for(idle_reader.read(), 60) == b""
    with pytest.raises(ConnectionError):
        await running.connect()
    assert not stopping.done()
    await worker.answer(run, body)
    status, headers, _ = await answer_of(reader)
    assert (status, headers["connection"]) == (200, "close")
    writer.close()
    await asyncio.wait_for(stopping, 60)
    assert running.task.done()
    idle_writer.close()


async def test_during_a_drain_connections_close_after_their_response(start: Any) -> None:
    running = start()
    worker = await running.front.ready()
    connections = [await running.connect() for _ in range(4)]
    for reader, writer in connections:
        writer.write(b"GET /health HTTP/1.1\r\nHost: front\r\n\r\n")
        status, headers, _ = await answer_of(reader)
        assert (status, "connection" in headers) == (200, False)
    connections[0][1].write(request(GOOD))
    run, body = await worker.expect(Run)
    running.front.dispatcher.begin_drain()
    connections[1][1].write(request(GOOD))
    connections[2][1].write(request(b"{}"))
    connections[3][1].write(b"GET /health HTTP/1.1\r\nHost: front\r\n\r\n")
    await worker.answer(run, body)
    for (reader, writer), expected in zip(connections, (200, 503, 400, 200), strict=True):
        status, headers, _ = await answer_of(reader)
        assert (status, headers["connection"]) == (expected, "close")
        assert await asyncio.wait_for(reader.read(), 60) == b""
        writer.close()


async def test_stop_waits_no_longer_than_its_timeout(start: Any) -> None:
    running = start()
    worker = await running.front.ready()
    _, writer = await running.connect()
    writer.write(request(GOOD))
    await worker.expect(Run)
    with anyio.fail_after(60):
        await running.server.stop(0.1)
    writer.close()


async def test_a_server_that_never_ran_can_be_stopped(make_front: Any, model_info: Any) -> None:
    sock = socket.create_server(("127.0.0.1", 0))
    server = HttpServer(create_app(make_front().services(model_info, FrontOptions())), sock, FrontOptions())
    await server.stop(1)
    assert sock.fileno() == -1


async def test_the_limits_of_connections_are_those_of_the_options(start: Any, until: Any) -> None:
    running = start(FrontOptions(header_bytes=1024, keep_alive_seconds=0.05, backlog=7))
    reader, writer = await running.connect()
    writer.write(b"GET /health HTTP/1.1\r\n")
    connections = running.server._server.server_state.connections
    await until(lambda: any(connection._head_bytes for connection in connections))
    writer.write(b"x-padding: " + b"x" * 1100)
    status, _, body = await answer_of(reader)
    assert (status, "more than 1024 bytes" in json.loads(body)["error"]["message"]) == (431, True)
    writer.close()
    reader, writer = await running.connect()
    writer.write(b"GET /health HTTP/1.1\r\nHost: front\r\n\r\n")
    assert (await answer_of(reader))[0] == 200
    assert await asyncio.wait_for(reader.read(), 60) == b""  # idle
    writer.close()
    assert running.server._server.config.backlog == 7


async def test_the_memory_for_all_bodies_is_that_of_the_options(start: Any, until: Any) -> None:
    running = start(FrontOptions(body_bytes=1_000, total_body_bytes=1_500))
    await running.front.ready()
    held = [await running.connect()]
    for _, writer in held:
        writer.write(request(b"x" * 900)[:-200])
    memory = running.app._inference["/v1/embeddings"]._body_memory
    await until(lambda: memory.used == 700)
    reader, writer = await running.connect()
    writer.write(request(b"x" * 900))
    status, _, body = await answer_of(reader)
    assert (status, json.loads(body)["error"]["code"]) == (429, "too_much_inside")
    for _, one in (*held, (reader, writer)):
        one.close()


async def test_the_number_of_tokenizer_threads_is_that_of_the_options(start: Any) -> None:
    running = start(FrontOptions(tokenizer_threads=3))
    assert running.tokenizer._threads._max_workers == 3


async def test_other_limits_of_connections_leave_their_number_limited(make_front: Any, model_info: Any) -> None:
    sock = socket.create_server(("127.0.0.1", 0))
    port = sock.getsockname()[1]
    app = create_app(make_front().services(model_info, FrontOptions()))
    server = HttpServer(app, sock, FrontOptions(), max_connections=0)
    running = asyncio.ensure_future(server.run())
    for _ in range(2):
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        assert (await answer_of(reader))[0] == 503
        writer.close()
        server.reconfigure(FrontOptions(request_seconds=5))
    assert server.refused == 2
    await asyncio.wait_for(server.stop(2), 60)
    await asyncio.wait_for(running, 60)
