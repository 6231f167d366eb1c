"""Generates load over HTTP: a closed loop (fixed concurrency) or an open loop (Poisson arrivals at a rate).

In the open loop, the latency of a request counts from its scheduled arrival, so that a server that falls behind cannot
hide the waiting (coordinated omission). Works with any OpenAI-compatible embeddings route, and with TEI; other tasks
than embeddings are refused.
"""

from __future__ import annotations

import os
import random
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from http.client import HTTPException
from typing import Any

import anyio
import msgspec

from launcher.bench.client import Connection, Reply, Target
from launcher.bench.stats import Answer, LoadStats
from launcher.bench.timerfd import TimerFd
from launcher.bench.workload import SPECIAL_TOKENS, Workload
from launcher.errors import LauncherError, UsageError
from launcher.options.bench import LoadOptions
from launcher.options.choices import EmbeddingsApi
from launcher.options.env_prefixes import API_KEY_VARIABLE

# Time to read the name of the model.
MODEL_SECONDS = 10.0
PATHS: dict[EmbeddingsApi, str] = {"openai": "/v1/embeddings", "tei": "/embed"}


@dataclass(frozen=True, slots=True)
class _Request:
    data: bytes
    texts: int
    longest: int
    counted: bool


def _requests(options: LoadOptions, target: Target, workload: Workload) -> list[_Request]:
    size, uncounted = options.per_request, _warmup(options, workload)
    prepared: list[_Request] = []
    for start in range(0, len(workload.texts), size):
        texts = workload.texts[start : start + size]
        longest = max(len(text.split()) + SPECIAL_TOKENS for text in texts)
        body = msgspec.json.encode(_body(options, texts))
        prepared.append(_Request(target.request(body), len(texts), longest, len(prepared) >= uncounted))
    if not any(request.counted for request in prepared):
        raise UsageError(
            f"the workload has {len(prepared)} requests, but the warm-up alone takes {uncounted}; use more texts"
        )
    return prepared


