"""Measures the throughput of workers on a workload, with only the channel between them and the scheduler.

It is the engine of `launch serve` without HTTP: the same plan, workers and scheduler. Texts are tokenized before the
clock starts. The difference from a load over HTTP is the cost of the front. A lost instance ends the measurement:
nothing is restarted and no text is skipped.
"""

from __future__ import annotations

import asyncio
import logging
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import anyio

from launcher.bench.tables import show
from launcher.bench.workload import Workload
from launcher.core.percentile import percentile
from launcher.core.scheduling.scheduler import (
    Action,
    BatchDone,
    Event,
    InstanceSpec,
    Scheduler,
    SchedulerLimits,
    Send,
)
from launcher.engine.inference_engine import EngineSettings, InferenceEngine
from launcher.errors import InstanceError, LauncherError, RequestError, UsageError
from launcher.front.dispatcher import Outcome
from launcher.front.item_details import Tokens
from launcher.host import log as logs
from launcher.options import ServeOptions
from launcher.options.bench import ThroughputOptions
from launcher.prepare.claims import Holder, prepare_and_claim
from launcher.prepare.machine import require_this_machine
from launcher.prepare.model import setup_of
from launcher.prepare.prepared_instances import Prepared
from launcher.prepare.workers import prepare_workers
from launcher.serve.process_setup import bind_front

log = logging.getLogger("launcher.bench")


class Batch(NamedTuple):
    """A completed batch: its items, their tokens, and its predicted and actual seconds."""

    instance: int
    items: int
    tokens: int
    predicted: float
    seconds: float


@dataclass(slots=True)
class Measured:
    """The measurements between the first text and the last result. ``computed`` holds tokens by instance, including
    padding; ``front_seconds`` is the CPU time of this process.
    """

    batches: list[Batch]
    computed: dict[int, float]
    seconds: float
    front_seconds: float


