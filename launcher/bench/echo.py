"""The minimal HTTP server: a fixed response, optionally after a round trip to a worker process.

Its latencies are the lower bound for any server on this machine: the cost of the load generator, the sockets and waking
the processes. It reads nothing of a request but the method. The worker receives as many bytes as the token ids of an
average text have, and returns the bytes of one vector.
"""

from __future__ import annotations

import asyncio
import contextlib
import multiprocessing
import os
import signal
import socket
from collections import deque
from typing import cast

import anyio
import httptools
import orjson

from launcher.errors import LauncherError, UsageError
from launcher.options.bench import EchoOptions

REQUEST_BYTES = 200
RECEIVE_BYTES = 256 * 1024


def run_echo(options: EchoOptions) -> None:
    """Serve until the process is terminated.

    Raises ``UsageError`` for a port or a cpu that cannot be used, ``LauncherError`` if the worker exits.
    """
    worker = _start_worker(options) if options.worker_cpu is not None else None
    try:
        listener = socket.create_server(("127.0.0.1", options.port))
    except OSError as error:
        raise UsageError(
            f"--port {options.port}: cannot be bound on 127.0.0.1 ({error.strerror}); use a free port"
        ) from error
    anyio.run(_serve, listener, worker, options.width, backend_options={"use_uvloop": True})


def _start_worker(options: EchoOptions) -> socket.socket:
    """The socket to a process that is bound to its cpu and ends with the socket."""
    assert options.worker_cpu is not None
    own = os.sched_getaffinity(0)
    ours, theirs = socket.socketpair()
    try:
        os.sched_setaffinity(0, {options.worker_cpu})  # before the fork, so that an error is raised here
    except OSError as error:
        raise UsageError(
            f"--worker-cpu {options.worker_cpu}: cannot be used ({error.strerror}); "
            "must be a cpu that is online and in the cpuset"
        ) from error
    try:
        fork = multiprocessing.get_context("fork")
        fork.Process(target=_work, args=(theirs, ours, options.width), daemon=True).start()
    finally:
        os.sched_setaffinity(0, own)
    theirs.close()
    ours.setblocking(False)
    return ours


def _work(channel: socket.socket, front: socket.socket, width: int) -> None:
    front.close()  # otherwise the end of the front would not be noticed
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is sent to both processes; the front ends on it
    vector, waiting = bytes(4 * width), 0
    with contextlib.suppress(ConnectionError):
        while received := len(channel.recv(RECEIVE_BYTES)):
            waiting += received
            while waiting >= REQUEST_BYTES:
                waiting -= REQUEST_BYTES
                channel.sendall(vector)


async def _serve(listener: socket.socket, worker: socket.socket | None, width: int) -> None:
    loop = asyncio.get_running_loop()
    replies = _Replies(width)
    channel = None
    if worker is not None:
        _, channel = await loop.create_unix_connection(
            lambda: _WorkerChannel(replies.embedding, 4 * width), sock=worker
        )
    await loop.create_server(lambda: _Connection(replies, channel), sock=listener)
    await (channel.lost if channel is not None else loop.create_future())
    raise LauncherError("the worker process exited, so no more requests can be answered")


class _Replies:
    """The responses, with headers and body."""

    def __init__(self, width: int) -> None:
        entry = {"object": "embedding", "index": 0, "embedding": [0.012345678] * width}
        usage = {"prompt_tokens": 0, "total_tokens": 0}
        self.embedding = _reply({"object": "list", "data": [entry], "model": "echo", "usage": usage})
        self.models = _reply({"object": "list", "data": [{"id": "echo", "object": "model"}]})


def _reply(content: object) -> bytes:
    body = orjson.dumps(content)
    return b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n%b" % (len(body), body)


class _WorkerChannel(asyncio.Protocol):
    """The channel to the worker: a FIFO of waiting clients."""

    def __init__(self, reply: bytes, vector_bytes: int) -> None:
        self._reply, self._vector_bytes = reply, vector_bytes
        self._received = 0
        self._waiting: deque[asyncio.WriteTransport] = deque()
        self.lost: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.WriteTransport, transport)

    def connection_lost(self, exc: Exception | None) -> None:
        self.lost.set_result(None)

    def ask(self, client: asyncio.WriteTransport) -> None:
        self._waiting.append(client)
        self._transport.write(bytes(REQUEST_BYTES))

    def data_received(self, data: bytes) -> None:
        self._received += len(data)
        while self._received >= self._vector_bytes:
            self._received -= self._vector_bytes
            client = self._waiting.popleft()
            if not client.is_closing():
                client.write(self._reply)


class _Connection(asyncio.Protocol):
    def __init__(self, replies: _Replies, channel: _WorkerChannel | None) -> None:
        self._replies, self._channel = replies, channel
        self._parser = httptools.HttpRequestParser(self)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.WriteTransport, transport)

    def data_received(self, data: bytes) -> None:
        try:
            self._parser.feed_data(data)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade):
            self._transport.close()

    def on_message_complete(self) -> None:
        if self._parser.get_method() == b"GET":
            self._transport.write(self._replies.models)
        elif self._channel is not None:
            self._channel.ask(self._transport)
        else:
            self._transport.write(self._replies.embedding)
