"""An engine on a running asyncio loop, for callers in the same process: start, compute chunks of texts, close.

Separate from the Python API because both of its classes use it, one on the caller's loop and one on a loop in a thread.
The meaning of results does not belong here.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import cast

from launcher.core.tasks.routes import Prompt
from launcher.engine.inference_engine import InferenceEngine
from launcher.errors import InstanceError, RequestError, UsageError
from launcher.front.custom_items import CustomItems
from launcher.front.input_names import InputNames
from launcher.front.pairs import Pair, PairTruncation
from launcher.front.request_results import Vectors, split_rows
from launcher.front.tokenizer import Text, Tokenized
from launcher.host.registry import Held
from launcher.options import ServeOptions
from launcher.prepare.prepared_instances import Prepared

CLOSED = "the engine is closed; create another one"
# While all instances are restarting: how often to check whether one is ready.
NOT_READY_SECONDS = 0.05
TRUNCATE_HINT = "pass truncate=True to truncate it"


@dataclass(frozen=True, slots=True)
class PairInputs:
    """How the inputs of a call are used that can be pairs of texts: how long ones are truncated, or whether they become
    several items (``windows``), and what errors call them."""

    names: InputNames
    truncation: PairTruncation = "longest_first"
    windows: bool = False


@dataclass(frozen=True, slots=True)
class Chunk:
    """Some texts of a call; ``first`` is the index of the first one. ``lone``: it is the only text of the call.
    ``prompt`` is prepended to each text; ``None`` stands for the model's default prompt. It also chooses
    the route, if the model has some. ``pairs`` is set if pairs of
    texts are among the texts."""

    texts: Sequence[Text]
    first: int = 0
    lone: bool = False
    truncate: bool = False
    prompt: Prompt | None = None
    pairs: PairInputs | None = None


@dataclass(frozen=True, slots=True)
class Computed:
    """A chunk with its results: float32 of shape (texts, width), or (tokens, width) for a model with results for each
    token, or if their number varies, with ``rows`` of each text."""

    chunk: Chunk
    tokenized: Tokenized
    results: Vectors
    rows: Sequence[int] = ()

    def by_token(self) -> list[Vectors]:
        """The rows of each text, if there is one for each token."""
        return split_rows(self.results, [len(item) for item in self.tokenized.items])

    def varying(self) -> list[Vectors]:
        """The rows of each text, if their number varies."""
        return split_rows(self.results, self.rows)


class QueueCapacity:
    """Limits the items in the queue; callers that exceed the limit wait in order of arrival.

    Over HTTP a full queue is answered with 429. In a program, callers can wait instead.
    """

    def __init__(self, items: int) -> None:
        self._free = items
        self._waiters: deque[tuple[int, asyncio.Future[None]]] = deque()

    async def take(self, items: int) -> None:
        """Wait until there is room for this number of items. Release them with ``give_back``."""
        if not self._waiters and self._free >= items:
            self._free -= items
            return
        granted: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        waiter = (items, granted)
        self._waiters.append(waiter)
        try:
            await granted
        except asyncio.CancelledError:
            if not granted.cancelled():  # granted and cancelled in the same iteration of the loop
                self.give_back(items)
            elif waiter in self._waiters:
                self._waiters.remove(waiter)
                self._grant()
            raise

    def give_back(self, items: int) -> None:
        """This number of items has left the queue."""
        self._free += items
        self._grant()

    def _grant(self) -> None:
        while self._waiters and self._free >= self._waiters[0][0]:
            items, granted = self._waiters.popleft()
            if not granted.cancelled():
                self._free -= items
                granted.set_result(None)


class Session:
    """See the module's docstring. Call all methods in the thread of one running loop, which starts the workers."""

    def __init__(self, options: ServeOptions, prepared: Prepared, claim: Held | None = None) -> None:
        """``claim`` is the claim of the cores, which is released when the workers have exited."""
        self._claim = claim
        self.engine = InferenceEngine(options, prepared)
        self.chunk_items = min(256, options.scheduling.queue_items)
        self._queue_items = options.scheduling.queue_items
        self._drain_seconds = options.front.drain_seconds
        self._room = QueueCapacity(self._queue_items)
        self._running: asyncio.Task[None] | None = None
        self._closing: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Wait until the instances are ready. Raises ``InstanceError`` if none can be started; then all have exited."""
        self._running = asyncio.create_task(self.engine.run(), name="launcher engine")
        ready = asyncio.create_task(self.engine.wait_ready(), name="launcher engine start")
        try:
            await asyncio.wait({self._running, ready}, return_when=asyncio.FIRST_COMPLETED)
            if not ready.done():
                raise InstanceError("the engine ended during its start")
            ready.result()
        except BaseException:
            ready.cancel()
            self.kill()
            await self._ended()
            raise

    async def compute(self, chunk: Chunk) -> Computed:
        """The results of a chunk of at most ``chunk_items`` texts. Waits until the queue has room, and while all
        instances are restarting.

        Raises ``RequestError`` for a text that cannot be used, ``InstanceError`` if no instance is left, and
        ``UsageError`` if the engine is closed.
        """
        self._check_open()
        # Only the tokenizer knows in how many windows it reads a text.
        windows = chunk.pairs is not None and chunk.pairs.windows
        tokenized = await self._tokenize(chunk) if windows else None
        items = len(tokenized.items) if tokenized else len(chunk.texts)
        await self._room.take(items)
        try:
            return await self._compute(chunk, tokenized or await self._tokenize(chunk))
        except RequestError as error:
            if error.code in ("draining", "no_instance"):
                self._check_open(error)
            raise
        finally:
            self._room.give_back(items)

    async def _compute(self, chunk: Chunk, tokenized: Tokenized) -> Computed:
        while True:
            self._check_open()
            try:
                outcome = await self.engine.dispatcher.enqueue(tokenized.items, details=tokenized.details)
            except RequestError as error:
                if error.code != "not_ready":
                    raise
            else:
                return Computed(chunk, tokenized, outcome.results, outcome.rows)
            await asyncio.sleep(NOT_READY_SECONDS)

    async def _tokenize(self, chunk: Chunk) -> Tokenized:
        tokenizer = self.engine.tokenizer
        if isinstance(tokenizer, CustomItems):
            names = InputNames("items", chunk.first, chunk.lone)
            return await tokenizer.items([text.encode() for text in cast("Sequence[str]", chunk.texts)], field=names)
        if chunk.pairs is not None:
            names = replace(
                chunk.pairs.names,
                first=chunk.first,
                lone=chunk.lone or chunk.pairs.names.lone,
                truncate_hint=TRUNCATE_HINT,
            )
            if chunk.pairs.windows:
                pairs = cast("Sequence[Pair]", chunk.texts)
                return await tokenizer.windows(pairs, limit=self._queue_items, field=names)
            truncation = chunk.pairs.truncation
            return await tokenizer.pairs(chunk.texts, truncate=chunk.truncate, truncation=truncation, field=names)
        texts = cast("Sequence[str]", chunk.texts)
        names = InputNames("texts", chunk.first, chunk.lone, TRUNCATE_HINT)
        return await tokenizer.texts(texts, truncate=chunk.truncate, field=names, prompt=chunk.prompt)

    def _check_open(self, cause: Exception | None = None) -> None:
        if self.engine.failure is not None:
            raise self.engine.failure from cause
        if self.engine.draining or self._running is None or self._running.done():
            raise UsageError(CLOSED) from cause

    async def close(self) -> None:
        """Finish admitted work, for at most ``drain_seconds``, and stop the workers; returns when all have exited.

        Can be called repeatedly and concurrently.
        """
        if self._closing is None:
            self._closing = asyncio.create_task(self._close(), name="launcher engine close")
        await asyncio.shield(self._closing)

    async def _close(self) -> None:
        if self._running is not None and not self._running.done():
            await self.engine.drain(self._drain_seconds)
            await self.engine.stop()
        await self._ended()

    def kill(self) -> None:
        """Kill the workers at once; ``close`` returns when they are reaped."""
        self.engine.stop_now()

    async def _ended(self) -> None:
        if self._running is not None:
            await asyncio.wait({self._running})
        self.engine.close()
        if self._claim is not None:
            self._claim.release()
