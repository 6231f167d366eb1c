"""The engine: the only listener of supervisor and dispatcher, which do not know each other.

The supervisor passes on the sockets of new workers, the dispatcher the messages of workers; the engine connects both
with the cost tables, the verification, and the rules for lost instances. Its owner (``serve``, ``bench throughput``,
the Python API) runs ``run`` in a task, uses ``dispatcher`` and ``tokenizer``, and shuts it down with ``drain`` and
``stop``. Everything runs in the thread of one event loop. That thread must live as long as the engine: the kernel
kills a worker when the thread that started it exits.
"""

from __future__ import annotations

import asyncio
import logging
import os
import socket
import time
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass, replace
from functools import partial
from importlib.metadata import version
from typing import Any, Protocol

import anyio
import anyio.to_thread
from anyio.abc import TaskGroup

from launcher.core.protocol.messages import Loading, Ready
from launcher.core.scheduling.scheduler import InstanceSpec, Scheduler, SchedulerLimits, WorkerActivity
from launcher.core.tuning.choose_classes import specs_of
from launcher.engine.costs import Costs, watch_costs
from launcher.engine.instance_views import InstanceView, packing_info
from launcher.engine.load_proofs import LoadProofs
from launcher.errors import InstanceError, ModelRefusedError
from launcher.front.custom_items import CustomItems
from launcher.front.dispatcher import Dispatcher
from launcher.front.input_reader import InputReader
from launcher.front.metrics import FrontMetrics
from launcher.front.quarantine import Quarantine
from launcher.front.tokenizer import FrontTokenizer
from launcher.host.process.activity import watch_activity
from launcher.host.process.spawn_worker import Launch
from launcher.host.process.supervisor import Supervisor
from launcher.host.process.verify_binding import verify
from launcher.options import ServeOptions
from launcher.prepare.cost_basis import cost_key_base
from launcher.prepare.model import limits_of, setup_of
from launcher.prepare.prepared_instances import Prepared

log = logging.getLogger("launcher.engine")

# After a channel has closed: time for its process to exit by itself.
EXIT_SECONDS = 0.25
# The longest wait for a sample batch, if ``hang_seconds`` is longer; one more second is for a loaded machine.
MAX_PROBE_SECONDS = 4.0


class EngineObserver(Protocol):
    """Notified of state changes of the engine. Called in the thread of the loop; must not block."""

    def all_ready(self) -> None:
        """Every instance is ready. Called again when a lost instance is ready again."""

    def failed(self, error: InstanceError) -> None:
        """The engine can no longer compute, and queued requests have failed. Call ``drain`` and ``stop``."""


class Unobserved:
    """An observer that ignores everything."""

    def all_ready(self) -> None:
        """See ``EngineObserver``."""

    def failed(self, error: InstanceError) -> None:
        """See ``EngineObserver``."""


@dataclass(frozen=True, slots=True)
class EngineSettings:
    """Settings made by the owner of an engine; the options of users are in ``launcher.options``.

    ``mask``: the affinity that workers inherit, for a process that has bound itself; None: that of the starting thread.
    ``restart``: whether lost workers are restarted; if not, the engine fails with the first one. ``verify``: check from
    outside that each ready worker runs where it was planned.
    """

    mask: tuple[int, ...] | None = None
    restart: bool = True
    verify: bool = True
    make_scheduler: Callable[[Sequence[InstanceSpec], SchedulerLimits], Scheduler] = Scheduler


