"""Routes that run the model: request body in, tokenize, wait for the workers, response out; timings, counters, errors.

A family describes such a route with ``InferenceRoute`` and subclasses ``InferenceHandler`` to say how its bodies are
read and its responses are written. Everything that must be the same for all of them is here.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Generic, Literal, TypeVar

from starlette.types import Receive, Scope, Send

from launcher.core.protocol.model_info import ModelInfo
from launcher.core.scheduling.events import Priority
from launcher.core.tasks.prompts import choose_prompt
from launcher.core.tasks.routes import Prompt, RoutedPrompt, choose_route
from launcher.errors import RequestError, UsageError
from launcher.front.dispatcher import Outcome
from launcher.front.http.body_decoder import Body, BodyDecoder
from launcher.front.http.body_reader import BodyMemory, BodyNotRead, BodyReader
from launcher.front.http.client_identity import client_name
from launcher.front.http.disconnect import Client, ClientDisconnected, client_of
from launcher.front.http.error_response import ErrorFormat, internal_error
from launcher.front.http.inputs import InputObject, read_objects, texts_or_token_ids, token_ids_refused
from launcher.front.http.large_body_decoder import INLINE_BYTES, LargeBodyDecoder
from launcher.front.http.request_headers import HEADERS, parse_request_headers
from launcher.front.http.responses import Headers, send_json, send_json_and_close, with_connection_close
from launcher.front.http.route import HeaderSpec, Route
from launcher.front.http.services import Services
from launcher.front.input_reader import Wait
from launcher.front.request_results import Vectors
from launcher.front.token_id_decoder import TokenIdDecoder
from launcher.front.tokenizer import Ids, Tokenized

Result = TypeVar("Result")
Tokenize = Callable[[Wait], Awaitable[Tokenized]]
_log = logging.getLogger(__name__)

# nginx logs this status for a client that disconnected before its response. It is only counted, never sent.
CLIENT_CLOSED_REQUEST = 499
DEADLINE_STATUS = 504
# Results encoded before other requests get a turn: about 3 ms for vectors of 384 values.
RESULTS_PER_TURN = 256

INFERENCE_ERRORS: Mapping[int, str] = {
    400: "The body is invalid: not JSON, a wrong type, token ids that are refused, an empty or too long input.",
    408: "The body is sent too slowly.",
    413: "The body, the number of inputs or their predicted time exceeds a hard limit; do not retry.",
    415: "The body is not plain application/json.",
    422: "Two workers were lost while they computed an input; it is quarantined.",
    429: "The client has too much queued, or the server is overloaded; retry after the time in Retry-After.",
    500: "The inputs could not be computed, in two attempts.",
    503: "No instance is ready, the server is shutting down, or memory is short.",
    504: "The deadline cannot be met (refused at once), or passed while inputs were queued.",
}


@dataclass(frozen=True, slots=True)
class InferenceContext:
    """The arguments of a route's handler: its description, the error format of its family, and the server."""

    route: InferenceRoute
    errors: ErrorFormat
    services: Services
    body_memory: BodyMemory


@dataclass(slots=True)  # not frozen, which makes an instance take half a microsecond longer
class Caller:
    """Who sent a request, and how urgent it is. ``name`` is that of ``client_identity``, ``deadline`` a time on the
    dispatcher's clock."""

    name: str
    connection: Client
    priority: Priority
    deadline: float | None = None


