"""Computes any number of texts in order with a bounded number in flight, so that memory stays flat.

Texts are taken from their iterator only as results are consumed. There is one variant for callers with an event loop
and one for callers without.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterable, Callable, Coroutine, Iterable, Iterator
from contextlib import aclosing
from typing import Any

import msgspec

from launcher.core.tasks.routes import Prompt
from launcher.engine.session import CLOSED, Chunk, Computed, PairInputs
from launcher.errors import UsageError
from launcher.front.pairs import Pair
from launcher.front.tokenizer import Text

# Characters that are tokenized and queued together: about four batches of English text.
CHUNK_CHARACTERS = 32_000
# The same if a text can become several items, so that all of them fit into the queue.
WINDOWS_CHUNK_CHARACTERS = 4_000
# Chunks in flight: enough to keep all instances busy while texts are tokenized and results consumed.
BASE_CHUNKS = 4
CHUNKS_PER_INSTANCE = 4


_encode = msgspec.json.Encoder().encode


def chunk_limit(instances: int) -> int:
    """The maximum number of chunks in flight for this number of instances."""
    return BASE_CHUNKS + CHUNKS_PER_INSTANCE * instances


class Chunker:
    """Groups texts into chunks of at most ``items`` texts. ``lone``: there is one text, so errors need no index.
    ``prompt`` is that of the chunks. With ``pairs``, texts can be pairs of texts. With ``json``, they are items of a
    custom class, which become JSON."""

    def __init__(
        self,
        items: int,
        *,
        truncate: bool,
        lone: bool = False,
        prompt: Prompt | None = None,
        pairs: PairInputs | None = None,
        json: bool = False,
    ) -> None:
        self._json = json
        self._items = items
        self._truncate = truncate
        self._lone = lone
        self._prompt = prompt
        self._prompt_characters = len(prompt or "")
        self._pairs = pairs
        self._most = WINDOWS_CHUNK_CHARACTERS if pairs is not None and pairs.windows else CHUNK_CHARACTERS
        self._has_pairs = False
        self._first = 0
        self._texts: list[Text] = []
        self._characters = 0

    def add(self, text: Any) -> Chunk | None:
        """The chunk that this text completes, or None. Raises ``UsageError`` if it is not a ``str``, or an item that
        JSON cannot express."""
        if self._json:
            text = self._to_json(text)
        if isinstance(text, str):
            self._texts.append(text)
            self._characters += len(text) + self._prompt_characters
        else:
            pair = self._pair(text)
            self._texts.append(pair)
            self._characters += len(pair[0]) + len(pair[1])
        if len(self._texts) < self._items and self._characters < self._most:
            return None
        return self.rest()

    def _to_json(self, item: Any) -> str:
        try:
            return _encode(item).decode()
        except (TypeError, ValueError) as error:
            place = self._first + len(self._texts)
            raise UsageError(f"'items[{place}]' cannot be expressed in JSON: {error}") from error

    def _pair(self, value: Any) -> Pair:
        place = self._first + len(self._texts)
        if self._pairs is None:
            raise UsageError(f"'texts[{place}]' is of type {type(value).__name__}; it must be a str")
        names = self._pairs.names
        if not isinstance(value, (tuple, list)) or len(value) != 2:
            found = type(value).__name__
            raise UsageError(f"{names.of(place)} is of type {found}; it must be a str, or a tuple of two")
        for side, text in enumerate(value):
            if not isinstance(text, str):
                raise UsageError(f"{names.of_half(place, side)} is of type {type(text).__name__}; it must be a str")
        self._has_pairs = True
        return value[0], value[1]

    def rest(self) -> Chunk | None:
        """The chunk of the remaining texts, or None."""
        if not self._texts:
            return None
        pairs = self._pairs if self._has_pairs else None
        chunk = Chunk(self._texts, self._first, self._lone, self._truncate, self._prompt, pairs)
        self._first += len(self._texts)
        self._texts, self._characters, self._has_pairs = [], 0, False
        return chunk


def _chunks(texts: Iterable[Any], chunker: Chunker) -> Iterator[Chunk]:
    if isinstance(texts, (str, bytes)):  # both can be iterated, but nobody wants a result for each character
        raise UsageError(f"texts is a single {type(texts).__name__}; it must be an iterable of str, such as a list")
    for text in texts:
        if chunk := chunker.add(text):
            yield chunk
    if chunk := chunker.rest():
        yield chunk


def in_order(
    texts: Iterable[Any], chunker: Chunker, limit: int, submit: Callable[[Chunk], concurrent.futures.Future[Computed]]
) -> Iterator[Computed]:
    """The results of the texts, chunk by chunk, with at most ``limit`` chunks in flight.

    Raises what the iterator raises, and the error of a chunk after the results of the chunks before it. When the
    caller stops early, chunks in flight are cancelled.
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
        computed = pending[0].result()  # stays in the queue meanwhile, so that an interrupt cancels it
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
    """As ``in_order``, on the running loop. Texts may come from an asynchronous iterator."""
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
        await asyncio.sleep(0)  # let other tasks run between chunks
