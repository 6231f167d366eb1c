"""The HTTP server on a bound socket: uvicorn without its signal handlers, logging and access log.

Separate because uvicorn is made to own its process, and here the caller owns signals, logs and the order of shutdown.
Single connections and routes must not enter.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import Iterator

import anyio
import uvicorn
from starlette.types import ASGIApp

from launcher.front.http.connection import LimitedHttpProtocol

# Longer than the idle time-out of common clients and proxies (httpx 5 s, nginx and AWS 60 s). The client must close
# first, or it may send a request into a connection that the server is closing.
KEEP_ALIVE_SECONDS = 75
# In which the headers, and then the body, of a request must arrive. It is checked every few seconds for all
# connections, so that requests do not pay for a timer.
REQUEST_SECONDS = 60.0
SWEEP_SECONDS = 5


class _Server(uvicorn.Server):
    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self._exit = anyio.Event()

    def request_exit(self) -> None:
        self.should_exit = True
        self._exit.set()

    async def main_loop(self) -> None:
        """Wake once a second for the date header and the sweep, not ten times, and at once to exit."""
        while not await self.on_tick(0):
            with anyio.move_on_after(1):
                await self._exit.wait()

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Leave all signals to the caller."""
        yield


class HttpServer:
    """Serves ``app`` on ``sock``, a bound socket, which it owns from then on.

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
            http=LimitedHttpProtocol,
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
        # Typed as whole seconds by uvicorn, but only its command line needs that.
        self._server.config.timeout_graceful_shutdown = seconds  # type: ignore[assignment]
        self._server.request_exit()
        await self._stopped.wait()

    async def sweep(self) -> None:
        """Disconnect clients that are too slow. The server does this itself every few seconds."""
        now = asyncio.get_running_loop().time()
        for connection in list(self._server.server_state.connections):
            if isinstance(connection, LimitedHttpProtocol):
                connection.close_if_slow(now, self._request_seconds)
