"""Reads request bodies, with limits for each body, for those of a client, and for all that are held in memory.

Written on ASGI itself and not on Starlette's request: it reads the body of every request, and what Starlette adds
(about 40 µs) is not needed. The meaning of bodies does not belong here.
"""

from __future__ import annotations

import asyncio

import anyio
from starlette.types import Message, Receive, Scope

from launcher.errors import RequestError
from launcher.front.http.disconnect import ClientDisconnected
from launcher.options import FrontOptions

JSON = b"application/json"
LENGTH_DIGITS = 20  # of the largest number of 64 bits


class BodyNotRead(RequestError):
    """The request was refused before its whole body was read."""


class BodyTooLarge(BodyNotRead):
    """The body exceeds the limit of a single body."""


class BodyMemoryFull(BodyNotRead):
    """Other bodies and responses, of this client or of all, leave no memory for this body."""


class UploadTooSlow(BodyNotRead):
    """The client sends its body more slowly than allowed."""


# This part of the memory is for small bodies only: those of at most SMALL_BYTES, and of this part of their memory.
SMALL_SHARE = 1 / 8
SMALL_BYTES = 64 * 1024


class _SharedMemory:
    """Memory of ``limit`` bytes that clients share: each may hold half of what the others leave, and at least ``least``
    bytes as long as they are free."""

    __slots__ = ("_by_client", "_least", "_limit", "used")

    def __init__(self, limit: int, least: int) -> None:
        self._limit = limit
        self._least = least
        self._by_client: dict[str, int] = {}
        self.used = 0

    def add(self, client: str, size: int) -> None:
        self.used += size
        self._by_client[client] = self._by_client.get(client, 0) + size

    def remove(self, client: str, size: int) -> None:
        self.used -= size
        left = self._by_client.get(client, 0) - size
        if left:
            self._by_client[client] = left
        else:
            self._by_client.pop(client, None)

    def refusal(self, client: str, size: int) -> str | None:
        """Why a client may not hold ``size`` more bytes; None if it may."""
        own = self._by_client.get(client, 0)
        if self.used + size > self._limit:
            return f"request bodies and responses in memory have {self.used} bytes, the limit is {self._limit}"
        allowed = max(self._least, (self._limit - (self.used - own)) // 2)
        if own + size > allowed:
            return (
                f"request bodies and responses of this client in memory have {own} bytes, the limit is {allowed} "
                "because others use the rest"
            )
        return None


class BodyMemory:
    """The bytes of request bodies and of large responses that are held in memory, ``limit`` at most, by client.

    Without this limit a thousand clients, each with the largest body allowed, would take a thousand times its memory.
    Small bodies have a part of it for themselves, so that large ones cannot shut them out. ``least`` is the size of the
    largest body, which a client may always hold if it is free.
    """

    __slots__ = ("_large", "_small", "small_bytes")

    def __init__(self, limit: int, least: int) -> None:
        reserve = int(SMALL_SHARE * limit)
        self.small_bytes = min(SMALL_BYTES, int(SMALL_SHARE * reserve))
        self._small = _SharedMemory(reserve, self.small_bytes)
        self._large = _SharedMemory(limit - reserve, least)

    @property
    def used(self) -> int:
        """The bytes held now."""
        return self._small.used + self._large.used

    def hold(self, client: str, size: int, received: int = 0) -> None:
        """Hold ``size`` more bytes of a body of which ``received`` are held already. Raises ``BodyMemoryFull``."""
        small = received + size <= self.small_bytes
        memory, new = (self._small, size) if small else (self._large, size)
        moved = 0 if small or received > self.small_bytes else received  # it was small until now
        if refusal := memory.refusal(client, new + moved):
            raise BodyMemoryFull(f"{refusal}; retry later", status=429, code="too_much_inside", retry_after=1.0)
        if moved:
            self._small.remove(client, moved)
        memory.add(client, new + moved)

    def release(self, client: str, size: int) -> None:
        """Hold a body of ``size`` bytes no longer."""
        (self._small if size <= self.small_bytes else self._large).remove(client, size)

    def hold_response(self, client: str, size: int) -> None:
        """Hold a large response, which cannot be refused any more; end with ``release_response``."""
        self._large.add(client, size)

    def release_response(self, client: str, size: int) -> None:
        """Hold a large response no longer."""
        self._large.remove(client, size)


class BodyReader:
    """Reads bodies of at most ``options.body_bytes`` each; they count as held in ``memory``.

    A client that sends only a part of a body must send ``options.min_upload_rate`` bytes per second, on average over
    each ``options.upload_window_seconds``: otherwise unfinished bodies would take memory for as long as a request may
    take to arrive.
    """

    def __init__(self, options: FrontOptions, memory: BodyMemory) -> None:
        self._body_bytes = options.body_bytes
        self._memory = memory
        self._rate = options.min_upload_rate
        self._window = options.upload_window_seconds

    async def read(self, scope: Scope, receive: Receive, client: str) -> bytes:
        """The whole body, which is held until ``release``. Raises ``RequestError`` and ``ClientDisconnected``.

        Only bytes that were received count, not those that were announced: announcing costs a client nothing.
        """
        _check_headers(scope, self._body_bytes)
        first = await receive()
        body = first.get("body", b"")
        if first["type"] == "http.request" and not first.get("more_body"):
            self._hold(client, len(body), 0)
            return bytes(body)
        parts = bytearray()
        try:
            with anyio.move_on_after(self._window) as window:
                return await self._read_parts(first, receive, client, parts, window)
        except BaseException:
            self._memory.release(client, len(parts))
            raise
        self._memory.release(client, len(parts))
        raise UploadTooSlow(
            f"{len(parts)} bytes of the body were received, and then fewer than {self._rate:g} bytes per second; "
            "send the body without pauses",
            status=408,
            code="upload_too_slow",
        )

    def release(self, body: bytes, client: str) -> None:
        """The body is no longer needed."""
        self._memory.release(client, len(body))

    async def _read_parts(
        self, message: Message, receive: Receive, client: str, parts: bytearray, window: anyio.CancelScope
    ) -> bytes:
        """The whole body, which is collected in ``parts``; extends ``window`` while enough of it arrives."""
        enough = self._rate * self._window
        clock, expected = asyncio.get_running_loop().time, enough
        while True:
            if message["type"] == "http.disconnect":
                raise ClientDisconnected
            part = message.get("body", b"")
            self._hold(client, len(part), len(parts))
            parts += part
            if not message.get("more_body"):
                return bytes(parts)
            if len(parts) >= expected:
                window.deadline, expected = clock() + self._window, len(parts) + enough
            message = await receive()

    def _hold(self, client: str, size: int, received: int) -> None:
        """Hold ``size`` more bytes of a body of which ``received`` are held already. Raises ``RequestError``."""
        if received + size > self._body_bytes:
            raise _too_large(f"more than {self._body_bytes} bytes", self._body_bytes)
        self._memory.hold(client, size, received)


def content_length(value: bytes) -> int:
    """The number in a header Content-Length. The HTTP parser has checked that it fits into 64 bits, but there may be
    thousands of zeros before it, which ``int`` refuses, and spaces after it."""
    return int(value) if len(value) <= LENGTH_DIGITS else int(value.rstrip()[-LENGTH_DIGITS:])


def _check_headers(scope: Scope, limit: int) -> None:
    """Raise ``RequestError`` if the headers announce a body that is too long, encoded, or not JSON."""
    content_type = JSON
    for name, value in scope["headers"]:
        if name == b"content-type":
            content_type = value
        elif name == b"content-length":
            announced = content_length(value)
            if announced > limit:
                raise _too_large(f"{announced} bytes", limit)
        elif name == b"content-encoding" and value.strip().lower() not in (b"identity", b""):
            raise RequestError(
                f"the content encoding is {value.decode('latin-1')!r}; send the body without content-encoding",
                status=415,
                code="unsupported_encoding",
            )
    if content_type != JSON and content_type.split(b";")[0].strip().lower() != JSON:
        raise RequestError(
            f"the content type is {content_type.decode('latin-1')!r}; send application/json",
            status=415,
            code="unsupported_content_type",
        )


def _too_large(found: str, limit: int) -> BodyTooLarge:
    message = f"the body has {found}, the limit is {limit}; send fewer or shorter inputs per request"
    return BodyTooLarge(message, status=413, code="body_too_large")
