"""One exchange with one client: its body read within limits, the wait that ends when it leaves, the reply.

Written on ASGI itself rather than on Starlette's request and response: this is the path of every request, and what
they would add (about 40 µs) is not needed here. What the bodies mean must not enter.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Sequence
from typing import TypeVar

from starlette.types import Message, Receive, Scope, Send

from launcher.errors import RequestError

Headers = Sequence[tuple[bytes, bytes]]
Result = TypeVar("Result")

JSON = b"application/json"
# A client that has sent too much is still read for a while, up to this much and this long, because closing a
# connection with unread data resets it, and the client would never see the answer.
LINGER_BYTES = 64 * 1024 * 1024
LINGER_SECONDS = 5.0


class ClientGone(Exception):
    """The client has closed its connection; nobody waits for an answer."""


class BodyTooLarge(RequestError):
    """The body is over the limit, and what is left of it was not read."""


async def read_body(scope: Scope, receive: Receive, limit: int) -> bytes:
    """The whole body, at most ``limit`` bytes of JSON. Raises ``RequestError`` and ``ClientGone``."""
    _check_headers(scope, limit)
    message = await receive()
    if message["type"] == "http.request" and not message.get("more_body"):
        body: bytes = message.get("body", b"")
        if len(body) > limit:
            raise _too_large(f"{len(body)} bytes", limit)
        return body
    return await _read_rest(message, receive, limit)


async def _read_rest(message: Message, receive: Receive, limit: int) -> bytes:
    parts = bytearray()
    while True:
        if message["type"] == "http.disconnect":
            raise ClientGone
        parts += message.get("body", b"")
        if len(parts) > limit:
            raise _too_large(f"more than {limit} bytes", limit)
        if not message.get("more_body"):
            return bytes(parts)
        message = await receive()


def _check_headers(scope: Scope, limit: int) -> None:
    kind = JSON
    for name, value in scope["headers"]:
        if name == b"content-type":
            kind = value
        elif name == b"content-length":
            # The parser has seen to it that these are digits.
            if int(value) > limit:
                raise _too_large(f"{int(value)} bytes", limit)
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


async def while_connected(future: asyncio.Future[Result], receive: Receive) -> Result:
    """What ``future`` gives. When the client leaves first, it is cancelled and ``ClientGone`` raised."""
    watch = asyncio.ensure_future(_until_gone(receive))
    watch.add_done_callback(lambda _: future.cancel())
    try:
        return await future
    except asyncio.CancelledError:
        if watch.done() and not watch.cancelled():
            raise ClientGone from None
        raise
    finally:
        watch.cancel()


async def _until_gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


async def reply(send: Send, status: int, body: bytes, headers: Headers = ()) -> None:
    """Send a JSON reply."""
    await send({"type": "http.response.start", "status": status, "headers": _head(body, headers)})
    await send({"type": "http.response.body", "body": body})


def _head(body: bytes, headers: Headers) -> list[tuple[bytes, bytes]]:
    return [(b"content-type", JSON), (b"content-length", b"%d" % len(body)), *headers]


async def reply_and_close(receive: Receive, send: Send, status: int, body: bytes, headers: Headers = ()) -> None:
    """Send a JSON reply to a client that may still be sending, then close the connection."""
    head = _head(body, (*headers, (b"connection", b"close")))
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
