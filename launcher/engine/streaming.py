"""Many texts through a session in order, with bounded work under way, so that memory stays flat.

Texts are taken from their iterator only when there is room; results come in the order of the texts. The same for
callers with an event loop and for those without one.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterable, Callable, Coroutine, Iterable, Iterator
from contextlib import aclosing
from typing import Any

from launcher.engine.session import CLOSED, Chunk, Computed
from launcher.errors import UsageError

# Tokenized and queued together; about four batches of English text.
CHUNK_CHARACTERS = 32_000
# Chunks under way: enough that no instance waits while texts are tokenized and results are taken.
BASE_CHUNKS = 4
CHUNKS_PER_INSTANCE = 4


def chunk_limit(instances: int) -> int:
    """How many chunks may be under way at a time with so many instances."""
    return BASE_CHUNKS + CHUNKS_PER_INSTANCE * instances


class Chunker:
    """Groups texts into chunks of at most ``items`` texts. ``lone``: errors need not say which text it is."""

    def __init__(self, items: int, *, truncate: bool, lone: bool = False) -> None:
        self._items = items
        self._truncate = truncate
        self._lone = lone
        self._first = 0
        self._texts: list[str] = []
        self._characters = 0

    def add(self, text: Any) -> Chunk | None:
        """The chunk that this text completes. Raises ``UsageError`` for what is not a text."""
        if not isinstance(text, str):
            place = self._first + len(self._texts)
            raise UsageError(f"'texts[{place}]' is of type {type(text).__name__}; it must be a str")
        self._texts.append(text)
        self._characters += len(text)
        if len(self._texts) < self._items and self._characters < CHUNK_CHARACTERS:
            return None
        return self.rest()

    def rest(self) -> Chunk | None:
        """The chunk of the texts that are left."""
        if not self._texts:
            return None
        chunk = Chunk(self._texts, self._first, self._lone, self._truncate)
        self._first += len(self._texts)
        self._texts, self._characters = [], 0
        return chunk


def _chunks(texts: Iterable[Any], chunker: Chunker) -> Iterator[Chunk]:
    for text in texts:
        if chunk := chunker.add(text):
            yield chunk
    if chunk := chunker.rest():
        yield chunk


def in_order(
    texts: Iterable[Any], chunker: Chunker, limit: int, submit: Callable[[Chunk], concurrent.futures.Future[Computed]]
) -> Iterator[Computed]:
    """What becomes of the texts, chunk by chunk, while at most ``limit`` chunks are under way.

    Raises what the iterator of the texts raises, and what a chunk raises after the results before it. However it ends,
    the chunks under way are cancelled.
    """
    pending: deque[concurrent.futures.Future[Computed]] = deque()
    try:
        for chunk in _chunks(texts, chunker):
            pending.append(submit(chunk))
            while pending and (len(pending) >= limit or pending[0].done()):
                yield _result(pending)
        while pending:
            yield _result(pending)
    finally:
        for future in pending:
            future.cancel()


def _result(pending: deque[concurrent.futures.Future[Computed]]) -> Computed:
    try:
        computed = pending[0].result()  # left in place: an interrupt must find it there, to be cancelled
    except concurrent.futures.CancelledError as error:
        raise UsageError(CLOSED) from error
    pending.popleft()
    return computed


async def in_order_async(
    texts: Iterable[Any] | AsyncIterable[Any],
    chunker: Chunker,
    limit: int,
    compute: Callable[[Chunk], Coroutine[Any, Any, Computed]],
) -> AsyncGenerator[Computed, None]:
    """As ``in_order``, on the running loop; texts may come from an asynchronous iterator."""
    pending: deque[asyncio.Task[Computed]] = deque()
    try:
        async with aclosing(_async_chunks(texts, chunker)) as chunks:
            async for chunk in chunks:
                pending.append(asyncio.ensure_future(compute(chunk)))
                while pending and (len(pending) >= limit or pending[0].done()):
                    computed = await pending[0]
                    pending.popleft()
                    yield computed
        while pending:
            computed = await pending[0]
            pending.popleft()
            yield computed
    finally:
        for task in pending:
            task.cancel()
        await asyncio.gather(*pending, return_exceptions=True)


async def _async_chunks(texts: Iterable[Any] | AsyncIterable[Any], chunker: Chunker) -> AsyncGenerator[Chunk, None]:
    if isinstance(texts, AsyncIterable):
        async for text in texts:
            if chunk := chunker.add(text):
                yield chunk
        if chunk := chunker.rest():
            yield chunk
        return
    for chunk in _chunks(texts, chunker):
        yield chunk
        await asyncio.sleep(0)  # an iterator that never waits must not hold the loop