def _warmup(options: LoadOptions, workload: Workload) -> int:
    if options.warmup is not None:
        return options.warmup
    return min(100, len(workload.texts) // options.per_request // 10)


def described(options: LoadOptions, workload: Workload) -> str:
    """The description of the load, for the heading of its figures."""
    several, texts = options.connections > 1, options.per_request
    how = (
        f"{options.rate:g} requests/s, open loop"
        if options.rate
        else f"{options.connections} connection{'s' * several}"
    )
    return f"{how}, {texts} text{'s' * (texts > 1)} per request, {workload.source}"


def _body(options: LoadOptions, texts: Sequence[str]) -> dict[str, Any]:
    content = texts[0] if len(texts) == 1 else list(texts)
    if options.api == "tei":
        return {"inputs": content}
    return {"input": content, "model": options.model, "encoding_format": options.encoding}


async def run_load(options: LoadOptions, workload: Workload) -> LoadStats:
    """Send all texts of the workload once. Raises ``LauncherError`` if the server cannot be reached."""
    if options.model is None and options.api == "openai":
        options = replace(options, model=await _first_model(options))
    target = replace(_server(options), path=_base_path(options) + PATHS[options.api])
    requests = _requests(options, target, workload)
    stats = LoadStats()
    cpu_before, before = time.process_time(), time.monotonic()
    if options.rate:
        await _open_loop(options.rate, options.connections, target, requests, stats)
    else:
        await _closed_loop(options.connections, target, requests, stats)
    stats.cpu_seconds, stats.wall_seconds = time.process_time() - cpu_before, time.monotonic() - before
    if not stats.answers:
        reason = f"; the first response: {stats.refusal}" if stats.refusal else ""
        raise LauncherError(
            f"none of {len(requests)} requests to {options.url} succeeded: {dict(stats.errors)}{reason}"
        )
    return stats


def _server(options: LoadOptions) -> Target:
    """The server, with the header of an API key if ``LAUNCH_API_KEY`` is set; with several keys, their first one."""
    first = os.environ.get(API_KEY_VARIABLE, "").strip().partition("\n")[0].split()
    headers = (f"Authorization: Bearer {first[-1]}",) if first else ()
    return replace(Target.parse(options.url), headers=headers)


def _base_path(options: LoadOptions) -> str:
    """The path before the routes of the API; the URL may contain the route."""
    return Target.parse(options.url).path.rstrip("/").removesuffix(PATHS[options.api])


async def _first_model(options: LoadOptions) -> str:
    """The name of the first model that the server lists."""
    server, base = _server(options), _base_path(options).removesuffix("/v1")

    async def fetch(path: str) -> Any:
        connection = await Connection.open(server)
        try:
            reply = await connection.send(server.get(base + path))
        finally:
            connection.close()
        if reply.status != 200:
            raise ValueError(f"HTTP {reply.status}: {reply.body[:500].decode(errors='replace')}")
        return msgspec.json.decode(reply.body)

    try:
        with anyio.fail_after(MODEL_SECONDS):
            model = (await fetch("/v1/models"))["data"][0]
            if model.get("owned_by") == "launcher":
                _check_task((await fetch("/info"))["model"])
        return str(model["id"])
    except (OSError, ValueError, LookupError, TypeError, AttributeError, HTTPException) as error:
        raise LauncherError(
            f"cannot read the name of a model from {base}/v1/models of {options.url} ({error}); check that a server is "
            "running there, or set --model"
        ) from error


def _check_task(model: Mapping[str, Any]) -> None:
    """Raise ``UsageError`` unless the served model, as in ``GET /info``, has embeddings."""
    if model["task"] != "embed":
        without_http = f"launch bench throughput --model {model['requested']} --task {model['task']}"
        raise UsageError(
            f"the server has the model {model['name']!r} for the task {model['task']!r}, but this command sends "
            f"requests for embeddings only ({', '.join(PATHS.values())}); serve an embedder"
            + (f", or measure this model without HTTP: {without_http}" if model["task"] != "custom" else "")
        )


class _Sender:
    """Sends requests over one connection, which it reopens if the server closes it."""

    def __init__(self, target: Target, stats: LoadStats) -> None:
        self._target, self._stats = target, stats
        self._connection: Connection | None = None

    async def send(self, request: _Request, due: float | None = None) -> None:
        """Send one request and count its result. ``due`` is its scheduled arrival (open loop)."""
        if due is not None and request.counted:
            self._stats.late.append(time.monotonic() - due)
        try:
            if self._connection is None or self._connection.closed:
                self._connection = await Connection.open(self._target)
            reply = await self._connection.send(request.data)
        except OSError as error:
            self._count_error(request, type(error).__name__)
            return
        self._count(request, reply, due)

    def _count(self, request: _Request, reply: Reply, due: float | None) -> None:
        if reply.status != 200:
            self._stats.refusal = self._stats.refusal or reply.body[:500].decode(errors="replace")
            self._count_error(request, f"HTTP {reply.status}")
        elif request.counted:
            now = time.monotonic()
            began = now - reply.seconds if due is None else due
            tokens = _tokens(reply.body)
            longest = tokens if request.texts == 1 and tokens else request.longest
            self._stats.started = min(self._stats.started, began)
            self._stats.answers.append(Answer(longest, now - began, now, request.texts, tokens))

    def _count_error(self, request: _Request, what: str) -> None:
        if request.counted:
            self._stats.errors[what] += 1

    def close(self) -> None:
        if self._connection is not None:
            self._connection.close()


def _tokens(body: bytes) -> int:
    """``usage.total_tokens`` of a response; 0 if missing. Only the end is searched, since vectors are large."""
    _, found, tail = body[-200:].rpartition(b'"total_tokens":')
    digits = tail.split(b"}")[0].split(b",")[0].strip() if found else b""
    return int(digits) if digits.isdigit() else 0


async def _closed_loop(connections: int, target: Target, requests: list[_Request], stats: LoadStats) -> None:
    source = iter(requests)

    async def client() -> None:
        sender = _Sender(target, stats)
        for request in source:
            await sender.send(request)
        sender.close()

    async with anyio.create_task_group() as group:
        for _ in range(min(connections, len(requests))):
            group.start_soon(client)


async def _open_loop(rate: float, connections: int, target: Target, requests: list[_Request], stats: LoadStats) -> None:
    """Requests arrive as a Poisson process; each uses an idle connection or a new one, so that none waits for
    another."""
    rng = random.Random(2)
    idle: list[_Sender] = [_Sender(target, stats) for _ in range(connections)]
    due = time.monotonic()

    async def one(request: _Request, due: float) -> None:
        sender = idle.pop() if idle else _Sender(target, stats)
        await sender.send(request, due)
        idle.append(sender)

    async with TimerFd() as timer, anyio.create_task_group() as group:
        for request in requests:
            due += rng.expovariate(rate)
            await timer.until(due)
            group.start_soon(one, request, due)
    for sender in idle:
        sender.close()
