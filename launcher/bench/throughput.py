"""The workers' own rate: what they compute of a mix when nothing is between the scheduler and them but the channel.

Instances are planned, bound, started and told what to load as `launch serve` does it, and batches are cut by the same
scheduler; tokenizing is done before the clock runs, and there is no HTTP. The difference to a load over HTTP is
what the front costs. An instance that is lost ends the measurement: nothing is restarted, nothing is left out.
"""

from __future__ import annotations

import asyncio
import logging
import os
import socket
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import anyio
from anyio.abc import TaskGroup

from launcher.bench.stats import percentile
from launcher.bench.tables import show
from launcher.bench.workload import Workload
from launcher.core.protocol.messages import Loading, Ready
from launcher.core.protocol.model_info import ModelInfo
from launcher.core.scheduling.scheduler import (
    Action,
    BatchDone,
    Event,
    InstanceSpec,
    Scheduler,
    SchedulerLimits,
    Send,
)
from launcher.core.tuning.choose_classes import specs_of
from launcher.errors import InstanceError, LauncherError, RequestError, UsageError
from launcher.front.dispatcher import Dispatcher, Outcome, Tokens
from launcher.front.metrics import FrontMetrics
from launcher.front.tokenizer import FrontTokenizer
from launcher.host import log as logs
from launcher.host.process.spawn import Launch
from launcher.host.process.supervisor import Supervisor
from launcher.options import ServeOptions
from launcher.options.bench import ThroughputOptions
from launcher.serve.costs import Costs
from launcher.serve.prepare import Prepared, limits_of, prepare, refuse_elsewhere, setup_of, subject_of
from launcher.serve.server import EXIT_SECONDS, STOP_SECONDS, bind_front

log = logging.getLogger("launcher.bench")


class Batch(NamedTuple):
    """A batch as it was: its items, their tokens, seconds as predicted when it was sent and as the worker took."""

    instance: int
    items: int
    tokens: int
    predicted: float
    seconds: float


@dataclass(slots=True)
class Measured:
    """What was seen between the first text and the last result. ``computed`` are tokens by instance, padding counted;
    ``front_seconds`` is the CPU time of this process."""

    batches: list[Batch]
    computed: dict[int, float]
    seconds: float
    front_seconds: float


