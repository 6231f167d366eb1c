"""The HTTP server on a bound socket: uvicorn without its signal handlers, logging and access log.

Separate because uvicorn is designed to own its process, whereas here the caller owns signals, logs and the order of
shutdown. Connections and routes do not belong here.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import socket
import ssl
from collections.abc import Iterator
from functools import partial
from typing import Any

import anyio
import uvicorn
from starlette.types import ASGIApp

from launcher.front.http.closing import Entrance, is_readable
from launcher.front.http.connection import HeldBytes, LimitedHttpProtocol
from launcher.front.http.connection_limit import RefusedConnection
from launcher.options import FrontOptions

# How often all connections are checked for slow clients, so that requests do not pay for a timer.
SWEEP_SECONDS = 5
# Connections are counted, and limited, from the end of the TLS handshake on, so a handshake must not take long.
HANDSHAKE_SECONDS = 10.0
# At the end: connections are served until none has arrived, and no request is expected, for this long.
QUIET_SECONDS = 0.2
# At the end: the time that a new connection has to send its request.
FIRST_REQUEST_SECONDS = 1.0
POLL_SECONDS = 0.01


class _Server(uvicorn.Server):
    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self._exit = anyio.Event()
        self.tls: ssl.SSLContext | None = None
        self.handshake_seconds = 0.0

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """As in the base class, which has no limit of its own for the duration of TLS handshakes."""
        if self.tls is None:
            await super().startup(sockets)
            return
        loop, config = asyncio.get_running_loop(), self.config
        make: Any = config.http_protocol_class
        factory = partial(make, config=config, server_state=self.server_state, app_state=self.lifespan.state)
        timeout = self.handshake_seconds
        self.servers = [
            await loop.create_server(
                factory, sock=sock, ssl=self.tls, ssl_handshake_timeout=timeout, backlog=config.backlog
            )
            for sock in sockets or ()
        ]
        self.started = True

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
    checked every ``sweep_seconds``. Connections over ``max_connections`` are refused. With ``tls``, clients must
    complete a TLS handshake within the same time, and within ``HANDSHAKE_SECONDS``.
    """

    def __init__(
        self,
        app: ASGIApp,
        sock: socket.socket,
        options: FrontOptions,
        *,
        sweep_seconds: int = SWEEP_SECONDS,
        max_connections: float = math.inf,
        tls: ssl.SSLContext | None = None,
    ) -> None:
        self.refused = 0
        self._max_connections = max_connections
        self._lingering: set[RefusedConnection] = set()
        self._held_bytes = HeldBytes()
        self._make_connection = partial(LimitedHttpProtocol, options=options, held_bytes=self._held_bytes)
        protocol: Any = self._accepted
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
        self._server.tls, self._server.handshake_seconds = tls, min(options.request_seconds, HANDSHAKE_SECONDS)
        self._sock = sock
        self._entrance = Entrance(sock)
        self._stopped: anyio.Event | None = None

    @property
    def connections(self) -> int:
        """The number of open connections."""
        return len(self._server.server_state.connections)

    def _accepted(self, **arguments: Any) -> asyncio.Protocol:
        """The protocol of a connection that was accepted."""
        if self.connections < self._max_connections:
            return self._make_connection(**arguments)
        self.refused += 1
        return RefusedConnection(self._lingering, int(self._max_connections))

    async def run(self) -> None:
        """Serve; returns after ``stop``."""
        self._stopped = anyio.Event()
        try:
            await self._server.serve(sockets=[self._sock])
        finally:
            self._stopped.set()

    @property
    def serving(self) -> bool:
        """Whether connections are accepted."""
        return self._server.started and self._stopped is not None and not self._stopped.is_set()

    def reconfigure(self, options: FrontOptions) -> None:
        """Use these limits for connections that are accepted from now on."""
        self._make_connection = partial(LimitedHttpProtocol, options=options, held_bytes=self._held_bytes)

    async def stop(self, seconds: float) -> None:
        """Answer those who have connected, stop accepting connections, close idle ones, and wait until all requests are
        answered.

        Requests that are not answered after ``seconds`` are aborted.
        """
        if self._stopped is None:
            self._sock.close()
            return
        if self.serving:
            self._entrance.close()
            with anyio.move_on_after(min(seconds, FIRST_REQUEST_SECONDS)):
                await self._quiet()
        self._server.config.timeout_graceful_shutdown = seconds  # type: ignore[assignment]  # typed as whole seconds
        self._server.request_exit()
        await self._stopped.wait()

    async def _quiet(self) -> None:
        """Wait until no client has connected, or is expected to send a request, for ``QUIET_SECONDS``."""
        loop = asyncio.get_running_loop()
        since = loop.time()
        while loop.time() < since + QUIET_SECONDS:
            await anyio.sleep(POLL_SECONDS)
            connections = [one for one in self._server.server_state.connections if isinstance(one, LimitedHttpProtocol)]
            if is_readable(self._sock.fileno()) or any(one.is_expected() for one in connections):
                since = loop.time()

    async def sweep(self) -> None:
        """Disconnect clients that are too slow. The server does this itself every few seconds."""
        now = asyncio.get_running_loop().time()
        for connection in list(self._server.server_state.connections):
            if isinstance(connection, LimitedHttpProtocol):
                connection.close_if_slow(now)
