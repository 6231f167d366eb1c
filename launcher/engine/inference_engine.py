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

from launcher.core.cost.cost_model import CostModel
from launcher.core.lifecycle.change import Order, Step, replace_steps, restart_steps
from launcher.core.protocol.messages import Loading, Ready, Setup
from launcher.core.scheduling.scheduler import InstanceSpec, Scheduler, SchedulerLimits, WorkerActivity
from launcher.core.tuning.choose_classes import specs_of
from launcher.engine.configuration import Configuration, class_name_of, configure, spec_of
from launcher.engine.costs import watch_costs
from launcher.engine.instance_views import InstanceView, Role, packing_info
from launcher.engine.rolling_change import ChangeResult, Kind, Outcome, RollingChange, Target
from launcher.errors import ChangeInProgressError, InstanceError, ModelRefusedError, UsageError
from launcher.front.custom_items import CustomItems
from launcher.front.dispatcher import Dispatcher
from launcher.front.input_reader import InputReader
from launcher.front.metrics import FrontMetrics
from launcher.front.quarantine import Quarantine
from launcher.front.tokenizer import FrontTokenizer
from launcher.host.process.activity import Activity, watch_activity
from launcher.host.process.supervisor import Supervisor
from launcher.host.process.verify_binding import verify
from launcher.options import ServeOptions, SuperviseOptions
from launcher.pinning import allowed_cpus
from launcher.prepare.memory_beside import fits_beside
from launcher.prepare.model import limits_of
from launcher.prepare.prepared_instances import Prepared, PreparedInstance

log = logging.getLogger("launcher.engine")

# After a channel has closed: time for its process to exit by itself.
EXIT_SECONDS = 0.25
# In a change, a new instance has failed after this many workers that did not become ready.
START_ATTEMPTS = 2
NOT_RUNNING = "instances can only be replaced while the server runs"
# The longest wait for a sample batch, if ``hang_seconds`` is longer; one more second is for a loaded machine.
MAX_PROBE_SECONDS = 4.0


class EngineObserver(Protocol):
    """Notified of state changes of the engine. Called in the thread of the loop; must not block."""

    def all_ready(self) -> None:
        """Every instance is ready. Called again when a lost instance is ready again."""

    def changed(self, prepared: Prepared) -> None:
        """A change has ended with another plan."""

    def failed(self, error: InstanceError) -> None:
        """The engine can no longer compute, and queued requests have failed. Call ``drain`` and ``stop``."""