class InferenceHandler(Generic[Body]):
    """An ASGI application for one route.

    Subclasses name the field of the body that holds the inputs, and implement the first methods.
    """

    inputs_field: str
    # See ``Dispatcher.enqueue``.
    _max_rows: int | None = None

    def __init__(self, context: InferenceContext) -> None:
        services, path, body_type = context.services, context.route.path, context.route.request
        self._path = path
        self._errors = context.errors
        self._model_info = services.model_info
        self._dispatcher = services.dispatcher
        self._tokenizer = services.tokenizer
        self._options = services.options
        self._id_decoder = services.id_decoder
        self._metrics = services.metrics
        self._bulk_lock = services.bulk_lock
        self._body_memory = context.body_memory
        self._memory_gate = services.memory_gate
        self._reader = BodyReader(self._options, context.body_memory)
        self._decoder: BodyDecoder[Body] = BodyDecoder(body_type)
        self._large: LargeBodyDecoder[Body] = LargeBodyDecoder(
            body_type, self.inputs_field, self._options.request_items
        )
        self._count = services.metrics.route(path)
        stage = services.metrics.stage
        self._parse_seconds, self._tokenize_seconds = stage("parse"), stage("tokenize")
        self._queue_seconds, self._compute_seconds = stage("queue"), stage("compute")
        self._reply_seconds = stage("reply")

    def validate(self, body: Body) -> None:
        """Raise ``RequestError`` for errors that the types alone cannot exclude."""

    def inputs(self, body: Body) -> tuple[Any, bool]:
        """The inputs of the body, and whether long ones are truncated."""
        raise NotImplementedError

    def prompt(self, body: Body) -> Prompt | None:
        """The text to prepend to the inputs, and their route if the model has some; None for the model's default.
        Raises ``RequestError``."""
        return None

    def postprocess(self, body: Body, results: Vectors) -> Vectors:
        """The results, converted as the request specifies."""
        return results

    def encode_results(self, body: Body, results: Vectors, first: int) -> list[bytes]:
        """The JSON of each result; ``first`` is the index of the first one."""
        raise NotImplementedError

    def envelope(self, body: Body, tokenized: Tokenized) -> tuple[bytes, bytes]:
        """The JSON before and after the results, which are separated by commas."""
        raise NotImplementedError

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        headers: Headers = ()
        client = client_name(scope)
        try:
            status, (payload, headers) = 200, await self._answer(scope, receive, client)
        except RequestError as error:
            status, payload, headers = response = self._errors.response(error)
            if isinstance(error, BodyNotRead):
                self._count.answered(status)
                await send_json_and_close(receive, send, response)
                return
        except ClientDisconnected:
            self._count.answered(CLIENT_CLOSED_REQUEST)
            return
        except Exception:
            _log.exception("A request to %s failed unexpectedly.", self._path, extra={"event": "internal_error"})
            status, payload, headers = self._errors.response(internal_error())
        self._count.answered(status)
        send = with_connection_close(send) if self._dispatcher.draining else send
        await send_json(self._body_memory, client, send, status, payload, headers)

    async def _answer(self, scope: Scope, receive: Receive, client: str) -> tuple[bytes, Headers]:
        arrived = self._dispatcher.now()
        if self._memory_gate.reason is not None:
            raise BodyNotRead(self._memory_gate.reason, status=503, code="memory_short", retry_after=1.0)
        raw = await self._reader.read(scope, receive, client)
        try:
            asked = parse_request_headers(scope["headers"])
            priority, connection = asked.priority, client_of(scope)
            self._metrics.asked(priority)
            if asked.deadline is None:
                return await self._infer(raw, Caller(client, connection, priority))
            try:
                return await self._infer(raw, Caller(client, connection, priority, arrived + asked.deadline))
            except RequestError as error:
                if error.status == DEADLINE_STATUS:
                    self._metrics.missed(priority, error.code)
                raise
        finally:
            self._reader.release(raw, client)

    async def _infer(self, raw: bytes, caller: Caller) -> tuple[bytes, Headers]:
        clock = time.perf_counter
        started = clock()
        body, ignored = await self._decode(raw, caller)
        self.validate(body)
        parsed = clock()
        tokenized = await self._tokenize(body, caller)
        done = clock()
        self._parse_seconds(parsed - started)
        self._tokenize_seconds(done - parsed)

        future = self._dispatcher.enqueue(
            tokenized.items,
            details=tokenized.details,
            priority=caller.priority,
            deadline=caller.deadline,
            max_rows=self._max_rows,
            client=caller.name,
        )
        outcome = await caller.connection.wait(future)

        started = clock()
        self._queue_seconds(outcome.queue_seconds)
        self._compute_seconds(outcome.compute_seconds)
        self._count.computed(len(tokenized.items), tokenized.tokens)
        payload = await self._encode(body, outcome, tokenized)
        self._reply_seconds(clock() - started)
        return payload, _deviation_headers(tokenized, ignored) if ignored or tokenized.truncated else ()

    async def _decode(self, raw: bytes, caller: Caller) -> tuple[Body, Sequence[str]]:
        if len(raw) <= INLINE_BYTES:
            return self._decoder.decode(raw)
        self._dispatcher.check_admission(1, client=caller.name, priority=caller.priority)

        async def decode() -> tuple[Body, Sequence[str]]:
            return await caller.connection.wait(self._tokenizer.in_thread(1, self._large.decode, raw))

        return await (self._one_at_a_time(decode) if caller.priority == "bulk" else decode())

    async def _one_at_a_time(self, work: Callable[[], Awaitable[Result]]) -> Result:
        """Bulk requests use a thread one at a time, so that one is left for interactive requests."""
        async with self._bulk_lock:
            return await work()

    async def _tokenize(self, body: Body, caller: Caller) -> Tokenized:
        items, tokenize = self.prepare(body)
        # Before tokenizing, so that no work is done for a request that will be refused.
        self._dispatcher.hold(items, client=caller.name, priority=caller.priority)
        try:

            def start() -> Awaitable[Tokenized]:
                return tokenize(caller.connection.wait)

            tokenized = self._one_at_a_time(start) if caller.priority == "bulk" else start()
            if caller.deadline is None:
                return await tokenized
            return await _within(caller.deadline - self._dispatcher.now(), tokenized)
        finally:
            self._dispatcher.release(items, client=caller.name)

    def prepare(self, body: Body) -> tuple[int, Tokenize]:
        """The number of items of a request, and the function that makes them. Raises ``RequestError``."""
        value, truncate = self.inputs(body)
        field = self.inputs_field
        prompt = self.prompt(body)
        texts, ids = texts_or_token_ids(value, field, self._options.request_items)
        if texts is not None:
            return len(texts), lambda wait: self._tokenizer.texts(
                texts, truncate=truncate, field=field, prompt=prompt, wait=wait
            )
        assert ids is not None, "inputs that are not texts are token ids or objects"
        if isinstance(ids[0], InputObject):
            return self._prepare_objects(ids, truncate)
        self._check_ids_accepted(prompt)
        decoder = self._id_decoder
        if decoder is not None:
            return len(ids), lambda wait: self._decode_and_tokenize(decoder, ids, body, wait)
        return len(ids), lambda wait: self._tokenizer.ids(ids, truncate=truncate, field=field, wait=wait)

    def _prepare_objects(self, objects: Sequence[InputObject], truncate: bool) -> tuple[int, Tokenize]:
        field, found = self.inputs_field, read_objects(objects, self.inputs_field)
        if found.texts:
            return len(objects), lambda wait: self._tokenizer.pairs(
                found.texts, truncate=truncate, field=field, wait=wait
            )
        self._check_ids_accepted(None)
        if self._id_decoder is not None:
            raise RequestError(
                f"'{field}' has token ids with token types, but this server decodes those of another tokenizer, which "
                "have no token types (--token-ids); send texts",
                code="token_ids_refused",
                param=field,
            )
        return len(objects), lambda wait: self._tokenizer.ids(
            found.ids, type_ids=found.type_ids, truncate=truncate, field=field, wait=wait
        )

    def _check_ids_accepted(self, prompt: Prompt | None) -> None:
        if self._options.token_ids == "refuse":
            raise token_ids_refused(self.inputs_field)
        if isinstance(prompt, RoutedPrompt) and self._id_decoder is None:
            raise RequestError(
                "this model has routes, which take texts, not token ids",
                code="token_ids_refused",
                param=self.inputs_field,
            )
        if prompt is not None and self._id_decoder is None:
            raise RequestError("a prompt can be prepended to texts only, not to token ids", code="invalid_prompt")

    async def _decode_and_tokenize(
        self, decoder: TokenIdDecoder, lists: Sequence[Ids], body: Body, wait: Wait
    ) -> Tokenized:
        """Token ids of another tokenizer, as if the client had sent their texts."""
        field = self.inputs_field
        if decoder.is_small(lists):
            texts = decoder.texts(lists, field)
        else:
            texts = await wait(self._tokenizer.in_thread(len(lists), decoder.texts, lists, field))
        _, truncate = self.inputs(body)
        prompt = self.prompt(body)
        tokenized = await self._tokenizer.texts(texts, truncate=truncate, field=field, prompt=prompt, wait=wait)
        return replace(tokenized, texts=texts)

    async def _encode(self, body: Body, outcome: Outcome, tokenized: Tokenized) -> bytes:
        """The body of the response."""
        parts = await self.encode_outcome(body, outcome, tokenized)
        before, after = self.envelope(body, tokenized)
        # Joined once: a response may have tens of MB, and each copy of them blocks the loop for tens of milliseconds.
        parts[0] = before + parts[0]
        parts[-1] += after
        return b",".join(parts)

    async def encode_outcome(self, body: Body, outcome: Outcome, tokenized: Tokenized) -> list[bytes]:
        """The JSON of all results. For tasks whose items have a varying number of rows."""
        return await self.encode_all_results(body, outcome.results, tokenized)

    async def encode_all_results(self, body: Body, results: Vectors, tokenized: Tokenized) -> list[bytes]:
        """The JSON of all results. Pauses after each part of them, so that other requests are served."""
        results = self.postprocess(body, results)
        parts: list[bytes] = []
        for first in range(0, len(results), RESULTS_PER_TURN):
            if first:
                await asyncio.sleep(0)
            parts += self.encode_results(body, results[first : first + RESULTS_PER_TURN], first)
        return parts


