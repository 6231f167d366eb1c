"""Clients on bare sockets, for what no HTTP library would send, and what the server needs meanwhile."""

from __future__ import annotations

import contextlib
import errno
import json
import socket
import struct
import threading
from collections.abc import Iterator
from typing import Any

import psutil

from tests.e2e.running import Running

MEBIBYTE = 1 << 20
HEALTH = b"GET /health HTTP/1.1\r\nhost: x\r\n\r\n"
# Only to fail instead of hanging, on a machine that is busy with other tests.
PATIENCE = 60.0


def connected(server: Running) -> socket.socket:
    host, _, port = server.address.removeprefix("http://").rpartition(":")
    return socket.create_connection((host, int(port)), timeout=PATIENCE)


def reset(client: socket.socket) -> None:
    """End the connection by RST."""
    client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    client.close()


def finish(client: socket.socket) -> None:
    """Send nothing more, but go on reading. The server may have reset the connection already."""
    try:
        client.shutdown(socket.SHUT_WR)
    except OSError as error:
        if error.errno != errno.ENOTCONN:
            raise


def post(content: Any, *headers: str) -> bytes:
    body = json.dumps({"input": content}).encode()
    lines = ["POST /v1/embeddings HTTP/1.1", "host: x", "content-type: application/json", *headers]
    return "\r\n".join([*lines, f"content-length: {len(body)}", "", ""]).encode() + body


def read_all(client: socket.socket) -> bytes:
    """What the server sends until the connection ends, be it by RST."""
    received = bytearray()
    with contextlib.suppress(ConnectionError):
        while data := client.recv(1 << 20):
            received += data
    return bytes(received)


def statuses(received: bytes) -> list[int]:
    return [int(part[:3]) for part in received.split(b"HTTP/1.1 ")[1:]]


def answers(server: Running, data: bytes) -> list[int]:
    """The statuses of the responses to ``data``, after which the client sends nothing more."""
    with connected(server) as client:
        with contextlib.suppress(ConnectionError):
            client.sendall(data)
            finish(client)
        return statuses(read_all(client))


class Front:
    """The process of the HTTP server."""

    def __init__(self, server: Running) -> None:
        self._server = server
        self._process = psutil.Process(server.process.pid)

    def memory(self) -> int:
        return int(self._process.memory_info().rss)

    def descriptors(self) -> int:
        return int(self._process.num_fds())

    def cpu_seconds(self) -> float:
        times = self._process.cpu_times()
        return float(times.user + times.system)

    @contextlib.contextmanager
    def under_attack(self, growth: int = 30 * MEBIBYTE) -> Iterator[None]:
        """During the block the server must answer other clients; afterwards it must not have grown by more."""
        before, peak = self.memory(), 0
        healthy: list[int] = []
        ended = threading.Event()

        def ask() -> None:
            nonlocal peak
            while not ended.is_set():
                healthy.append(answers(self._server, HEALTH)[0])
                peak = max(peak, self.memory())

        other = threading.Thread(target=ask)
        other.start()
        try:
            yield
        finally:
            ended.set()
            other.join()
        assert set(healthy) == {200}
        assert peak - before < growth, f"the front grew from {before} to {peak} bytes"
