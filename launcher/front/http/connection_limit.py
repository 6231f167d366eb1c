"""Limits the number of connections, so that descriptors remain for workers, files and the log.

Separate from a connection's own limits: a connection over this limit never becomes one that parses requests. It is
told so and closed; connections that are open are unaffected.
"""

from __future__ import annotations

import asyncio
import http
from typing import cast

from launcher.errors import MachineError, RequestError
from launcher.front.http.error_response import DEFAULT_ERRORS

# Refused connections that wait for their clients to read the response and close; further ones are closed at once.
LINGERING = 8
LINGER_SECONDS = 1.0

# Descriptors that connections must not take: a worker has a socket, a pipe and a pidfd, and while it starts, five more.
# The rest is for files that are open briefly, and for refused connections.
SPARE, SPARE_PER_INSTANCE = 16 + LINGERING, 8


def maximum_connections(asked: int | None, limit: int, used: int, instances: int) -> int:
    """The number of connections that a process may have whose limit of descriptors is ``limit`` and which uses ``used``
    of them; at most what was ``asked``.

    Raises ``MachineError`` if that is none.
    """
    spare = SPARE + SPARE_PER_INSTANCE * instances
    left = limit - used - spare
    if left < 1:
        raise MachineError(
            f"the limit of {limit} open files leaves none for connections: {used} are open, and {spare} are needed for "
            f"{instances} instance{'s' if instances > 1 else ''} and files; raise it to at least {used + spare + 1} "
            "(ulimit -n, LimitNOFILE= in systemd)"
        )
    return left if asked is None else min(asked, left)


class RefusedConnection(asyncio.Protocol):
    """A connection over the limit ``maximum``: answered with 503 whatever it sends, then closed.

    ``lingering`` are the refused connections that are still open.
    """

    def __init__(self, lingering: set[RefusedConnection], maximum: int) -> None:
        self._lingering = lingering
        self._maximum = maximum
        self._timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Called by the event loop."""
        writer = cast(asyncio.Transport, transport)
        writer.write(_response(self._maximum))
        if len(self._lingering) >= LINGERING or not writer.can_write_eof():
            writer.close()
            return
        # Closing a socket that holds unread data sends a reset, which may destroy the response before it is read.
        self._lingering.add(self)
        writer.write_eof()
        self._timer = asyncio.get_running_loop().call_later(LINGER_SECONDS, writer.abort)

    def connection_lost(self, exc: Exception | None) -> None:
        """Called by the event loop."""
        self._lingering.discard(self)
        if self._timer is not None:
            self._timer.cancel()


def _response(maximum: int) -> bytes:
    message = (
        f"the server has {maximum} connections and accepts no more (--max-connections); reuse connections, or retry"
    )
    error = RequestError(message, status=503, code="too_many_connections", retry_after=1.0)
    status, body, headers = DEFAULT_ERRORS.response(error)
    lines = [
        f"HTTP/1.1 {status} {http.HTTPStatus(status).phrase}".encode(),
        b"content-type: application/json",
        b"content-length: %d" % len(body),
        *(name + b": " + value for name, value in headers),
        b"connection: close",
    ]
    return b"\r\n".join([*lines, b"", body])