class Unobserved:
    """An observer that ignores everything."""

    def all_ready(self) -> None:
        """See ``EngineObserver``."""

    def changed(self, prepared: Prepared) -> None:
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
        self.model_info = prepared.model_info
        self.failure: InstanceError | None = None
        self._options = options
        self._settings = settings or EngineSettings()
        self._observer: EngineObserver = observer or Unobserved()
        self._started_at = time.time()
        self._configuration = configure(options, prepared)
        self._views = {one.plan.id: InstanceView(one, self._configuration) for one in prepared.instances}
        self._change: RollingChange | None = None
        self._ended: asyncio.Future[ChangeResult] | None = None
        self._changing = False
        self._kind: Kind = "restart"
        self._running = False
        self._last_change: RollingChange | None = None
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
        self.metrics = FrontMetrics({one.plan.id: class_name_of(one) for one in self.prepared.instances})
        self.metrics.watch_queue(self.scheduler.queued_by_class)
        watch_costs(self.metrics, self._cost_of)
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
        launches = [self._configuration.launch(one, self._settings.mask) for one in self.prepared.instances]
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
            self._running = True
            async with anyio.create_task_group() as group:
                group.start_soon(self._start_tasks, group)
                await self._supervisor.run()
                group.cancel_scope.cancel()
        finally:
            self._draining, self._running = True, False
            self.dispatcher.no_instances_left("the engine has ended")
            if self._ended is not None and not self._ended.done():  # a change that has not begun
                self._ended.set_exception(UsageError(NOT_RUNNING))

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
        self._save_drift()

    def _save_drift(self) -> None:
        serving = [view for view in self._views.values() if view.ready and view.role == "serving"]
        for costs in {id(view.configuration.costs): view.configuration.costs for view in serving}.values():
            plans = [view.prepared.plan for view in serving if view.configuration.costs is costs]
            costs.save_drift((plan, self.scheduler.cost(plan.id)) for plan in plans)

    async def stop(self) -> None:
        """Stop the workers; returns when all have exited. Does not wait for queued requests."""
        self._draining = True
        self.dispatcher.stop_workers()
        await self._supervisor.stop(self._options.supervise.stop_seconds)

    def stop_now(self) -> None:
        """Kill the workers; ``run`` returns when they are reaped."""
        self._draining = True
        self._supervisor.stop_now()

    def reconfigure(self, options: SuperviseOptions) -> None:
        """Supervise with these options from now on: restarts and timeouts that have begun are unaffected."""
        self._options = replace(self._options, supervise=options)
        self._configuration = replace(self._configuration, options=self._options)
        self._supervisor.reconfigure(options if self._settings.restart else replace(options, max_failures=1))

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
        serving = [(id, view) for id, view in self._views.items() if view.role == "serving"]
        waiting = [id for id, view in serving if not view.ready and states[id]["state"] != "failed"]
        if self._was_ready and not waiting:
            self._settled.set()

    # -------------------------------------------------- listener of supervisor

    def started(self, instance: int, pid: int, sock: socket.socket) -> None:
        """A worker process exists: pass its channel to the dispatcher."""
        view = self._views[instance]
        view.pid, view.ready, view.stage, view.verification = pid, None, "starting", None
        self._start(self._attach, instance, sock)
        self._start(self._watch_loading, instance, pid)

    async def _watch_loading(self, instance: int, pid: int) -> None:
        """Replace a worker that takes far longer to load the model than others did, if it does nothing."""
        began, view = self.dispatcher.now(), self._views.get(instance)
        if view is None:  # removed meanwhile
            return
        load_times = view.configuration.load_times
        while (seconds := load_times.inspect_after()) is not None:
            await anyio.sleep(seconds)
            if view.pid != pid or view.ready is not None:
                return
            state = await _activity(pid)
            if state in ("stopped", "inactive") and view.pid == pid and view.ready is None:
                taken = self.dispatcher.now() - began
                reason = f"not ready after {taken:.1f} s, which is far longer than usual, and the worker is {state}"
                self._supervisor.kill(instance, reason, pid)
                return

    async def _attach(self, instance: int, sock: socket.socket) -> None:
        view = self._views.get(instance)
        if view is None:  # removed meanwhile
            sock.close()
            return
        try:
            configuration, plan = view.configuration, view.prepared.plan
            setup = configuration.costs.with_measurements(configuration.setup, plan)
            setup = configuration.proofs.with_proof(setup, plan)
            await self.dispatcher.attach(instance, sock, setup, standby=view.role == "standby")
        except OSError as error:
            self._supervisor.kill(instance, f"its channel could not be opened: {error}")

    def exited(self, instance: int, pid: int, description: str) -> None:
        """The worker process has exited; its channel informs the dispatcher."""
        view = self._views[instance]
        if view.stage is not None:  # it was not ready
            view.configuration.proofs.forget(view.prepared.plan)
        view.pid, view.ready, view.stage = None, None, None
        view.failures += 1
        if view.role != "standby" or view.failures >= START_ATTEMPTS:
            view.settle(description)
        self._start(self._after_exit, instance, description)
        if not self._settings.restart and view.role == "serving":
            self._fail(InstanceError(f"instance {instance} was lost and is not restarted: {description}"))

    async def _after_exit(self, instance: int, description: str) -> None:
        exited = self.dispatcher.now()
        await anyio.sleep(EXIT_SECONDS)  # for the last results, which may still be in the channel
        self.dispatcher.quarantine.explain(instance, exited - EXIT_SECONDS, description)
        self._fail_requests_without_workers()

    def _fail_requests_without_workers(self) -> None:
        """Fail queued requests when the last worker exits during a drain: none is restarted."""
        starting = self._change is not None  # a change may still start one for the requests that wait
        if self._draining and not starting and all(view.pid is None for view in self._views.values()):
            self.dispatcher.no_instances_left("the last instance exited while the server was shutting down")

    def restarting(self, instance: int, delay: float) -> None:
        """Nothing to do: the state shows it."""

    def failed(self, instance: int, reason: str) -> None:
        """No other worker will be started for this instance."""
        self._views[instance].settle(reason)
        if self._views[instance].role == "standby":
            return
        if not self._settings.restart:
            self._fail(InstanceError(f"instance {instance} could not be started: {reason}"))
        elif self._change is None and self._all_failed():
            if instance in self._refused_by:
                self._fail(ModelRefusedError(reason))
                return
            last = f"the last instance to fail was {instance}: {reason}"
            self._fail(InstanceError(f"no instance is left: {last}"), last)
        else:
            self._check_settled()

    def _all_failed(self) -> bool:
        return all(state["state"] == "failed" for state in self._supervisor.states().values())

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
        view.ready, view.stage, view.failures = message, None, 0
        self._was_ready = True
        serving = [one for one in self._views.values() if one.role == "serving"]
        warm = {one.prepared.plan.length_class for one in serving if one.ready}
        self._was_complete = self._was_complete or warm == {one.prepared.plan.length_class for one in serving}
        self._supervisor.ready(instance, message.pid)
        for note in message.notes:
            log.info("%s", note, extra={"instance": instance, "event": "note"})
        view.configuration.proofs.save(view.prepared.plan, message)
        view.configuration.load_times.save(message)
        view.drift = view.configuration.costs.save_measurements(view.prepared.plan, message)
        if self.scheduler.knows(instance):
            self.scheduler.set_initial_drift(instance, view.drift)
        if self._settings.verify:
            self._start(self._verify, instance, message)
        if not (self._settings.verify and self._options.machine.strict):
            view.settle(None)
        if view.role == "serving":
            # The scheduler is told that the instance is ready only after this call.
            asyncio.get_running_loop().call_soon(self._notify_ready)
        self._check_settled()

    def _notify_ready(self) -> None:
        if not self._draining and all(view.ready for view in self._views.values() if view.role == "serving"):
            self._observer.all_ready()

    async def _verify(self, instance: int, message: Ready) -> None:
        view = self._views.get(instance)
        if view is None:  # removed meanwhile
            return
        plan, level = view.prepared.plan, view.prepared.binding.level
        # From the plan, not from the worker: the check is for OpenMP teams that are smaller than planned.
        threads = plan.threads if message.backend != "fake" else None
        look = partial(verify, message.pid, plan.cpus, plan.nodes, threads, level)
        try:
            found = await anyio.to_thread.run_sync(look)
        except InstanceError as error:  # it has exited meanwhile; the supervisor logs how
            log.debug("%s", error, extra={"instance": instance})
            return
        except (OSError, RuntimeError) as error:  # no descriptor or no thread is left; the worker serves nevertheless
            log.warning(
                "its binding could not be verified: %s", error, extra={"instance": instance, "event": "warning"}
            )
            return
        if view.pid != message.pid:
            return
        view.verification = found
        extra = {"instance": instance, "event": "verified", "verification": found.to_json()}
        log.log(logging.INFO if found.ok else logging.ERROR, "%s", found.sentence(), extra=extra)
        if not found.ok and self._options.machine.strict:
            view.settle(found.sentence())
            self._supervisor.unusable(instance, f"--strict: {found.sentence()}", message.pid)
        view.settle(None)

    def unusable(self, instance: int, reason: str) -> None:
        """The worker reports that it cannot serve its model. This is final only if no worker has ever been ready."""
        view = self._views[instance]
        pid = view.pid
        view.settle(reason)
        if view.role == "standby":
            self._supervisor.unusable(instance, reason, pid)
        elif not self._settings.restart:
            self._fail(ModelRefusedError(reason))
        elif self._was_ready:
            self._supervisor.kill(instance, reason, pid)
        else:
            self._refused_by.add(instance)
            self._supervisor.unusable(instance, reason, pid)

    def overdue(self, instance: int, batch: int) -> None:
        """The worker is far later than predicted: look at its process."""
        if (view := self._views.get(instance)) is not None and view.pid is not None:
            self._start(self._inspect, instance, view.pid, batch)

    async def _inspect(self, instance: int, pid: int, batch: int) -> None:
        state = await _activity(pid)
        view = self._views.get(instance)
        if state is None or view is None or view.pid != pid:
            return
        if state == "inactive" and self.model_info.task == "custom":
            state = "active"  # a custom class may wait for anything, such as a database
        extra = {"instance": instance, "event": "overdue", "activity": state}
        log.warning("a batch takes far longer than predicted; the worker is %s", state, extra=extra)
        self.dispatcher.inspected(WorkerActivity(instance, batch, state))

    def lost(self, instance: int, reason: str) -> None:
        """The channel is closed; the process may still run."""
        view = self._views[instance]
        view.ready = None
        if not self._draining and view.role != "retiring":
            self._start(self._end_lost, instance, self._views[instance].pid, reason)

    async def _end_lost(self, instance: int, pid: int | None, reason: str) -> None:
        # Usually the channel is closed because the process has exited, and its exit status is more informative than our
        # signal.
        await anyio.sleep(EXIT_SECONDS)
        view = self._views.get(instance)
        if pid is not None and view is not None and view.pid == pid:
            self._supervisor.kill(instance, reason, pid)

    # ----------------------------------------------------------------- changes

    async def restart_instances(self, configuration: Configuration | None = None) -> ChangeResult:
        """Replace the worker of each instance by a new one, one instance after another, while the others serve.

        Requests wait while no instance is ready; none fails. With ``configuration`` (see ``configure``) the new workers
        are started with that one; if it has other instances, this is ``apply``. Raises ``UsageError`` if another change
        is in progress, if the engine is not running, or if the configuration has another model.
        """
        wanted = configuration or self._configuration
        if places(wanted.prepared) != places(self.prepared):
            return await self.apply(wanted)
        return await self._run_change("restart", wanted, "auto")

    async def apply_plan(self, prepared: Prepared, *, order: Order = "auto") -> ChangeResult:
        """`apply` for another plan with the same options."""
        return await self.apply(configure(self._options, prepared), order=order)

    async def apply(self, configuration: Configuration, *, order: Order = "auto") -> ChangeResult:
        """Replace all instances by those of another configuration, while requests are answered; see `Order`.

        If a new instance does not become ready, the old ones are restored. Raises as ``restart_instances``.
        """
        return await self._run_change("plan", configuration, order)

    async def _run_change(self, kind: Kind, configuration: Configuration, order: Order) -> ChangeResult:
        self._check_change(configuration)
        self._changing, self._kind = True, kind
        ended = self._ended = asyncio.get_running_loop().create_future()
        # In a task of the engine: it must go on if the caller is cancelled.
        self._start(self._carry_out, kind, configuration, order, ended)
        return await asyncio.shield(ended)

    def _check_change(self, configuration: Configuration) -> None:
        if self._changing:
            raise ChangeInProgressError("another change is in progress; wait until it has ended")
        if self._draining or self.failure is not None or not self._running:
            raise UsageError(NOT_RUNNING)
        if configuration.model_info != self.model_info:
            raise UsageError(
                f"the model cannot be changed while the server runs: it serves {self.model_info.requested}, and the "
                f"new configuration has {configuration.model_info.requested} or other settings of it; restart "
                "the server"
            )

    async def _carry_out(
        self, kind: Kind, configuration: Configuration, order: Order, ended: asyncio.Future[ChangeResult]
    ) -> None:
        old = {id: (view.prepared, view.configuration) for id, view in sorted(self._views.items())}
        change: RollingChange | None = None
        try:
            same = configuration is self._configuration
            steps = await self._steps(kind, configuration, order)
            change = self._change = RollingChange(self, old, Target(kind, configuration, steps, same))
            self.dispatcher.change_started()
            await change.run()
        except Exception as error:
            log.exception("the change failed", extra={"event": "change"})
            ended.set_exception(error)
        finally:
            self._end_change(change)
            if not ended.done() and change is not None:
                ended.set_result(change.result())
            ended.cancel()

    async def _steps(self, kind: Kind, configuration: Configuration, order: Order) -> tuple[Step, ...]:
        present = [(id, view.prepared.plan.length_class) for id, view in sorted(self._views.items())]
        wanted = configuration.prepared.instances
        together = [wanted] if kind == "plan" else [(one,) for one in wanted]
        beside = order == "beside"
        if order == "auto":
            look = partial(fits_beside, configuration.options, self.model_info, together, running=len(present))
            beside = await anyio.to_thread.run_sync(look)
        if kind == "restart":
            return restart_steps(present, beside=beside)
        return replace_steps([id for id, _ in present], len(wanted), beside=beside)

    def _end_change(self, change: RollingChange | None) -> None:
        if change is not None:
            change.interrupt()
            if change.state == "new":
                self._adopt(change)
            for gone in set(self.metrics.instances) - set(self._views):
                self.metrics.remove_instance(gone)
            self._last_change = change
        self._change, self._changing = None, False
        self.dispatcher.change_ended()
        self._fail_requests_without_workers()
        if self._all_failed():
            self._fail(InstanceError("no instance is left: neither the new nor the old ones became ready"))
        self._check_settled()

    def _adopt(self, change: RollingChange) -> None:
        """The configuration of a change is now that of the engine."""
        configuration = change.target.configuration
        instances = tuple(one for _, one in sorted(change.new.items()))
        plan = replace(configuration.prepared.plan, instances=tuple(one.plan for one in instances))
        prepared = replace(configuration.prepared, plan=plan, instances=instances)
        # Those of the supervision may have been changed meanwhile.
        self._options = replace(configuration.options, supervise=self._options.supervise)
        self._configuration = replace(configuration, options=self._options, prepared=prepared)
        for view in self._views.values():
            view.configuration = self._configuration
        self._observer.changed(prepared)

    def begin_start(self, one: PreparedInstance, configuration: Configuration, *, standby: bool) -> Outcome:
        """See ``rolling_change.Instances``."""
        outcome: Outcome = asyncio.get_running_loop().create_future()
        role: Role = "standby" if standby else "serving"
        self._views[one.plan.id] = InstanceView(one, configuration, role, outcome)
        self.metrics.add_instance(one.plan.id, class_name_of(one))
        if not standby:
            self.dispatcher.admit(spec_of(one), 1.0)
        try:
            self._supervisor.add(configuration.launch(one, self._settings.mask))
        except InstanceError as error:
            outcome.set_result(str(error))
        return outcome

    def admit(self, instance: int) -> None:
        """See ``rolling_change.Instances``."""
        view = self._views[instance]
        view.role = "serving"
        self.dispatcher.admit(spec_of(view.prepared), view.drift)

    async def retire(self, instance: int) -> None:
        """See ``rolling_change.Instances``."""
        self._views[instance].role = "retiring"
        await self.dispatcher.retire(instance)
        await self._supervisor.remove(instance, self._options.supervise.stop_seconds)
        self.dispatcher.remove(instance)
        del self._views[instance]

    def _cost_of(self, instance: int) -> CostModel | None:
        return self.scheduler.cost(instance) if self.scheduler.knows(instance) else None

    def set_mask(self, mask: tuple[int, ...] | None) -> None:
        """Set ``EngineSettings.mask`` for workers that are started from now on."""
        self._settings = replace(self._settings, mask=mask)

    @property
    def configuration(self) -> Configuration:
        """What workers are started with now."""
        return self._configuration

    @property
    def prepared(self) -> Prepared:
        """The plan in effect; during a change the old one."""
        return self._configuration.prepared

    @property
    def setup(self) -> Setup:
        """The setup message of workers."""
        return self._configuration.setup

    @property
    def changing(self) -> bool:
        """Whether a change is in progress."""
        return self._changing

    def change_status(self) -> dict[str, Any] | None:
        """The change in progress, or else the last one; None if there was none."""
        if self._changing and self._change is None:
            return {"kind": self._kind, "state": "preparing"}
        change = self._change or self._last_change
        return None if change is None else change.status()

    # ------------------------------------------------------------------- views

    def worker_pids(self) -> dict[int, int]:
        """The process of each instance that has one, by its id."""
        return {id: view.pid for id, view in self._views.items() if view.pid is not None}

    def bindings(self) -> list[tuple[int, int, tuple[int, ...]]]:
        """Id, process and planned cpus of each ready instance that is bound to cpus."""
        ready = ((id, view) for id, view in self._views.items() if view.ready is not None)
        return [
            (id, view.pid, view.prepared.plan.cpus)
            for id, view in ready
            if view.pid is not None and view.prepared.binding.level != "none"
        ]

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
        return self._was_complete and any(
            self._responds(i) for i, view in self._views.items() if view.role == "serving"
        )

    def _responds(self, instance: int) -> bool:
        known = self._views[instance].ready is not None and self.scheduler.knows(instance)
        return known and self.scheduler.responds(instance)

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
            for instance, state in sorted(self._supervisor.states().items())
            if instance in self._views
        }

    def _ages(self, instance: int, now: float) -> dict[str, float | None]:
        finished, running = self.scheduler.ages(instance, now) if self.scheduler.knows(instance) else (None, None)
        return {
            "seconds_since_batch": None if finished is None else round(finished, 3),
            "running_seconds": None if running is None else round(running, 3),
        }

    async def probe(self) -> dict[str, bool]:
        """Whether each instance, by its id, finishes a batch now; idle ones compute a sample of one token. An instance
        that is busy with a batch, and not overdue, counts as well. Takes ``hang_seconds`` and a second at most."""
        known = [i for i, view in self._views.items() if view.role == "serving"]
        busy = {i for i in known if self._responds(i) and self.scheduler.ages(i, 0.0)[1] is not None}
        seconds = min(self._options.scheduling.hang_seconds, MAX_PROBE_SECONDS) + 1.0
        found = await asyncio.gather(*(self.dispatcher.finishes_batch(i, seconds) for i in known))
        return {str(i): done or (i in busy and self._responds(i)) for i, done in zip(known, found, strict=True)}

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
                "requested": model_info.requested,
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
            "instances": [
                view.info(states[id], self._cost_of(id)) for id, view in sorted(self._views.items()) if id in states
            ],
            "front_cpus": list(allowed_cpus()),
            "reserved_cpus": list(plan.reserved_cpus),
            "unused_cpus": list(plan.unused_cpus),
            "quarantine": self.dispatcher.quarantine.report(self.dispatcher.now()),
            "warnings": list(self.prepared.warnings),
        }


async def _activity(pid: int) -> Activity | None:
    try:
        return await anyio.to_thread.run_sync(watch_activity, pid)
    except (OSError, RuntimeError):  # no descriptor or no thread is left, which is not the worker's fault
        return "active"


def places(prepared: Prepared) -> list[tuple[Any, ...]]:
    """Where the instances run, and for which lengths."""
    return [(one.plan.cpus, one.plan.nodes, one.plan.length_class) for one in prepared.instances]