@dataclass(frozen=True, slots=True, kw_only=True)
class InferenceRoute(Route):
    """A route that runs the model; see ``Route``. ``handler`` is a subclass of ``InferenceHandler``."""

    handler: type[InferenceHandler[Any]]
    request: type[Any]
    method: Literal["GET", "POST"] = "POST"
    errors: Mapping[int, str] = field(default_factory=lambda: INFERENCE_ERRORS)
    headers: Sequence[HeaderSpec] = HEADERS


async def _within(seconds: float, work: Awaitable[Result]) -> Result:
    """The result of ``work``, which is cancelled after ``seconds``. Raises ``RequestError``."""
    try:
        return await asyncio.wait_for(work, seconds)
    except asyncio.TimeoutError:
        raise RequestError(
            "the deadline passed before the inputs were tokenized; nothing was computed",
            status=DEADLINE_STATUS,
            code="deadline_exceeded",
        ) from None


def chosen_prompt(model_info: ModelInfo, prompt: str | None, prompt_name: str | None) -> str | None:
    """The prompt that a request chooses; None if it leaves that to the model. Raises ``RequestError``."""
    if prompt is None and prompt_name is None:
        return None
    try:
        return choose_prompt(model_info, prompt, prompt_name)
    except UsageError as error:
        param = "prompt_name" if prompt is None else "prompt"
        raise RequestError(str(error), code="invalid_prompt", param=param) from error


