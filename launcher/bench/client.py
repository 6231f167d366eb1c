"""A low-overhead HTTP/1.1 client connection: requests are prepared as bytes, responses are timed and not parsed.

Used instead of a client library because the load generator shares the machine with the server under test.
"""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass
from typing import cast
from urllib.parse import urlsplit

import httptools

from launcher.errors import UsageError


@dataclass(frozen=True, slots=True)
class Target:
    """The address that requests are sent to. ``socket`` is the path of a Unix socket, used instead of the port;
    ``headers`` are lines that each request has."""

    host: str
    port: int
    path: str
    socket: str | None = None
    headers: tuple[str, ...] = ()

    @classmethod
    def parse(cls, url: str) -> Target:
        """The target of an ``http://host:port/path`` URL, or of ``unix:/run/launch.sock``. Raises ``UsageError``."""
        if url.startswith("unix:") and len(url) > len("unix:"):
            return cls("localhost", 80, "/", url.removeprefix("unix:"))
        parts = urlsplit(url)
        if parts.scheme != "http" or not parts.hostname:
            raise UsageError(
                f"{url!r}: must be an http:// URL, such as http://127.0.0.1:8000, or a Unix socket, such as "
                "unix:/run/launch.sock"
            )
        return cls(parts.hostname, parts.port or 80, parts.path or "/")

    def request(self, body: bytes) -> bytes:
        """A complete POST request with a JSON body."""
        lines = ("Content-Type: application/json", f"Content-Length: {len(body)}")
        return self._head("POST", self.path, *lines) + body

    def get(self, path: str) -> bytes:
        """A complete GET request for another path."""
        return self._head("GET", path)

    def _head(self, method: str, path: str, *lines: str) -> bytes:
        head = (f"{method} {path} HTTP/1.1", f"Host: {self.host}:{self.port}", *lines, *self.headers, "", "")
        return "\r\n".join(head).encode()


@dataclass(frozen=True, slots=True)
class Reply:
    """A response; ``seconds`` is the time from the first byte written to the last byte read."""

    status: int
    body: bytes
    seconds: float


class Connection(asyncio.Protocol):
    """A keep-alive connection with at most one request in flight."""

    def __init__(self) -> None:
        self._transport: asyncio.Transport | None = None
        self._waiter: asyncio.Future[Reply] | None = None
        self._parser = httptools.HttpResponseParser(self)
        self._body: list[bytes] = []
        self._started = 0.0
        self._loop = asyncio.get_running_loop()

    @classmethod
    async def open(cls, target: Target) -> Connection:
        """Connect. Raises ``OSError``."""
        loop = asyncio.get_running_loop()
        if target.socket is not None:
            _, connection = await loop.create_unix_connection(cls, target.socket)
        else:
            _, connection = await loop.create_connection(cls, target.host, target.port)
        return connection

    @property
    def closed(self) -> bool:
        """Whether a new connection is needed."""
        return self._transport is None or self._transport.is_closing()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's does not inherit from it

    def connection_lost(self, exc: Exception | None) -> None:
        self._transport = None
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_exception(
                exc or ConnectionResetError("the server closed the connection without a response")
            )

    def data_received(self, data: bytes) -> None:
        self._parser.feed_data(data)

    def on_body(self, body: bytes) -> None:
        """Called by the parser."""
        self._body.append(body)

    def on_message_complete(self) -> None:
        """Called by the parser."""
        if self._waiter is not None and not self._waiter.done():
            seconds = time.monotonic() - self._started
            self._waiter.set_result(Reply(self._parser.get_status_code(), b"".join(self._body), seconds))
        keep = self._parser.should_keep_alive()
        self._parser = httptools.HttpResponseParser(self)
        if not keep and self._transport is not None:
            self._transport.close()

    async def send(self, request: bytes) -> Reply:
        """Send one request and wait for its response. Raises ``OSError`` if the connection fails."""
        if self._transport is None:
            raise ConnectionResetError("the connection is closed")
        self._body = []
        self._waiter = self._loop.create_future()
        self._started = time.monotonic()  # uvloop's own clock has a resolution of 1 ms
        self._transport.write(request)
        return await self._waiter

    def close(self) -> None:
        """Close the connection."""
        if self._transport is not None:
            self._transport.close()
