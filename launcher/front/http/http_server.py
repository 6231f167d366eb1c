"""The HTTP server on a bound socket: uvicorn without its signal handlers, logging and access log.

Separate because uvicorn is designed to own its process, whereas here the caller owns signals, logs and the order of
shutdown. Connections and routes do not belong here.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import Iterator
from functools import partial
from typing import Any

import anyio
import uvicorn
from starlette.types import ASGIApp

from launcher.front.http.connection import HeldBytes, LimitedHttpProtocol
from launcher.options import FrontOptions

# How often all connections are checked for slow clients, so that requests do not pay for a timer.
SWEEP_SECONDS = 5


class _Server(uvicorn.Server):
    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self._exit = anyio.Event()

    def request_exit(self) -> None:
        self.should_exit = True
        self._exit.set()

    async def main_loop(self) -> None:
        """Wake once a second, not ten times, for the date header and the sweep; exit immediately on request."""
        while not await self.on_tick(0):
            with anyio.move_on_after(1):
                await self._exit.wait()

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Leave all signals to the caller."""
        yield


class HttpServer:
    """Serves ``app`` on ``sock``, a bound socket, which it owns from then on.

    A client that does not send the rest of a request within ``options.request_seconds`` is disconnected; this is
    checked every ``sweep_seconds``.
    """

    def __init__(
        self, app: ASGIApp, sock: socket.socket, options: FrontOptions, *, sweep_seconds: int = SWEEP_SECONDS
    ) -> None:
        protocol: Any = partial(LimitedHttpProtocol, options=options, held_bytes=HeldBytes())
        config = uvicorn.Config(
            app,
            loop="none",
            http=protocol,
            ws="none",
            lifespan="off",
            log_config=None,
            log_level="warning",
            access_log=False,
            server_header=False,
            proxy_headers=False,
            backlog=options.backlog,
            callback_notify=self.sweep,
            timeout_notify=sweep_seconds,
        )
        self._server = _Server(config)
        self._sock = sock
        self._stopped: anyio.Event | None = None

    async def run(self) -> None:
        """Serve; returns after ``stop``."""
        self._stopped = anyio.Event()
        try:
            await self._server.serve(sockets=[self._sock])
        finally:
            self._stopped.set()

    async def stop(self, seconds: float) -> None:
        """Stop accepting connections, close idle ones, and wait until all requests are answered.

        Requests that are not answered after ``seconds`` are aborted.
        """
        if self._stopped is None:
            self._sock.close()
            return
        self._server.config.timeout_graceful_shutdown = seconds  # type: ignore[assignment]  # typed as whole seconds
        self._server.request_exit()
        await self._stopped.wait()

    async def sweep(self) -> None:
        """Disconnect clients that are too slow. The server does this itself every few seconds."""
        now = asyncio.get_running_loop().time()
        for connection in list(self._server.server_state.connections):
            if isinstance(connection, LimitedHttpProtocol):
                connection.close_if_slow(now)