def run_throughput(serve: ServeOptions, options: ThroughputOptions, workload: Workload) -> dict[str, Any]:
    """Start the workers, have them compute the mix, end them. Returns the figures; raises any ``LauncherError``."""
    texts = len(workload.texts)
    warmup = min(200, texts // 10) if options.warmup is None else options.warmup
    if warmup >= texts:
        raise UsageError(f"{texts} texts are no more than the {warmup} of the warm-up; ask for more")
    options = replace(options, warmup=warmup)
    refuse_elsewhere(serve.machine)
    logs.set_up(serve.log)
    prepared = prepare(serve, model_needed=True)
    assert prepared.model_info is not None, "prepare() raises when a needed model is not there"
    for warning in prepared.warnings:
        log.warning("%s", warning, extra={"event": "warning"})
    mask = bind_front(prepared, strict=serve.machine.strict)
    forward = ThroughputRun(serve, options, prepared, prepared.model_info, mask)
    measured = anyio.run(forward.run, workload, backend_options={"use_uvloop": True})
    setup = setup_of(serve, prepared.machine, prepared.model_info, prepared.plan.instances[0])
    count = len(prepared.plan.instances)
    how = "all at once" if options.queued is None else f"{options.queued} queued"
    heading = (
        f"{prepared.model_info.name} in {setup.dtype}, {setup.backend}, {count} instance{'s' * (count > 1)}, "
        f"without HTTP, {workload.source}, {how}"
    )
    return {"run": heading, "truncated": forward.truncated, "costs": forward.costs, **summary(measured)}


def summary(measured: Measured) -> dict[str, Any]:
    """The figures, as they go into JSON: those of all instances, and under ``by_instance`` those of each.

    ``real_over_computed`` is the part of the computed tokens that is no padding, ``prediction_error`` the median of
    \\|predicted - actual\\| / actual over the batches, ``busy`` the part of the time that workers computed.
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
    """Print the figures of ``run_throughput`` for people: all instances are one more row of the table of instances."""
    rows = figures["by_instance"]
    columns = next(iter(rows.values()))
    everything = {name: figures[name] for name in columns}
    others = {name: value for name, value in figures.items() if name not in columns and name != "by_instance"}
    show(others, "instance", {"all": everything, **rows})


class WatchedScheduler(Scheduler):
    """The scheduler, writing down each batch that is done beside what it had predicted for it."""

    def __init__(self, instances: Sequence[InstanceSpec], limits: SchedulerLimits) -> None:
        super().__init__(instances, limits)
        self.done: list[Batch] = []
        self._sent: dict[int, Send] = {}

    def handle(self, event: Event, now: float) -> list[Action]:
        """As the scheduler does it."""
        if isinstance(event, BatchDone) and (sent := self._sent.pop(event.batch, None)):
            tokens = sum(item.length for item in sent.items)
            self.done.append(Batch(event.instance, len(sent.items), tokens, sent.predicted, event.seconds))
        return self._noted(super().handle(event, now))

    def tick(self, now: float) -> list[Action]:
        """As the scheduler does it."""
        return self._noted(super().tick(now))

    def _noted(self, actions: list[Action]) -> list[Action]:
        self._sent.update((action.batch, action) for action in actions if isinstance(action, Send))
        return actions


class ThroughputRun:
    """One measurement; the listener of supervisor and dispatcher, as the server is."""

    def __init__(
        self,
        serve: ServeOptions,
        options: ThroughputOptions,
        prepared: Prepared,
        model_info: ModelInfo,
        mask: tuple[int, ...] | None,
    ) -> None:
        """``mask`` is what workers start with where this process has bound itself."""
        plan = prepared.plan
        self.truncated = 0
        self._sources: set[str] = set()
        self._options = options
        self._model_info = model_info
        self._text_characters = serve.front.text_characters
        self._plans = {i.id: i for i in plan.instances}
        self._costs = Costs(subject_of(serve, prepared.machine, model_info), fresh=serve.measure)
        self._setups = {i.id: setup_of(serve, prepared.machine, model_info, i) for i in plan.instances}
        self._classes = {i.id: i.length_class.name if i.length_class else "all" for i in plan.instances}
        self._metrics = FrontMetrics(self._classes)
        self._specs = specs_of(plan)
        self._limits = limits_of(serve)
        launches = [
            Launch(instance.id, command.command, {**os.environ, **command.env}, mask=mask)
            for instance, command in zip(plan.instances, prepared.commands, strict=True)
        ]
        self._supervisor = Supervisor(launches, replace(serve.supervise, max_failures=1), self)
        self._waiting = set(self._setups)
        self._pids: dict[int, int] = {}
        self._ending = False
        self._failure: LauncherError | None = None
        self._group: TaskGroup | None = None

    async def run(self, workload: Workload) -> Measured:
        """Start the workers, measure, end the workers."""
        items = await self._tokenize(workload)
        self._scheduler = WatchedScheduler(self._specs, replace(self._limits, queue_items=len(items)))
        model_info = self._model_info
        self._dispatcher = Dispatcher(
            self._scheduler, self, self._metrics, width=model_info.result_width, row_per_token=model_info.row_per_token
        )
        self._all_ready = anyio.Event()
        measured: Measured | None = None
        async with anyio.create_task_group() as group:
            self._group = group
            self._work = anyio.CancelScope()
            group.start_soon(self._supervisor.run)
            with self._work:
                await self._all_ready.wait()
                measured = await self._measure(items)
            self._ending = True
            self._dispatcher.stop_workers()
            await self._supervisor.stop(STOP_SECONDS)
        if self._failure:
            raise self._failure
        assert measured is not None, "without a failure the work was done"
        return measured

    @property
    def costs(self) -> str:
        """Where costs are from: ``measured``, ``cached``, or both, as of some instances and of others."""
        return " and ".join(sorted(self._sources))

    async def _tokenize(self, workload: Workload) -> list[Tokens]:
        tokenizer = FrontTokenizer(self._model_info, text_characters=self._text_characters)
        try:
            tokenized = await tokenizer.texts(workload.texts, truncate=True, field="the mix")
        except RequestError as error:
            raise UsageError(str(error)) from error
        finally:
            tokenizer.close()
        self.truncated = len(tokenized.truncated)
        return tokenized.items

    async def _measure(self, items: list[Tokens]) -> Measured:
        warmup = self._options.warmup
        try:
            if warmup:
                await self._compute(items[:warmup])
            self._scheduler.done.clear()
            before = self._computed()
            cpu, started = time.process_time(), time.monotonic()
            await self._compute(items[warmup:])
            seconds, cpu = time.monotonic() - started, time.process_time() - cpu
        except RequestError as error:
            raise InstanceError(f"the texts were not computed: {error}") from error
        computed = {instance: count - before[instance] for instance, count in self._computed().items()}
        return Measured(list(self._scheduler.done), computed, seconds, cpu)

    def _computed(self) -> dict[int, float]:
        """Tokens that each instance has computed so far, padding counted."""
        get = self._metrics.registry.get_sample_value
        return {
            instance: sum(
                get("launcher_computed_tokens_total", {"instance": str(instance), "class": name, "kind": kind}) or 0.0
                for kind in ("real", "padding")
            )
            for instance, name in self._classes.items()
        }

    async def _compute(self, items: list[Tokens]) -> None:
        """Returns when all items are computed. Raises ``RequestError`` with the first that is not."""
        if self._options.queued is None:
            await self._dispatcher.enqueue(items)
            return
        source, left = iter(items), len(items)
        finished: asyncio.Future[None] = asyncio.get_running_loop().create_future()

        def begin() -> None:
            item = next(source, None)
            if item is not None and not finished.done():
                self._dispatcher.enqueue([item]).add_done_callback(end)

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

    def _fail(self, reason: str) -> None:
        """End the measurement; the first reason is the one that is told."""
        if not self._ending:
            self._failure = self._failure or InstanceError(reason)
            self._work.cancel()

    # -------------------------------------------------- listener of supervisor

    def started(self, instance: int, pid: int, sock: socket.socket) -> None:
        """A worker process exists: give its channel to the dispatcher."""
        assert self._group is not None, "workers are started inside run()"
        self._pids[instance] = pid
        self._group.start_soon(self._attach, instance, sock)

    async def _attach(self, instance: int, sock: socket.socket) -> None:
        try:
            setup = self._costs.complete(self._setups[instance], self._plans[instance])
            await self._dispatcher.attach(instance, sock, setup)
        except OSError as error:
            self._fail(f"the channel of instance {instance} could not be opened: {error}")

    def exited(self, instance: int, pid: int, description: str) -> None:
        """The worker process has ended."""
        self._fail(f"instance {instance} ended before the measurement did: {description}")

    def restarting(self, instance: int, delay: float) -> None:
        """The end comes first."""

    def given_up(self, instance: int, reason: str) -> None:
        """There will be no other worker."""
        self._fail(f"instance {instance} could not be started: {reason}")

    # -------------------------------------------------- listener of dispatcher

    def loading(self, instance: int, message: Loading) -> None:
        """The worker is starting."""
        extra = {"instance": instance, "event": "loading", "stage": message.stage, "done": message.done}
        log.info("%-6s %3.0f %%  %s", message.stage, 100 * message.done, message.detail, extra=extra)

    def ready(self, instance: int, message: Ready) -> None:
        """The worker is warm."""
        for note in message.notes:
            log.info("%s", note, extra={"instance": instance, "event": "note"})
        self._scheduler.presume(instance, self._costs.take(self._plans[instance], message))
        self._sources.add("cached" if message.cached else "measured")
        self._supervisor.ready(instance, message.pid)
        self._waiting.discard(instance)
        if not self._waiting:
            self._all_ready.set()

    def unusable(self, instance: int, reason: str) -> None:
        """The worker says that its model cannot be served."""
        self._fail(f"instance {instance} cannot serve the model: {reason}")

    def lost(self, instance: int, reason: str) -> None:
        """The channel is gone; the process may still be there."""
        if not self._ending and self._group is not None:
            self._group.start_soon(self._end_lost, instance, reason)

    async def _end_lost(self, instance: int, reason: str) -> None:
        # Mostly the process is gone too, and then its own exit status says more than our signal.
        await anyio.sleep(EXIT_SECONDS)
        self._supervisor.kill(instance, reason, self._pids[instance])
