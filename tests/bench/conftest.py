"""A minimal server for tests of the load generator."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest

Answer = Callable[[str, dict[str, Any]], tuple[int, dict[str, Any]]]


@pytest.fixture
def anyio_backend() -> tuple[str, dict[str, bool]]:
    """The event loop that the commands use."""
    return "asyncio", {"use_uvloop": True}


@contextlib.asynccontextmanager
async def _serving(answer: Answer) -> AsyncIterator[str]:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionResetError):
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).decode().lower()
                _, has_body, rest = head.partition("content-length: ")
                sent = await reader.readexactly(int(rest.split("\r\n")[0])) if has_body else b"{}"
                status, reply = answer(head.split()[1], json.loads(sent))
                body = json.dumps(reply).encode()
                writer.write(f"HTTP/1.1 {status} X\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body)
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    try:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    finally:
        server.close()


@pytest.fixture
def serving() -> Callable[[Answer], contextlib.AbstractAsyncContextManager[str]]:
    """``async with serving(answer) as url``: ``answer(path, body)`` returns the status and body of each response."""
    return _serving
