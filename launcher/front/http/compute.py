"""What all routes that compute have in common: body in, tokens, the wait, body out; times, counts and errors.

A route says how its body is read and how its reply is written (``Route``); everything that must be the same for
all of them is here, once.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

from msgspec import Struct
from starlette.types import Receive, Scope, Send

from launcher.core.protocol.model_info import ModelInfo
from launcher.core.scheduling.events import Priority
from launcher.errors import RequestError
from launcher.front.dispatcher import Dispatcher, Vectors
from launcher.front.http.bodies import BodyDecoder, as_lists
from launcher.front.http.disconnect import ClientGone, DisconnectWatch, disconnect_watch_of
from launcher.front.http.errors import error_body, error_headers, internal_error_body
from launcher.front.http.exchange import Headers, Intake, Unread, closing, in_time, reply_and_close
from launcher.front.http.large import INLINE_BYTES, LargeBodyDecoder
from launcher.front.http.request_headers import parse_request_headers
from launcher.front.metrics import FrontMetrics
from launcher.front.tokenizer import FrontTokenizer, Tokenized
from launcher.options import FrontOptions

Body = TypeVar("Body", bound=Struct)
Result = TypeVar("Result")
_log = logging.getLogger(__name__)

# What nginx logs for a client that left before its answer; nothing is sent, only counted.
CLIENT_GONE = 499
DEADLINE_STATUS = 504
# About 3 ms of work for vectors of 384 values.
ENTRIES_AT_ONCE = 256


@dataclass(frozen=True, slots=True)
class Services:
    """All that the routes need. ``info`` gives the body of ``/info``, ``states`` the states of the instances, by id,
    ``is_ready`` whether enough instances are warm and the server is not about to end. ``bulk_turn`` is with the
    one bulk request that may have a thread."""

    dispatcher: Dispatcher
    tokenizer: FrontTokenizer
    model_info: ModelInfo
    options: FrontOptions
    info: Callable[[], Mapping[str, Any]]
    states: Callable[[], Mapping[str, Any]]
    is_ready: Callable[[], bool]
    metrics: FrontMetrics
    bulk_turn: asyncio.Lock = field(default_factory=asyncio.Lock)


class ComputeRoute(Generic[Body]):
    """An ASGI application for one route. Subclasses set the three attributes and write the first methods."""

    path: str
    field: str
    body_type: type[Body]

    def __init__(self, services: Services, intake: Intake) -> None:
        self._intake = intake
        self._model_info = services.model_info
        self._dispatcher = services.dispatcher
        self._tokenizer = services.tokenizer
        self._options = services.options
        self._metrics = services.metrics
        self._bulk_turn = services.bulk_turn
        self._decoder = BodyDecoder(self.body_type)
        self._large = LargeBodyDecoder(self.body_type, self.field, self._options.request_items)
        self._count = services.metrics.route(self.path)
        stage = services.metrics.stage
        self._parse_seconds, self._tokenize_seconds = stage("parse"), stage("tokenize")
        self._queue_seconds, self._compute_seconds = stage("queue"), stage("compute")
        self._reply_seconds = stage("reply")

    def check(self, body: Body) -> None:
        """Raise ``RequestError`` for what the types alone cannot say."""
        raise NotImplementedError

    def inputs(self, body: Body) -> tuple[Any, bool]:
        """The inputs as they stand in the body, and whether long ones are to be truncated."""
        raise NotImplementedError

    def shape(self, body: Body, results: Vectors) -> Vectors:
        """The results as this request wants them."""
        return results

    def entries(self, body: Body, results: Vectors, first: int) -> list[bytes]:
        """The JSON of each result; ``first`` is the index of the first one."""
        raise NotImplementedError

    def envelope(self, tokenized: Tokenized) -> tuple[bytes, bytes]:
        """The JSON before and after the entries of the reply."""
        raise NotImplementedError

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request, whatever happens."""
        headers: Headers = ()
        try:
            status, (payload, headers) = 200, await self._answer(scope, receive, self._dispatcher.now())
        except RequestError as error:
            status, payload, headers = error.status, _payload(error), error_headers(error)
            if isinstance(error, Unread):
                self._count.answered(status)
                await reply_and_close(receive, send, status, payload, headers)
                return
        except ClientGone:
            self._count.answered(CLIENT_GONE)
            return
        except Exception:
            _log.exception("a request to %s failed inside", self.path, extra={"event": "internal_error"})
            status, payload = 500, internal_error_body()
        self._count.answered(status)
        send = closing(send) if self._dispatcher.draining else send
        await self._intake.reply(send, status, payload, headers)

    async def _answer(self, scope: Scope, receive: Receive, arrived: float) -> tuple[bytes, Headers]:
        raw = await self._intake.read(scope, receive)
        try:
            disconnect = disconnect_watch_of(scope)
            request_headers = parse_request_headers(scope["headers"])
            self._metrics.asked(request_headers.priority)
            if request_headers.deadline is None:
                return await self._compute(raw, disconnect, request_headers.priority, None)
            try:
                return await self._compute(
                    raw, disconnect, request_headers.priority, arrived + request_headers.deadline
                )
            except RequestError as error:
                if error.status == DEADLINE_STATUS:
                    self._metrics.missed(request_headers.priority, error.code)
                raise
        finally:
            self._intake.release(raw)

    async def _compute(
        self, raw: bytes, disconnect: DisconnectWatch, priority: Priority, deadline: float | None
    ) -> tuple[bytes, Headers]:
        clock = time.perf_counter
        started = clock()
        body, ignored = await self._read(raw, disconnect, priority)
        self.check(body)
        parsed = clock()
        tokenized = await self._tokenize(body, disconnect, priority, deadline)
        done = clock()
        self._parse_seconds(parsed - started)
        self._tokenize_seconds(done - parsed)

        future = self._dispatcher.enqueue(tokenized.items, priority=priority, deadline=deadline)
        outcome = await disconnect.wait(future)

        started = clock()
        self._queue_seconds(outcome.queue_seconds)
        self._compute_seconds(outcome.compute_seconds)
        self._count.computed(len(tokenized.items), tokenized.tokens)
        payload = await self._write(body, outcome.results, tokenized)
        self._reply_seconds(clock() - started)
        return payload, _notes(tokenized, ignored) if ignored or tokenized.truncated else ()

    async def _read(self, raw: bytes, disconnect: DisconnectWatch, priority: Priority) -> tuple[Body, Sequence[str]]:
        if len(raw) <= INLINE_BYTES:
            return self._decoder.decode(raw)
        self._dispatcher.check_admission(1, ahead=self._tokenizer.pending, priority=priority)

        async def decode() -> tuple[Body, Sequence[str]]:
            return await disconnect.wait(self._tokenizer.in_thread(1, self._large.decode, raw))

        return await (self._in_turn(decode) if priority == "bulk" else decode())

    async def _in_turn(self, work: Callable[[], Awaitable[Result]]) -> Result:
        """Bulk has a thread one request at a time, so that one is left for interactive requests."""
        async with self._bulk_turn:
            return await work()

    async def _tokenize(
        self, body: Body, disconnect: DisconnectWatch, priority: Priority, deadline: float | None
    ) -> Tokenized:
        value, truncate = self.inputs(body)
        texts, ids = as_lists(value, self.field, self._options.request_items)
        # Asked before the work is done, not only when it is done for nothing.
        count = len(texts or ids or ())
        self._dispatcher.check_admission(count, ahead=self._tokenizer.pending, priority=priority)

        def tokenize() -> Awaitable[Tokenized]:
            if texts is not None:
                return self._tokenizer.texts(texts, truncate=truncate, field=self.field, wait=disconnect.wait)
            return self._tokenizer.ids(ids or (), truncate=truncate, field=self.field, wait=disconnect.wait)

        tokenized = self._in_turn(tokenize) if priority == "bulk" else tokenize()
        return await (tokenized if deadline is None else in_time(tokenized, deadline - self._dispatcher.now()))

    async def _write(self, body: Body, results: Vectors, tokenized: Tokenized) -> bytes:
        """The whole reply."""
        entries = await self.all_entries(body, results, tokenized)
        before, after = self.envelope(tokenized)
        # Joined once: a reply may have some ten MB, and each copy of so much holds the loop for as many milliseconds.
        entries[0] = before + entries[0]
        entries[-1] += after
        return b",".join(entries)

    async def all_entries(self, body: Body, results: Vectors, tokenized: Tokenized) -> list[bytes]:
        """The JSON of all results; many are written with pauses, in which others are served."""
        results = self.shape(body, results)
        entries: list[bytes] = []
        for first in range(0, len(results), ENTRIES_AT_ONCE):
            if first:
                await asyncio.sleep(0)
            entries += self.entries(body, results[first : first + ENTRIES_AT_ONCE], first)
        return entries


def _payload(error: RequestError) -> bytes:
    return error_body(str(error), error.status, error.code, error.param)


def _notes(tokenized: Tokenized, ignored: Sequence[str]) -> Headers:
    """Headers that say what was done differently from what the client may think."""
    notes = []
    if tokenized.truncated:
        notes.append((b"x-launcher-truncated-inputs", b"%d" % len(tokenized.truncated)))
    if ignored:
        # Names come from the client: only what can stand in a header is repeated.
        names = [name for name in ignored[:8] if name.isascii() and name.isprintable() and len(name) <= 64]
        notes.append((b"x-launcher-ignored-fields", ", ".join(names).encode() or b"?"))
    return notes
