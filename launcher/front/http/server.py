"""The HTTP server on a socket that is bound already: uvicorn, without its signals, its logging and its access log.

Separate because uvicorn is meant to own its process and here it must not: signals, logs and the order of the end
belong to whoever composes the server.
"""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Iterator

import anyio
import uvicorn
from starlette.types import ASGIApp

# Longer than the idle time of usual clients and proxies (httpx 5 s, nginx and AWS 60 s): whoever closes first must be
# the client, or requests meet a connection that is just being closed.
KEEP_ALIVE_SECONDS = 75


class _Server(uvicorn.Server):
    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Leave all signals to whoever composes the server."""
        yield


class HttpServer:
    """Serves ``app`` on ``sock``, a bound socket, which it owns from now on."""

    def __init__(self, app: ASGIApp, sock: socket.socket) -> None:
        config = uvicorn.Config(
            app,
            loop="none",
            http="httptools",
            ws="none",
            lifespan="off",
            log_config=None,
            access_log=False,
            server_header=False,
            proxy_headers=False,
            timeout_keep_alive=KEEP_ALIVE_SECONDS,
        )
        self._server = _Server(config)
        self._sock = sock
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
        self._server.should_exit = True
        await self._ended.wait()
