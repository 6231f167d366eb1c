"""Stops work for clients that have disconnected.

In ASGI only ``receive`` reports that a client has disconnected, so each wait would need a second task that receives.
Our connections notify the wait itself instead, which costs less. How they detect a disconnect does not belong here.
"""

from __future__ import annotations

import asyncio
from typing import TypeVar

from starlette.types import Scope

# The key of a connection's ``Client`` in the ``extensions`` of an ASGI scope.
EXTENSION = "launcher.client"

Result = TypeVar("Result")


class ClientDisconnected(Exception):
    """The client has closed its connection; nobody waits for the response."""


class Client:
    """The client of one connection, and the future that is awaited for it.

    A connection serves one request at a time, and a request awaits one future at a time.
    """

    __slots__ = ("_awaited", "_disconnected")

    def __init__(self) -> None:
        self._disconnected = False
        self._awaited: asyncio.Future[object] | None = None

    def disconnected(self) -> None:
        """The client has closed its connection: cancel the future awaited for it now, and any later one."""
        self._disconnected = True
        if self._awaited is not None:
            self._awaited.cancel()

    async def wait(self, future: asyncio.Future[Result]) -> Result:
        """The result of ``future``. If the client disconnects first, cancels it and raises ``ClientDisconnected``."""
        self._awaited = future  # type: ignore[assignment]  # only ever cancelled
        if self._disconnected:
            future.cancel()
        try:
            return await future
        except asyncio.CancelledError:
            if self._disconnected:
                raise ClientDisconnected from None
            raise
        finally:
            self._awaited = None


def client_of(scope: Scope) -> Client:
    """The client of a request; one that never disconnects if the server does not report disconnects (as in tests)."""
    client = scope.get("extensions", {}).get(EXTENSION)
    return client if isinstance(client, Client) else Client()
