"""Reads request bodies, with a limit for each and a limit for all that are held in memory together.

Written on ASGI itself and not on Starlette's request: it reads the body of every request, and what Starlette adds
(about 40 µs) is not needed. The meaning of bodies does not belong here.
"""

from __future__ import annotations

from starlette.types import Message, Receive, Scope

from launcher.errors import RequestError
from launcher.front.http.disconnect import ClientDisconnected

JSON = b"application/json"


class BodyNotRead(RequestError):
    """The request was refused before its whole body was read."""


class BodyTooLarge(BodyNotRead):
    """The body exceeds the limit of a single body."""


class BodyMemoryFull(BodyNotRead):
    """The bodies of other requests, and their responses, leave no memory for this body."""


class BodyMemory:
    """The bytes of request bodies and of large responses that are held in memory: ``used`` now, ``limit`` at most.

    Without this limit a thousand clients, each with the largest body allowed, would take a thousand times its memory.
    """

    __slots__ = ("limit", "used")

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.used = 0


class BodyReader:
    """Reads bodies of at most ``body_bytes`` each; they count as held in ``memory``."""

    def __init__(self, body_bytes: int, memory: BodyMemory) -> None:
        self._body_bytes = body_bytes
        self._memory = memory

    async def read(self, scope: Scope, receive: Receive) -> bytes:
        """The whole body, which is held until ``release``. Raises ``RequestError`` and ``ClientDisconnected``.

        Only bytes that were received count, not those that were announced: announcing costs a client nothing.
        """
        _check_headers(scope, self._body_bytes)
        first = await receive()
        body = first.get("body", b"")
        if first["type"] == "http.request" and not first.get("more_body"):
            self._hold(len(body), 0)
            return bytes(body)
        return await self._read_parts(first, receive)

    def release(self, body: bytes) -> None:
        """The body is no longer needed."""
        self._memory.used -= len(body)

    async def _read_parts(self, message: Message, receive: Receive) -> bytes:
        parts = bytearray()
        try:
            while True:
                if message["type"] == "http.disconnect":
                    raise ClientDisconnected
                part = message.get("body", b"")
                self._hold(len(part), len(parts))
                parts += part
                if not message.get("more_body"):
                    return bytes(parts)
                message = await receive()
        except BaseException:
            self._memory.used -= len(parts)
            raise

    def _hold(self, size: int, received: int) -> None:
        """Hold ``size`` more bytes of a body of which ``received`` are held already. Raises ``RequestError``."""
        if received + size > self._body_bytes:
            raise _too_large(f"more than {self._body_bytes} bytes", self._body_bytes)
        memory = self._memory
        if memory.used + size > memory.limit:
            raise BodyMemoryFull(
                f"request bodies and responses in memory have {memory.used} bytes, the limit is {memory.limit}; "
                "retry later",
                status=429,
                code="too_much_inside",
                retry_after=1.0,
            )
        memory.used += size


def _check_headers(scope: Scope, limit: int) -> None:
    """Raise ``RequestError`` if the headers announce a body that is too long, encoded, or not JSON."""
    content_type = JSON
    for name, value in scope["headers"]:
        if name == b"content-type":
            content_type = value
        elif name == b"content-length":
            announced = int(value)  # the HTTP parser has checked that these are digits
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
