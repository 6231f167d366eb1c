"""Sends JSON responses to clients, including those that read slowly or have not stopped sending.

Written on ASGI itself and not on Starlette's responses: these send the response of every request. The content of
responses does not belong here.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Sequence

from starlette.types import Message, Receive, Send

from launcher.front.http.body_reader import JSON, BodyMemory
from launcher.front.http.error_response import ErrorResponse

Headers = Sequence[tuple[bytes, bytes]]

# uvicorn and the kernel buffer this much of a response anyway.
LARGE_RESPONSE_BYTES = 64 * 1024
# A client that has sent too much is still read for this long and this much: closing a connection with unread data
# resets it, and the client would never see the response.
LINGER_BYTES = 64 * 1024 * 1024
LINGER_SECONDS = 5.0
CONNECTION_CLOSE = (b"connection", b"close")


async def send_json(
    memory: BodyMemory, client: str, send: Send, status: int, body: bytes, headers: Headers = ()
) -> None:
    """Send a JSON response. A large one counts as held in ``memory`` by ``client`` until it has read most of it."""
    await send({"type": "http.response.start", "status": status, "headers": _headers(body, headers)})
    if len(body) <= LARGE_RESPONSE_BYTES:
        await send({"type": "http.response.body", "body": body})
        return
    memory.hold_response(client, len(body))
    try:
        await send({"type": "http.response.body", "body": body, "more_body": True})
        await send({"type": "http.response.body", "body": b""})  # waits until the body is sent
    finally:
        memory.release_response(client, len(body))


def with_connection_close(send: Send) -> Send:
    """``send`` with ``Connection: close`` added to the response, after which uvicorn closes the connection."""

    async def send_and_close(message: Message) -> None:
        if message["type"] == "http.response.start":
            message = {**message, "headers": [*message.get("headers", ()), CONNECTION_CLOSE]}
        await send(message)

    return send_and_close


async def send_json_and_close(receive: Receive, send: Send, response: ErrorResponse) -> None:
    """Send an error to a client that may not have stopped sending, then close the connection."""
    headers = _headers(response.body, (*response.headers, CONNECTION_CLOSE))
    await send({"type": "http.response.start", "status": response.status, "headers": headers})
    await send({"type": "http.response.body", "body": response.body, "more_body": True})
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


def _headers(body: bytes, headers: Headers) -> list[tuple[bytes, bytes]]:
    return [(b"content-type", JSON), (b"content-length", b"%d" % len(body)), *headers]
