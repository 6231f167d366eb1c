"""The HTTP server on a socket that is bound already: uvicorn, without its signals, its logging and its access log.

Separate because uvicorn is meant to own its process and here it must not: signals, logs and the order of the end
belong to whoever composes the server. Single connections and routes must not enter.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import Iterator

import anyio
import uvicorn
from starlette.types import ASGIApp

from launcher.front.http.connection import BoundedProtocol

# Longer than the idle time of usual clients and proxies (httpx 5 s, nginx and AWS 60 s): whoever closes first must be
# the client, or requests meet a connection that is just being closed.
KEEP_ALIVE_SECONDS = 75
# In which a head, and then a body, has to have come; looked at every few seconds, so that requests pay nothing.
REQUEST_SECONDS = 60.0
SWEEP_SECONDS = 5


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
