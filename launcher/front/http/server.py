"""The HTTP server on a socket that is bound already: uvicorn, without its signals, its logging and its access log.

Separate because uvicorn is meant to own its process and here it must not: signals, logs and the order of the end
belong to whoever composes the server. What uvicorn leaves unbounded is bounded here: the size of a head, and the time
in which a request has to have come. Routes must not enter.
"""

from __future__ import annotations

import asyncio
import contextlib
import http
import socket
from collections.abc import Iterator
from typing import Any, cast

import anyio
import uvicorn
from starlette.types import ASGIApp
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

from launcher.front.http.errors import error_body

# Longer than the idle time of usual clients and proxies (httpx 5 s, nginx and AWS 60 s): whoever closes first must be
# the client, or requests meet a connection that is just being closed.
KEEP_ALIVE_SECONDS = 75
# Of request line and headers, in bytes; what comes with their first packet is not counted.
HEAD_BYTES = 64 * 1024
# In which a head, and then a body, has to have come; looked at every few seconds, so that requests pay nothing.
REQUEST_SECONDS = 60.0
SWEEP_SECONDS = 5


class JoinedWrites:
    """A transport that sends head and body of a reply together: uvicorn writes them one after the other, and each
    write would be a system call and a packet of its own. Everything but writing and closing goes through."""

    def __init__(self, transport: asyncio.Transport, loop: asyncio.AbstractEventLoop) -> None:
        self._transport = transport
        self._loop = loop
        self._held: bytes | None = None

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)

    def is_closing(self) -> bool:
        """As the transport has it; here because it is asked often."""
        return self._transport.is_closing()

    def write(self, data: bytes) -> None:
        """Hold the first piece until the next one comes, or the event loop's next turn."""
        if self._held is None:
            self._held = data
            self._loop.call_soon(self._flush)
        else:
            held, self._held = self._held, None
            self._transport.writelines((held, data))

    def close(self) -> None:
        """Send what is held, then close."""
        self._flush()
        self._transport.close()

    def _flush(self) -> None:
        if self._held is not None:
            held, self._held = self._held, None
            self._transport.write(held)


class BoundedProtocol(HttpToolsProtocol):
    """One connection, with a bound on its heads and on its patience."""

    _in_head = False
    _head_bytes = 0
    _owed_since: float | None = None
    _owed_by: RequestResponseCycle | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Called by the event loop."""
        super().connection_made(cast(asyncio.Transport, JoinedWrites(cast(asyncio.Transport, transport), self.loop)))

    def data_received(self, data: bytes) -> None:
        """Called by the event loop."""
        continued = self._in_head
        super().data_received(data)
        if continued and self._in_head:
            self._head_bytes += len(data)
            if self._head_bytes > HEAD_BYTES:
                self._refuse(431, f"the request's head is longer than {HEAD_BYTES} bytes", "head_too_large")

    def on_message_begin(self) -> None:
        """Called by the parser."""
        self._in_head, self._head_bytes = True, 0
        super().on_message_begin()

    def on_headers_complete(self) -> None:
        """Called by the parser."""
        self._in_head = False
        super().on_headers_complete()

    def send_400_response(self, msg: str) -> None:
        """For what is no HTTP; in the shape of every other error."""
        self._refuse(400, "this is not a valid HTTP request", "invalid_http")

    def _refuse(self, status: int, message: str, code: str) -> None:
        if self.transport.is_closing():
            return
        body = error_body(message, status, code)
        head = (
            f"HTTP/1.1 {status} {http.HTTPStatus(status).phrase}\r\ncontent-type: application/json\r\n"
            f"content-length: {len(body)}\r\nconnection: close\r\n\r\n"
        )
        self.transport.write(head.encode() + body)
        self.transport.close()

    def close_if_slow(self, now: float, seconds: float) -> None:
        """Close when the client has owed the rest of the same request for longer than ``seconds``."""
        if not self._owes():
            self._owed_since = None
        elif self._owed_since is None or self._owed_by is not self.cycle:
            self._owed_since, self._owed_by = now, self.cycle
        elif now - self._owed_since > seconds:
            self.transport.close()

    def _owes(self) -> bool:
        """Whether the client is in the middle of a request, or has connected and never sent one."""
        if self.cycle is None:
            return True  # type: ignore[unreachable]  # uvicorn's types forget that it starts as None
        if self.cycle.response_complete:
            return self.timeout_keep_alive_task is None
        return self.cycle.more_body


class _Server(uvicorn.Server):
    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self._leave = anyio.Event()

    def leave(self) -> None:
        self.should_exit = True
        self._leave.set()

    async def main_loop(self) -> None:
        """Wake once a second for the date and the sweep, not ten times, and at once when it is time to leave."""
        while not await self.on_tick(0):
            with anyio.move_on_after(1):
                await self._leave.wait()

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Leave all signals to whoever composes the server."""
        yield


class HttpServer:
    """Serves ``app`` on ``sock``, a bound socket, which it owns from now on.

    A client that does not send the rest of a request within ``request_seconds`` is disconnected.
    """

    def __init__(
        self,
        app: ASGIApp,
        sock: socket.socket,
        *,
        request_seconds: float = REQUEST_SECONDS,
        sweep_seconds: int = SWEEP_SECONDS,
    ) -> None:
        config = uvicorn.Config(
            app,
            loop="none",
            http=BoundedProtocol,
            ws="none",
            lifespan="off",
            log_config=None,
            log_level="warning",
            access_log=False,
            server_header=False,
            proxy_headers=False,
            timeout_keep_alive=KEEP_ALIVE_SECONDS,
            callback_notify=self.sweep,
            timeout_notify=sweep_seconds,
        )
        self._server = _Server(config)
        self._sock = sock
        self._request_seconds = request_seconds
        self._ended: anyio.Event | None = None

    async def run(self) -> None:
        """Serve; returns after ``stop``."""
        self._ended = anyio.Event()
        try:
            await self._server.serve(sockets=[self._sock])
        finally:
            self._ended.set()

    async def stop(self, seconds: float) -> None:
        """Accept nothing more, close idle connections and wait until all that is inside is answered.

        What is not answered after ``seconds`` is cut off.
        """
        if self._ended is None:
            self._sock.close()
            return
        # uvicorn takes this for whole seconds only where its command line reads it.
        self._server.config.timeout_graceful_shutdown = seconds  # type: ignore[assignment]
        self._server.leave()
        await self._ended.wait()

    async def sweep(self) -> None:
        """Disconnect clients that are too slow; happens by itself every few seconds."""
        now = asyncio.get_running_loop().time()
        for connection in list(self._server.server_state.connections):
            if isinstance(connection, BoundedProtocol):
                connection.close_if_slow(now, self._request_seconds)