class InferenceEngine:
    """One run of a plan. ``failure`` is the reason why it can no longer compute, or None."""

    def __init__(
        self,
        options: ServeOptions,
        prepared: Prepared,
        settings: EngineSettings | None = None,
        observer: EngineObserver | None = None,
    ) -> None:
        """``prepared`` must have a model. Raises ``LauncherError`` if its tokenizer cannot be used."""
        assert prepared.model_info is not None, "an engine is prepared with its model"
        self.prepared = prepared
        self.model_info = prepared.model_info
        self.failure: InstanceError | None = None
        self._options = options
        self._settings = settings or EngineSettings()
        self._observer: EngineObserver = observer or Unobserved()
        self._started_at = time.time()
        self._views = {instance.plan.id: InstanceView(instance) for instance in prepared.instances}
        key_base = cost_key_base(options, prepared.machine, self.model_info)
        self._costs = Costs(key_base, fresh=options.model.measure)
        self._proofs = LoadProofs(key_base)
        self.setup = setup_of(options, prepared.machine, self.model_info)
        self._draining = False
        self._was_ready = False
        self._was_complete = False
        self._refused_by: set[int] = set()
        self._settled = anyio.Event()
        self._to_start: asyncio.Queue[Callable[[], Coroutine[Any, Any, None]]] = asyncio.Queue()
        self._build()

    def _build(self) -> None:
        plan, model_info = self.prepared.plan, self.model_info
        self.scheduler = self._settings.make_scheduler(specs_of(plan), limits_of(self._options))
        names = {i.id: i.length_class.name if i.length_class else "all" for i in plan.instances}
        self.metrics = FrontMetrics(names)
        self.metrics.watch_queue(sorted(set(names.values())), self.scheduler.queued_by_class)
        watch_costs(self.metrics, self.scheduler.cost)
        self.dispatcher = Dispatcher(
            self.scheduler,
            self,
            self.metrics,
            width=model_info.result_width,
            rows=model_info.rows,
            quarantine=Quarantine(model_info.task, self._options.scheduling.quarantine_seconds),
        )
        self.metrics.watch_quarantine(self.dispatcher.quarantine)
        self.metrics.watch_in_flight(lambda: self.dispatcher.in_flight)
        launches = [
            Launch(one.plan.id, one.command.command, {**os.environ, **one.command.env}, mask=self._settings.mask)
            for one in self.prepared.instances
        ]
        supervise = self._options.supervise
        self._supervisor = Supervisor(
            launches, supervise if self._settings.restart else replace(supervise, max_failures=1), self
        )
        front = self._options.front
        self.tokenizer: InputReader
        if model_info.task == "custom":
            self.tokenizer = CustomItems(model_info, threads=front.tokenizer_threads)
        else:
            self.tokenizer = FrontTokenizer(
                model_info, text_characters=front.text_characters, threads=front.tokenizer_threads
            )

    # --------------------------------------------------------------------- run

    async def run(self) -> None:
        """Start the workers and restart them when needed, until ``stop`` or ``stop_now``.

        When it returns, raises or is cancelled, every worker has exited, and requests that were still queued have
        failed.
        """
        try:
            async with anyio.create_task_group() as group:
                group.start_soon(self._start_tasks, group)
                await self._supervisor.run()
                group.cancel_scope.cancel()
        finally:
            self._draining = True
            self.dispatcher.no_instances_left("the engine has ended")

    async def wait_ready(self) -> None:
        """Wait until every instance is ready or has failed, and at least one is ready. Raises ``InstanceError`` if the
        engine fails first, and its subclass ``ModelRefusedError`` if its workers refuse the model."""
        await self._settled.wait()
        if self.failure is not None:
            raise self.failure

    async def drain(self, seconds: float) -> None:
        """Refuse new requests and wait for admitted ones, for at most ``seconds``; the rest fail. Saves the observed
        costs for the next start.
        """
        self._draining = True
        self._supervisor.begin_drain()
        self.dispatcher.begin_drain()
        self._fail_requests_without_workers()
        with anyio.move_on_after(seconds) as drain:
            await self.dispatcher.drained()
        if drain.cancelled_caught:
            log.error("%d requests were not finished in %g s", self.dispatcher.in_flight, seconds)
            self.dispatcher.no_instances_left(
                "the server is shutting down, and the graceful shutdown timeout has expired"
            )
        ready = [view.prepared.plan for view in self._views.values() if view.ready]
        self._costs.save_drift((plan, self.scheduler.cost(plan.id)) for plan in ready)

    async def stop(self) -> None:
        """Stop the workers; returns when all have exited. Does not wait for queued requests."""
        self._draining = True
        self.dispatcher.stop_workers()
        await self._supervisor.stop(self._options.supervise.stop_seconds)

    def stop_now(self) -> None:
        """Kill the workers; ``run`` returns when they are reaped."""
        self._draining = True
        self._supervisor.stop_now()

    def close(self) -> None:
        """Release the threads of the tokenizer. Call it when tokenizing has ended."""
        self.tokenizer.close()

    def _start(self, function: Callable[..., Coroutine[Any, Any, None]], *arguments: Any) -> None:
        """Start a task. The loop itself also calls listeners, and there anyio cannot start a task unless it also
        started the loop."""
        self._to_start.put_nowait(partial(function, *arguments))

    async def _start_tasks(self, group: TaskGroup) -> None:
        while True:
            group.start_soon(await self._to_start.get())

    def _fail(self, error: InstanceError, reason: str = "") -> None:
        """Record that the engine can no longer compute; only the first error counts. Requests are answered with
        ``reason``, by default the error itself."""
        if self._draining or self.failure is not None:
            return
        self.failure = error
        self._settled.set()
        self._start(self._answer_with_failure, reason or str(error), error)

    async def _answer_with_failure(self, reason: str, error: InstanceError) -> None:
        self.dispatcher.no_instances_left(reason)
        self._observer.failed(error)

    def _check_settled(self) -> None:
        states = self._supervisor.states()
        waiting = [id for id, view in self._views.items() if not view.ready and states[id]["state"] != "failed"]
        if self._was_ready and not waiting:
            self._settled.set()

    # -------------------------------------------------- listener of supervisor

    def started(self, instance: int, pid: int, sock: socket.socket) -> None:
        """A worker process exists: pass its channel to the dispatcher."""
        view = self._views[instance]
        view.pid, view.ready, view.stage, view.verification = pid, None, "starting", None
        self._start(self._attach, instance, sock)

    async def _attach(self, instance: int, sock: socket.socket) -> None:
        try:
            plan = self._views[instance].prepared.plan
            setup = self._proofs.with_proof(self._costs.with_measurements(self.setup, plan), plan)
            await self.dispatcher.attach(instance, sock, setup)
        except OSError as error:
            self._supervisor.kill(instance, f"its channel could not be opened: {error}")

    def exited(self, instance: int, pid: int, description: str) -> None:
        """The worker process has exited; its channel informs the dispatcher."""
        view = self._views[instance]
        if view.stage is not None:  # it was not ready
            self._proofs.forget(view.prepared.plan)
        view.pid, view.ready, view.stage = None, None, None
        self._start(self._after_exit, instance, description)
        if not self._settings.restart:
            self._fail(InstanceError(f"instance {instance} was lost and is not restarted: {description}"))

    async def _after_exit(self, instance: int, description: str) -> None:
        exited = self.dispatcher.now()
        await anyio.sleep(EXIT_SECONDS)  # for the last results, which may still be in the channel
        self.dispatcher.quarantine.explain(instance, exited - EXIT_SECONDS, description)
        self._fail_requests_without_workers()

    def _fail_requests_without_workers(self) -> None:
        """Fail queued requests when the last worker exits during a drain: none is restarted."""
        if self._draining and all(view.pid is None for view in self._views.values()):
            self.dispatcher.no_instances_left("the last instance exited while the server was shutting down")

    def restarting(self, instance: int, delay: float) -> None:
        """Nothing to do: the state shows it."""

    def failed(self, instance: int, reason: str) -> None:
        """No other worker will be started for this instance."""
        if not self._settings.restart:
            self._fail(InstanceError(f"instance {instance} could not be started: {reason}"))
        elif all(state["state"] == "failed" for state in self._supervisor.states().values()):
            if instance in self._refused_by:
                self._fail(ModelRefusedError(reason))
                return
            last = f"the last instance to fail was {instance}: {reason}"
            self._fail(InstanceError(f"no instance is left: {last}"), last)
        else:
            self._check_settled()

    # -------------------------------------------------- listener of dispatcher

    def loading(self, instance: int, message: Loading) -> None:
        """The worker is starting."""
        self._views[instance].stage = message.stage
        extra = {"instance": instance, "event": "loading", "stage": message.stage, "done": message.done}
        level = logging.INFO if message.done == 1.0 else logging.DEBUG
        progress = "done" if message.done == 1.0 else f"{100 * message.done:.0f} %"
        log.log(level, "%-6s %4s  %s", message.stage, progress, message.detail, extra=extra)

    def ready(self, instance: int, message: Ready) -> None:
        """The worker is ready: notify the supervisor, and verify the process from outside."""
        view = self._views[instance]
        view.ready, view.stage = message, None
        self._was_ready = True
        classes = {view.prepared.plan.length_class for view in self._views.values()}
        warm = {view.prepared.plan.length_class for view in self._views.values() if view.ready}
        self._was_complete = self._was_complete or warm == classes
        self._supervisor.ready(instance, message.pid)
        for note in message.notes:
            log.info("%s", note, extra={"instance": instance, "event": "note"})
        self._proofs.save(view.prepared.plan, message)
        self.scheduler.set_initial_drift(instance, self._costs.save_measurements(view.prepared.plan, message))
        if self._settings.verify:
            self._start(self._verify, instance, message)
        if not self._draining and all(v.ready for v in self._views.values()):
            self._observer.all_ready()
        self._check_settled()

    async def _verify(self, instance: int, message: Ready) -> None:
        view = self._views[instance]
        plan, level = view.prepared.plan, view.prepared.binding.level
        # From the plan, not from the worker: the check is for OpenMP teams that are smaller than planned.
        threads = plan.threads if message.backend != "fake" else None
        look = partial(verify, message.pid, plan.cpus, plan.nodes, threads, level)
        try:
            found = await anyio.to_thread.run_sync(look)
        except InstanceError as error:  # it has exited meanwhile; the supervisor logs how
            log.debug("%s", error, extra={"instance": instance})
            return
        if view.pid != message.pid:
            return
        view.verification = found
        extra = {"instance": instance, "event": "verified", "verification": found.to_json()}
        log.log(logging.INFO if found.ok else logging.ERROR, "%s", found.sentence(), extra=extra)
        if not found.ok and self._options.machine.strict:
            self._supervisor.unusable(instance, f"--strict: {found.sentence()}", message.pid)

    def unusable(self, instance: int, reason: str) -> None:
        """The worker reports that it cannot serve its model. This is final only if no worker has ever been ready."""
        pid = self._views[instance].pid
        if not self._settings.restart:
            self._fail(ModelRefusedError(reason))
        elif self._was_ready:
            self._supervisor.kill(instance, reason, pid)
        else:
            self._refused_by.add(instance)
            self._supervisor.unusable(instance, reason, pid)

    def overdue(self, instance: int, batch: int) -> None:
        """The worker is far later than predicted: look at its process."""
        if (pid := self._views[instance].pid) is not None:
            self._start(self._inspect, instance, pid, batch)

    async def _inspect(self, instance: int, pid: int, batch: int) -> None:
        state = await anyio.to_thread.run_sync(watch_activity, pid)
        if state is None or self._views[instance].pid != pid:
            return
        if state == "inactive" and self.model_info.task == "custom":
            state = "active"  # a custom class may wait for anything, such as a database
        extra = {"instance": instance, "event": "overdue", "activity": state}
        log.warning("a batch takes far longer than predicted; the worker is %s", state, extra=extra)
        self.dispatcher.inspected(WorkerActivity(instance, batch, state))

    def lost(self, instance: int, reason: str) -> None:
        """The channel is closed; the process may still run."""
        self._views[instance].ready = None
        if not self._draining:
            self._start(self._end_lost, instance, self._views[instance].pid, reason)

    async def _end_lost(self, instance: int, pid: int | None, reason: str) -> None:
        # Usually the channel is closed because the process has exited, and its exit status is more informative than our
        # signal.
        await anyio.sleep(EXIT_SECONDS)
        if pid is not None and self._views[instance].pid == pid:
            self._supervisor.kill(instance, reason, pid)

    # ------------------------------------------------------------------- views

    def clear_quarantine(self) -> int:
        """Accept quarantined inputs again; returns their number."""
        return self.dispatcher.quarantine.clear()

    @property
    def draining(self) -> bool:
        """Whether the engine is shutting down."""
        return self._draining

    def is_ready(self) -> bool:
        """Whether requests of every length can be answered and the engine is not shutting down.

        At first, that requires a ready instance of each length class. Later, one ready instance is enough, since
        classes help each other; but not if its batch is overdue.
        """
        if self._draining:
            return False
        return self._was_complete and any(self._responds(instance) for instance in self._views)

    def _responds(self, instance: int) -> bool:
        return self._views[instance].ready is not None and self.scheduler.responds(instance)

    def states(self) -> dict[str, Any]:
        """The state of every instance, by its id, for ``/ready``."""
        now = self.dispatcher.now()
        return {
            str(instance): {
                **state,
                "stage": self._views[instance].stage,
                "responds": self._responds(instance),
                **self._ages(instance, now),
            }
            for instance, state in self._supervisor.states().items()
        }

    def _ages(self, instance: int, now: float) -> dict[str, float | None]:
        finished, running = self.scheduler.ages(instance, now)
        return {
            "seconds_since_batch": None if finished is None else round(finished, 3),
            "running_seconds": None if running is None else round(running, 3),
        }

    async def probe(self) -> dict[str, bool]:
        """Whether each instance, by its id, finishes a batch now; idle ones compute a sample of one token. An instance
        that is busy with a batch, and not overdue, counts as well. Takes ``hang_seconds`` and a second at most."""
        busy = {i for i in self._views if self._responds(i) and self.scheduler.ages(i, 0.0)[1] is not None}
        seconds = min(self._options.scheduling.hang_seconds, MAX_PROBE_SECONDS) + 1.0
        found = await asyncio.gather(*(self.dispatcher.finishes_batch(i, seconds) for i in self._views))
        return {str(i): done or (i in busy and self._responds(i)) for i, done in zip(self._views, found, strict=True)}

    def cost_sources(self) -> tuple[str, ...]:
        """The sources of the costs of ready instances: ``measured``, ``cached``, or both."""
        ready = [view.ready for view in self._views.values() if view.ready]
        return tuple(sorted({"cached" if message.cached else "measured" for message in ready}))

    def info(self) -> dict[str, Any]:
        """Where each instance runs, and the results of the verification: the body of ``GET /info``."""
        plan, model_info, states = self.prepared.plan, self.model_info, self._supervisor.states()
        views = self._views.values()
        return {
            "launcher": version("launcher"),
            "started": self._started_at,
            "draining": self._draining,
            "model": {
                "name": model_info.name,
                "asked": model_info.asked,
                "task": model_info.task,
                "architecture": model_info.architecture,
                "max_length": model_info.max_length,
                "width": model_info.result_width,
                "pooling": model_info.pooling,
                "normalize": model_info.normalize,
                "prompts": model_info.prompts,
                "default_prompt": model_info.default_prompt,
                "labels": list(model_info.labels),
                "dtype": self.setup.dtype,
                "backend": self.setup.backend,
            },
            "packing": None
            if model_info.task == "custom"
            else packing_info([view.ready for view in views if view.ready], self._options.model.layout),
            "instances": [view.info(states[id], self.scheduler.cost(id)) for id, view in self._views.items()],
            "front_cpus": sorted(os.sched_getaffinity(0)),
            "reserved_cpus": list(plan.reserved_cpus),
            "unused_cpus": list(plan.unused_cpus),
            "quarantine": self.dispatcher.quarantine.report(self.dispatcher.now()),
            "warnings": list(self.prepared.warnings),
        }