def run_throughput(serve: ServeOptions, options: ThroughputOptions, workload: Workload) -> dict[str, Any]:
    """Start the workers, compute the workload, stop the workers. Returns the figures; raises any ``LauncherError``."""
    texts = len(workload.texts)
    warmup = min(200, texts // 10) if options.warmup is None else options.warmup
    if warmup >= texts:
        raise UsageError(f"the workload has {texts} texts, but the warm-up alone takes {warmup}; use more texts")
    options = replace(options, warmup=warmup)
    require_this_machine(serve.machine)
    logs.set_up(serve.log)
    holder = Holder("bench", f"bench-{os.getpid()}", model=serve.model.model)
    prepared, claim = prepare_and_claim(
        serve.machine, holder, lambda claims: prepare_workers(serve, model_needed=True, claims=claims)
    )
    assert prepared.model_info is not None, "prepare_workers() raises if a required model is missing"
    for warning in prepared.warnings:
        log.warning("%s", warning, extra={"event": "warning"})
    mask = bind_front(prepared, strict=serve.machine.strict)
    serve = replace(serve, scheduling=replace(serve.scheduling, queue_items=len(workload.texts)))
    throughput = ThroughputRun(serve, options, prepared, mask)
    with claim:
        measured = anyio.run(throughput.run, workload, backend_options={"use_uvloop": True})
    setup = setup_of(serve, prepared.machine, prepared.model_info)
    count = len(prepared.instances)
    how = "all at once" if options.queued is None else f"{options.queued} queued"
    heading = (
        f"{prepared.model_info.name} in {setup.dtype}, {setup.backend}, {count} instance{'s' * (count > 1)}, "
        f"without HTTP, {workload.source}, {how}"
    )
    return {"run": heading, "truncated": throughput.truncated, "costs": throughput.costs, **summary(measured)}


def summary(measured: Measured) -> dict[str, Any]:
    """The figures for JSON: of all instances together and, in ``by_instance``, of each one.

    ``real_over_computed`` is the fraction of computed tokens that are not padding, ``prediction_error`` the median of
    \\|predicted - actual\\| / actual over the batches, ``busy`` the fraction of time in which workers computed.
    """
    instances = sorted(measured.computed)
    parts = {str(i): ([b for b in measured.batches if b.instance == i], measured.computed[i]) for i in instances}
    whole = _figures(measured.batches, sum(measured.computed.values()), measured.seconds, len(instances))
    return {
        "seconds": round(measured.seconds, 3),
        **whole,
        "front_cpu": round(measured.front_seconds / measured.seconds, 3),
        "by_instance": {
            name: _figures(batches, computed, measured.seconds, 1) for name, (batches, computed) in parts.items()
        },
    }


def _figures(batches: Sequence[Batch], computed: float, seconds: float, instances: int) -> dict[str, Any]:
    texts, tokens = sum(b.items for b in batches), sum(b.tokens for b in batches)
    errors = [abs(b.predicted - b.seconds) / b.seconds for b in batches if b.seconds > 0]
    return {
        "texts": texts,
        "texts_per_second": round(texts / seconds, 1),
        "tokens_per_second": round(tokens / seconds, 1),
        "real_over_computed": round(tokens / computed, 4) if computed else None,
        "batches": len(batches),
        "batch_p50_ms": _milliseconds(batches, 50),
        "batch_p99_ms": _milliseconds(batches, 99),
        "prediction_error": round(percentile(errors, 50), 4) if errors else None,
        "busy": round(sum(b.seconds for b in batches) / seconds / instances, 3),
    }


def _milliseconds(batches: Sequence[Batch], percent: float) -> float | None:
    return round(percentile((b.seconds for b in batches), percent) * 1e3, 2) if batches else None


def show_throughput(figures: dict[str, Any]) -> None:
    """Print the figures of ``run_throughput`` as text; the table of instances has a row for the total."""
    rows = figures["by_instance"]
    columns = next(iter(rows.values()))
    everything = {name: figures[name] for name in columns}
    others = {name: value for name, value in figures.items() if name not in columns and name != "by_instance"}
    show(others, "instance", {"all": everything, **rows})


class WatchedScheduler(Scheduler):
    """A scheduler that records each completed batch with its predicted duration."""

    def __init__(self, instances: Sequence[InstanceSpec], limits: SchedulerLimits) -> None:
        super().__init__(instances, limits)
        self.done: list[Batch] = []
        self._sent: dict[int, Send] = {}

    def handle(self, event: Event, now: float) -> list[Action]:
        """See ``Scheduler``."""
        if isinstance(event, BatchDone) and (sent := self._sent.pop(event.batch, None)):
            tokens = sum(item.length for item in sent.items)
            self.done.append(Batch(event.instance, len(sent.items), tokens, sent.predicted, event.seconds))
        return self._recorded(super().handle(event, now))

    def tick(self, now: float) -> list[Action]:
        """See ``Scheduler``."""
        return self._recorded(super().tick(now))

    def _recorded(self, actions: list[Action]) -> list[Action]:
        self._sent.update((action.batch, action) for action in actions if isinstance(action, Send))
        return actions


class ThroughputRun:
    """One measurement, on its own engine."""

    def __init__(
        self, serve: ServeOptions, options: ThroughputOptions, prepared: Prepared, mask: tuple[int, ...] | None
    ) -> None:
        """``mask`` is the affinity that workers inherit if this process has bound itself."""
        self.truncated = 0
        self.costs = ""
        self._options = options
        # Verification would disturb the measurement, and a restart would falsify it.
        settings = EngineSettings(mask=mask, restart=False, verify=False, make_scheduler=WatchedScheduler)
        self._engine = InferenceEngine(serve, prepared, settings)
        assert isinstance(self._engine.scheduler, WatchedScheduler), "made by the settings"
        self._done = self._engine.scheduler.done

    async def run(self, workload: Workload) -> Measured:
        """Start the workers, measure, end the workers."""
        items = await self._tokenize(workload)
        measured: Measured | None = None
        failure: LauncherError | None = None
        async with anyio.create_task_group() as group:
            group.start_soon(self._engine.run)
            try:
                await self._engine.wait_ready()
                self.costs = " and ".join(self._engine.cost_sources())
                measured = await self._measure(items)
            except LauncherError as error:
                failure = self._engine.failure or error
            await self._engine.stop()
        if failure is not None:
            raise failure
        assert measured is not None, "without a failure, all texts were computed"
        return measured

    async def _tokenize(self, workload: Workload) -> list[Tokens]:
        try:
            tokenized = await self._engine.tokenizer.texts(workload.texts, truncate=True, field="texts")
        except RequestError as error:
            raise UsageError(str(error)) from error
        finally:
            self._engine.close()
        self.truncated = len(tokenized.truncated)
        return tokenized.items

    async def _measure(self, items: list[Tokens]) -> Measured:
        warmup = self._options.warmup
        try:
            if warmup:
                await self._compute(items[:warmup])
            self._done.clear()
            before = self._computed()
            cpu, started = time.process_time(), time.monotonic()
            await self._compute(items[warmup:])
            seconds, cpu = time.monotonic() - started, time.process_time() - cpu
        except RequestError as error:
            raise InstanceError(f"the texts were not computed: {error}") from error
        computed = {instance: count - before[instance] for instance, count in self._computed().items()}
        return Measured(list(self._done), computed, seconds, cpu)

    def _computed(self) -> dict[int, float]:
        """Tokens that each instance has computed so far, including padding."""
        get = self._engine.metrics.registry.get_sample_value
        return {
            plan.id: sum(
                get("launcher_computed_tokens_total", {"instance": str(plan.id), "class": name, "kind": kind}) or 0.0
                for kind in ("real", "padding")
            )
            for plan in self._engine.prepared.plan.instances
            for name in (plan.length_class.name if plan.length_class else "all",)
        }

    async def _compute(self, items: list[Tokens]) -> None:
        """Returns when all items are computed. Raises the ``RequestError`` of the first one that fails."""
        enqueue = self._engine.dispatcher.enqueue
        if self._options.queued is None:
            await enqueue(items)
            return
        source, left = iter(items), len(items)
        finished: asyncio.Future[None] = asyncio.get_running_loop().create_future()

        def begin() -> None:
            item = next(source, None)
            if item is not None and not finished.done():
                enqueue([item]).add_done_callback(end)

        def end(answer: asyncio.Future[Outcome]) -> None:
            nonlocal left
            left -= 1
            error = None if answer.cancelled() else answer.exception()
            if finished.done():
                return
            if error is not None:
                finished.set_exception(error)
            elif not left:
                finished.set_result(None)
            begin()

        for _ in range(self._options.queued):
            begin()
        await finished
