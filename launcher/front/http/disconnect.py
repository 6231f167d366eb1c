"""Whether the client of a connection is still there, for those who work for it.

In ASGI only ``receive`` tells that a client has left, so that each wait would need a task beside it that receives.
Our connections tell the one wait that goes on instead, which costs less; how they notice must not enter here.
"""

from __future__ import annotations

import asyncio
from typing import TypeVar

from starlette.types import Scope

# The name under which a connection has its ``Presence`` in the ``extensions`` of a scope.
EXTENSION = "launcher.presence"

Result = TypeVar("Result")


class ClientGone(Exception):
    """The client has closed its connection; nobody waits for an answer."""


class DisconnectWatch:
    """One client, and what is awaited for it. A connection works on one request at a time, which awaits one thing."""

    __slots__ = ("_awaited", "_gone")

    def __init__(self) -> None:
        self._gone = False
        self._awaited: asyncio.Future[object] | None = None

    def leave(self) -> None:
        """The client is gone: what is awaited for it is cancelled, and whatever will be."""
        self._gone = True
        if self._awaited is not None:
            self._awaited.cancel()

    async def wait(self, future: asyncio.Future[Result]) -> Result:
        """What ``future`` gives. When the client leaves first, it is cancelled and ``ClientGone`` raised."""
        self._awaited = future  # type: ignore[assignment]  # only ever cancelled
        if self._gone:
            future.cancel()
        try:
            return await future
        except asyncio.CancelledError:
            if self._gone:
                raise ClientGone from None
            raise
        finally:
            self._awaited = None


def disconnect_watch_of(scope: Scope) -> DisconnectWatch:
    """That of the client of a request; of one that never leaves where the server does not tell."""
    disconnect = scope.get("extensions", {}).get(EXTENSION)
    return disconnect if isinstance(disconnect, DisconnectWatch) else DisconnectWatch()
