"""One exchange with one client: its body read within limits, the reply.

Written on ASGI itself rather than on Starlette's request and response: this is the path of every request, and what
they would add (about 40 µs) is not needed here. What the bodies mean must not enter.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Sequence
from typing import TypeVar

from starlette.types import Message, Receive, Scope, Send

from launcher.errors import RequestError
from launcher.front.http.disconnect import ClientGone

Headers = Sequence[tuple[bytes, bytes]]
Result = TypeVar("Result")

JSON = b"application/json"
CLOSE = (b"connection", b"close")
# A client that has sent too much is still read for a while, up to this much and this long, because closing a
# connection with unread data resets it, and the client would never see the answer.
LINGER_BYTES = 64 * 1024 * 1024
LINGER_SECONDS = 5.0
# uvicorn and the system hold so much of a reply anyway.
COUNTED_BYTES = 64 * 1024


class Unread(RequestError):
    """The request is refused before its body was read to the end."""


class BodyTooLarge(Unread):
    """The body is over the limit."""


class Overfull(Unread):
    """So much is inside that no more of this body is taken."""


class Intake:
    """Reads bodies: each at most ``body_bytes`` long, all that are inside together at most ``total_bytes``, with the
    replies that are not sent yet.

    Without the second bound a thousand clients with the largest body would take a thousand times its memory.
    """

    def __init__(self, body_bytes: int, total_bytes: int) -> None:
        self._body_bytes = body_bytes
        self._total_bytes = max(total_bytes, body_bytes)
        self.inside = 0

    async def read(self, scope: Scope, receive: Receive) -> bytes:
        """The whole body, which counts as inside until ``release``. Raises ``RequestError`` and ``ClientGone``.

        What has come counts, not what was announced: announcing costs a client nothing.
        """
        _check_head(scope, self._body_bytes)
        first = await receive()
        body = first.get("body", b"")
        if first["type"] == "http.request" and not first.get("more_body"):
            self._count(len(body), 0)
            return bytes(body)
        return await self._read_parts(first, receive)

    def release(self, body: bytes) -> None:
        """The body is not needed any more."""
        self.inside -= len(body)

    async def reply(self, send: Send, status: int, body: bytes, headers: Headers = ()) -> None:
        """Send a JSON reply. A large one counts as inside until the client has read most of it."""
        if len(body) <= COUNTED_BYTES:
            await reply(send, status, body, headers)
            return
        self.inside += len(body)
        try:
            await send({"type": "http.response.start", "status": status, "headers": _head(body, headers)})
            await send({"type": "http.response.body", "body": body, "more_body": True})
            await send({"type": "http.response.body", "body": b""})  # waits for what was sent before it
        finally:
            self.inside -= len(body)

    async def _read_parts(self, message: Message, receive: Receive) -> bytes:
        parts = bytearray()
        try:
            while True:
                if message["type"] == "http.disconnect":
                    raise ClientGone
                part = message.get("body", b"")
                self._count(len(part), len(parts))
                parts += part
                if not message.get("more_body"):
                    return bytes(parts)
                message = await receive()
        except BaseException:
            self.inside -= len(parts)
            raise

    def _count(self, more: int, before: int) -> None:
        """Let ``more`` bytes of a body in that has ``before`` already."""
        if before + more > self._body_bytes:
            raise _too_large(f"more than {self._body_bytes} bytes", self._body_bytes)
        if self.inside + more > self._total_bytes:
            raise Overfull(
                f"bodies and replies inside have {self.inside} bytes, the limit is {self._total_bytes}; retry later",
                status=429,
                code="too_much_inside",
                retry_after=1.0,
            )
        self.inside += more


def _check_head(scope: Scope, limit: int) -> None:
    """Raise ``RequestError`` for a body that need not be read: announced as too long, or as no plain JSON."""
    kind = JSON
    for name, value in scope["headers"]:
        if name == b"content-type":
            kind = value
        elif name == b"content-length":
            announced = int(value)  # the parser has seen to it that these are digits
            if announced > limit:
                raise _too_large(f"{announced} bytes", limit)
        elif name == b"content-encoding" and value.strip().lower() not in (b"identity", b""):
            raise RequestError(
                f"the body is encoded as {value.decode('latin-1')!r}; send it plain, without content-encoding",
                status=415,
                code="unsupported_encoding",
            )
    if kind != JSON and kind.split(b";")[0].strip().lower() != JSON:
        raise RequestError(
            f"the content type is {kind.decode('latin-1')!r}; send application/json",
            status=415,
            code="unsupported_content_type",
        )


def _too_large(found: str, limit: int) -> BodyTooLarge:
    message = f"the body has {found}, the limit is {limit}; send fewer or shorter inputs in a request"
    return BodyTooLarge(message, status=413, code="body_too_large")


async def in_time(work: Awaitable[Result], seconds: float) -> Result:
    """What ``work`` gives, if it does within so many seconds; else it is cancelled. Raises ``RequestError``."""
    try:
        return await asyncio.wait_for(work, seconds)
    except asyncio.TimeoutError:
        raise RequestError(
            "the deadline passed before the inputs were tokenized; nothing was computed",
            status=504,
            code="deadline_exceeded",
        ) from None


async def reply(send: Send, status: int, body: bytes, headers: Headers = ()) -> None:
    """Send a JSON reply."""
    await send({"type": "http.response.start", "status": status, "headers": _head(body, headers)})
    await send({"type": "http.response.body", "body": body})


def _head(body: bytes, headers: Headers) -> list[tuple[bytes, bytes]]:
    return [(b"content-type", JSON), (b"content-length", b"%d" % len(body)), *headers]


def closing(send: Send) -> Send:
    """``send``, but the connection is closed after the reply, and the client told so."""

    async def send_(message: Message) -> None:
        if message["type"] == "http.response.start":
            message = {**message, "headers": [*message.get("headers", ()), CLOSE]}
        await send(message)

    return send_


async def reply_and_close(receive: Receive, send: Send, status: int, body: bytes, headers: Headers = ()) -> None:
    """Send a JSON reply to a client that may still be sending, then close the connection."""
    head = _head(body, (*headers, CLOSE))
    await send({"type": "http.response.start", "status": status, "headers": head})
    await send({"type": "http.response.body", "body": body, "more_body": True})
    with contextlib.suppress(asyncio.TimeoutError):
        await asyncio.wait_for(_discard(receive), LINGER_SECONDS)
    await send({"type": "http.response.body", "body": b""})


async def _discard(receive: Receive) -> None:
    left = LINGER_BYTES
    while left > 0:
        message = await receive()
        if message["type"] == "http.disconnect" or not message.get("more_body"):
            return
        left -= len(message.get("body", b""))