def routed_prompt(
    model_info: ModelInfo, route: str | None, prompt: str | None, prompt_name: str | None
) -> Prompt | None:
    """The prompt that a request chooses, and its route if it chooses one or the model has some; None if it leaves the
    prompt to the model. Raises ``RequestError``."""
    if route is not None or model_info.routes is not None:
        return chosen_route(model_info, route, prompt, prompt_name)
    return chosen_prompt(model_info, prompt, prompt_name)


def chosen_route(model_info: ModelInfo, route: str | None, prompt: str | None, prompt_name: str | None) -> Prompt:
    """The prompt and the route that a request chooses. Raises ``RequestError``."""
    text = chosen_prompt(model_info, prompt, prompt_name)  # its errors name their own parameters
    try:
        return choose_route(model_info, route, text, None)
    except UsageError as error:
        raise RequestError(str(error), code="invalid_route", param="route") from error


def _deviation_headers(tokenized: Tokenized, ignored: Sequence[str]) -> Headers:
    """Response headers about deviations from what the client may expect."""
    headers = []
    if tokenized.truncated:
        headers.append((b"x-launcher-truncated-inputs", b"%d" % len(tokenized.truncated)))
    if ignored:
        # The names come from the client: only characters that are valid in a header are repeated.
        names = [name for name in ignored[:8] if name.isascii() and name.isprintable() and len(name) <= 64]
        headers.append((b"x-launcher-ignored-fields", ", ".join(names).encode() or b"?"))
    return headers
