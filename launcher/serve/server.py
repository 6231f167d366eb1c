"""Runs the server: joins supervisor, dispatcher and HTTP, and owns the signals and the order of the end.

Order of the start: the port, the machine, the model's files, the plan, the probes; only then processes. Order of the
end (first Ctrl-C or SIGTERM): not ready, what is admitted is finished, workers stop, HTTP closes, exit 0. A second
signal ends all at once. Signal handlers only record; a task reacts.
"""

from __future__ import annotations

import gc
import logging
import os
import resource
import signal
import socket
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from typing import Any

import anyio
import anyio.to_thread
from anyio.abc import TaskGroup

from launcher.core.machine.cpuset import format_cpu_list
from launcher.core.planning.binding import Binding
from launcher.core.planning.plan import InstancePlan, front_cpus
from launcher.core.protocol.messages import Loading, Ready
from launcher.core.protocol.model_info import ModelInfo
from launcher.core.report.forecast import grounds
from launcher.core.scheduling.scheduler import Scheduler
from launcher.core.tuning.choose_classes import specs_of
from launcher.errors import InstanceError, LauncherError, MachineError, UsageError
from launcher.front.dispatcher import Dispatcher
from launcher.front.http.app import Services, create_app
from launcher.front.http.server import HttpServer
from launcher.front.metrics import FrontMetrics
from launcher.front.tokenizer import FrontTokenizer
from launcher.host import log as logs
from launcher.host.process.spawn import Launch
from launcher.host.process.supervisor import Supervisor
from launcher.host.process.verify import Verification, verify
from launcher.options import FrontOptions, Layout, ServeOptions
from launcher.pinning import bind_process
from launcher.serve.costs import Costs, cost_info, watch_costs
from launcher.serve.prepare import Prepared, limits_of, prepare, refuse_elsewhere, setup_of, subject_of

log = logging.getLogger("launcher.serve")

# After the drain: time for a worker that was told to stop, and for replies that are being written.
STOP_SECONDS = 5.0
# After a channel is gone: time for its process to be seen ending by itself.
EXIT_SECONDS = 0.25


def run(options: ServeOptions) -> None:
    """Serve until a signal. Raises any ``LauncherError``; returns after a clean end."""
    refuse_elsewhere(options.machine)
    logs.set_up(options.log)
    _raise_descriptor_limit()
    sock = listen(options.front)
    with sock:
        prepared = prepare(options, model_needed=True)
        assert prepared.model_info is not None, "prepare() raises when a needed model is not there"
        mask = bind_front(prepared, strict=options.machine.strict)
        server = Server(options, prepared, prepared.model_info, sock, mask)
        anyio.run(server.run, backend_options={"use_uvloop": True})
    if server.failure:
        raise server.failure


def _raise_descriptor_limit() -> None:
    """Allow as many connections as the system lets this user have; the soft limit is 1,024 on most systems."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def bind_front(prepared: Prepared, *, strict: bool) -> tuple[int, ...] | None:
    """Bind this process where the plan has a place for the front; the mask before, None where it keeps that.

    With ``strict`` a refusal raises ``MachineError``, otherwise it is said.
    """
    cpus = front_cpus(prepared.machine, prepared.plan)
    if not cpus:
        return None
    try:
        before = bind_process(cpus)
    except MachineError as error:
        if strict:
            raise
        log.warning("The front is not bound: %s", error, extra={"event": "warning"})
        return None
    log.info("the front is bound to cpus %s", format_cpu_list(cpus), extra={"event": "front", "cpus": list(cpus)})
    return before


def listen(front: FrontOptions) -> socket.socket:
    """The listening socket. Raises ``UsageError`` when the address cannot be had."""
    family = socket.AF_INET6 if ":" in front.host else socket.AF_INET
    sock = socket.socket(family, socket.SOCK_STREAM)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind((front.host, front.port))
        sock.listen(2048)
    except OSError as error:
        sock.close()
        raise UsageError(
            f"cannot listen on {front.host} port {front.port}: {error.strerror or error}; "
            "another --port (0 takes a free one) or --host, or ending the program that has it, is what works"
        ) from error
    sock.setblocking(False)
    return sock


@dataclass(slots=True)
class InstanceView:
    """What the parts have said of one instance, for ``/info``."""

    plan: InstancePlan
    binding: Binding
    pid: int | None = None
    ready: Ready | None = None
    stage: str | None = None
    verification: Verification | None = None


class Server:
    """One run of the server; the listener of supervisor and dispatcher, which do not know each other."""

    def __init__(
        self,
        options: ServeOptions,
        prepared: Prepared,
        model_info: ModelInfo,
        sock: socket.socket,
        mask: tuple[int, ...] | None = None,
    ) -> None:
        """``mask`` is what workers start with where the front has bound itself."""
        self._options = options
        self._mask = mask
        self._prepared = prepared
        self._model_info = model_info
        self._started_at = time.time()
        plan = prepared.plan
        self._views = {
            instance.id: InstanceView(instance, binding)
            for instance, binding in zip(plan.instances, prepared.bindings, strict=True)
        }
        self._costs = Costs(subject_of(options, prepared.machine, model_info), fresh=options.measure)
        self._setups = {i.id: setup_of(options, prepared.machine, model_info, i) for i in plan.instances}
        self._draining = False
        self._was_ready = False
        self._group: TaskGroup | None = None
        self._signals = 0
        self.failure: LauncherError | None = None
        self._finished = anyio.Event()
        self._build(sock)

    def _build(self, sock: socket.socket) -> None:
        plan, front = self._prepared.plan, self._options.front
        scheduler = self._scheduler = Scheduler(specs_of(plan), limits_of(self._options))
        names = {i.id: i.length_class.name if i.length_class else "all" for i in plan.instances}
        metrics = FrontMetrics(names)
        metrics.watch_queue(sorted(set(names.values())), scheduler.queued_by_class)
        watch_costs(metrics, scheduler.cost)
        model_info = self._model_info
        self._dispatcher = Dispatcher(
            scheduler, self, metrics, width=model_info.result_width, row_per_token=model_info.row_per_token
        )
        metrics.watch_in_flight(lambda: self._dispatcher.in_flight)
        launches = [
            Launch(instance.id, command.command, {**os.environ, **command.env}, mask=self._mask)
            for instance, command in zip(plan.instances, self._prepared.commands, strict=True)
        ]
        self._supervisor = Supervisor(launches, self._options.supervise, self)
        self._tokenizer = FrontTokenizer(self._model_info, text_characters=front.text_characters)
        services = Services(
            dispatcher=self._dispatcher,
            tokenizer=self._tokenizer,
            model_info=self._model_info,
            options=front,
            info=self.info,
            states=self.states,
            is_ready=self.is_ready,
            metrics=metrics,
        )
        self._http = HttpServer(create_app(services), sock, front)
        host, port = sock.getsockname()[:2]
        self._address = f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"

    # --------------------------------------------------------------------- run

    async def run(self) -> None:
        """Serve until a signal, or until no instance is left."""
        self._finished = anyio.Event()
        # What is there now stays for good. Walking it took the collector 20 to 25 ms, in the middle of requests.
        gc.collect()
        gc.freeze()
        self._say_start()
        async with anyio.create_task_group() as group:
            self._group = group
            group.start_soon(self._watch_signals)
            group.start_soon(self._http.run)
            group.start_soon(self._supervisor.run)
            await self._finished.wait()
            group.cancel_scope.cancel()
        log.info("ended", extra={"event": "ended"})

    def _say_start(self) -> None:
        plan, model_info = self._prepared.plan, self._model_info
        setup = self._setups[plan.instances[0].id]
        log.info(
            "model %s (%s, %s, at most %d tokens) in %s on %d instance%s; listening on %s, not ready yet",
            model_info.name, model_info.architecture, model_info.task, model_info.max_length, setup.dtype,
            len(plan.instances), "s" if len(plan.instances) > 1 else "", self._address, extra={"event": "starting",
            "address": self._address},
        )  # fmt: skip
        outlook = self._prepared.outlook
        if outlook is not None and outlook.choice is not None:
            log.info("%s %s", outlook.choice.why, grounds(outlook.choice.predicted), extra={"event": "classes"})
        for warning in self._prepared.warnings:
            log.warning("%s", warning, extra={"event": "warning"})
        for instance, command in zip(plan.instances, self._prepared.commands, strict=True):
            extra = {"instance": instance.id, "event": "planned", "command": list(command.command)}
            log.info("%s", instance.why, extra=extra)
            log.debug("command: %s", " ".join(command.command), extra=extra)

    async def _watch_signals(self) -> None:
        with anyio.open_signal_receiver(signal.SIGINT, signal.SIGTERM) as received:
            async for number in received:
                self._signals += 1
                name = signal.Signals(number).name
                if self._signals == 1:
                    log.info("%s: draining; a second signal ends at once", name, extra={"event": "draining"})
                    self._start(self._end)
                else:
                    log.warning("%s again: ending at once", name, extra={"event": "ending"})
                    self._supervisor.stop_now()
                    self._finished.set()

    def _start(self, function: Any, *arguments: Any) -> None:
        if self._group is not None:
            self._group.start_soon(function, *arguments)

    async def _end(self) -> None:
        """The clean end: nothing that was admitted is lost, unless it takes longer than the drain may."""
        self._draining = True
        self._supervisor.begin_drain()
        self._dispatcher.begin_drain()
        self._answer_when_nobody_is_left()
        with anyio.move_on_after(self._options.front.drain_seconds) as drain:
            await self._dispatcher.drained()
        if drain.cancelled_caught:
            left = self._dispatcher.in_flight
            log.error("%d requests were not finished in %g s", left, self._options.front.drain_seconds)
            self._dispatcher.all_gone("the server is shutting down and its time to finish is over")
        ready = [view.plan for view in self._views.values() if view.ready]
        self._costs.keep((plan, self._scheduler.cost(plan.id)) for plan in ready)
        self._dispatcher.stop_workers()
        await self._supervisor.stop(STOP_SECONDS)
        await self._http.stop(STOP_SECONDS)
        self._tokenizer.close()
        self._finished.set()

    async def _fail(self, reason: str) -> None:
        """The end when no instance is left: what waits is answered, the exit status says that it failed."""
        self.failure = InstanceError(f"no instance is left: {reason}")
        self._dispatcher.all_gone(reason)
        await self._end()

    # -------------------------------------------------- listener of supervisor

    def started(self, instance: int, pid: int, sock: socket.socket) -> None:
        """A worker process exists: give its channel to the dispatcher."""
        view = self._views[instance]
        view.pid, view.ready, view.stage, view.verification = pid, None, "starting", None
        self._start(self._attach, instance, sock)

    async def _attach(self, instance: int, sock: socket.socket) -> None:
        try:
            setup = self._costs.complete(self._setups[instance], self._views[instance].plan)
            await self._dispatcher.attach(instance, sock, setup)
        except OSError as error:
            self._supervisor.kill(instance, f"its channel could not be opened: {error}")

    def exited(self, instance: int, pid: int, description: str) -> None:
        """The worker process has ended; its channel tells the dispatcher by itself."""
        view = self._views[instance]
        view.pid, view.ready, view.stage = None, None, None
        self._start(self._after_exit)

    async def _after_exit(self) -> None:
        await anyio.sleep(EXIT_SECONDS)  # for the last results, which may still be in the channel
        self._answer_when_nobody_is_left()

    def _answer_when_nobody_is_left(self) -> None:
        """Nothing is restarted while draining: what waits when the last instance has ended waits for nothing."""
        if self._draining and all(view.pid is None for view in self._views.values()):
            self._dispatcher.all_gone("the last instance ended while the server was shutting down")

    def restarting(self, instance: int, delay: float) -> None:
        """Nothing to do: the state says it."""

    def given_up(self, instance: int, reason: str) -> None:
        """There will be no other worker for this instance."""
        states = self._supervisor.states().values()
        if not self._draining and all(state["state"] == "failed" for state in states):
            self._start(self._fail, f"instance {instance} was given up last: {reason}")

    # -------------------------------------------------- listener of dispatcher

    def loading(self, instance: int, message: Loading) -> None:
        """The worker is starting."""
        self._views[instance].stage = message.stage
        extra = {"instance": instance, "event": "loading", "stage": message.stage, "done": message.done}
        level = logging.INFO if message.done == 1.0 else logging.DEBUG
        progress = "done" if message.done == 1.0 else f"{100 * message.done:.0f} %"
        log.log(level, "%-6s %4s  %s", message.stage, progress, message.detail, extra=extra)

    def ready(self, instance: int, message: Ready) -> None:
        """The worker is warm: tell the supervisor, and look at the process from outside."""
        view = self._views[instance]
        view.ready, view.stage = message, None
        self._was_ready = True
        self._supervisor.ready(instance, message.pid)
        for note in message.notes:
            log.info("%s", note, extra={"instance": instance, "event": "note"})
        self._scheduler.presume(instance, self._costs.take(view.plan, message))
        self._start(self._verify, instance, message)
        if self.is_ready() and all(v.ready for v in self._views.values()):
            log.info("ready: %s (API at /docs, plan at /info)", self._address, extra={"event": "serving"})

    async def _verify(self, instance: int, message: Ready) -> None:
        view = self._views[instance]
        # The plan's, not what the worker counts itself: a collapsed team is what is looked for.
        threads = view.plan.threads if message.backend != "fake" else None
        look = partial(verify, message.pid, view.plan.cpus, view.plan.nodes, threads, view.binding.level)
        try:
            found = await anyio.to_thread.run_sync(look)
        except InstanceError as error:  # it has ended meanwhile; the supervisor says how
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
        """The worker says that its model cannot be served; believed for good only where no worker ever could."""
        pid = self._views[instance].pid
        if self._was_ready:
            self._supervisor.kill(instance, reason, pid)
        else:
            self._supervisor.unusable(instance, reason, pid)

    def lost(self, instance: int, reason: str) -> None:
        """The channel is gone; the process may still be there."""
        self._views[instance].ready = None
        if not self._draining:
            self._start(self._end_lost, instance, self._views[instance].pid, reason)

    async def _end_lost(self, instance: int, pid: int | None, reason: str) -> None:
        # Mostly the channel is gone because the process is, and then its own exit status says more than our signal.
        await anyio.sleep(EXIT_SECONDS)
        if pid is not None and self._views[instance].pid == pid:
            self._supervisor.kill(instance, reason, pid)

    # ------------------------------------------------------------------- views

    def is_ready(self) -> bool:
        """Whether requests are served as planned: an instance of each class is warm, and the end has not begun."""
        classes = {view.plan.length_class for view in self._views.values()}
        warm = {view.plan.length_class for view in self._views.values() if view.ready}
        return not self._draining and warm == classes

    def states(self) -> dict[str, Any]:
        """The state of every instance, for ``/ready``."""
        return {
            str(instance): {**state, "stage": self._views[instance].stage}
            for instance, state in self._supervisor.states().items()
        }

    def info(self) -> dict[str, Any]:
        """What runs where, and what was found when it was looked at: the body of ``/info``."""
        prepared, model_info = self._prepared, self._model_info
        setup = self._setups[prepared.plan.instances[0].id]
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
                "labels": list(model_info.labels),
                "dtype": setup.dtype,
                "backend": setup.backend,
            },
            "packing": _packing([v.ready for v in self._views.values() if v.ready], self._options.model.layout),
            "instances": [self._instance_info(view) for view in self._views.values()],
            "front_cpus": sorted(os.sched_getaffinity(0)),
            "reserved_cpus": list(prepared.plan.reserved_cpus),
            "unused_cpus": list(prepared.plan.unused_cpus),
            "warnings": list(prepared.warnings),
        }

    def _instance_info(self, view: InstanceView) -> dict[str, Any]:
        plan, ready, found = view.plan, view.ready, view.verification
        command = self._prepared.commands[list(self._views).index(plan.id)]
        length_class = plan.length_class
        return {
            "id": plan.id,
            **self._supervisor.states()[plan.id],
            "cpus": list(plan.cpus),
            "threads": plan.threads,
            "nodes": list(plan.nodes),
            "memory": plan.memory,
            "class": None if length_class is None else {
                "min_length": length_class.min_length, "max_length": length_class.max_length
            },
            "command": list(command.command),
            "env": dict(command.env),
            "why": plan.why,
            "binding": {"level": view.binding.level, "tool": view.binding.tool, "reason": view.binding.reason},
            "verification": found.to_json() if found else None,
            "cost": cost_info(ready, self._scheduler.cost(plan.id)) if ready else None,
            "worker": None if ready is None else {
                "torch": ready.torch_version,
                "dtype": ready.dtype,
                "load_seconds": round(ready.load_seconds, 3),
                "warmup_seconds": round(ready.warmup_seconds, 3),
                "accuracy": ready.accuracy,
                "packed": ready.packed,
                "measured": [list(m) for m in ready.measured],
                "notes": list(ready.notes),
            },
        }  # fmt: skip


def _packing(ready: Sequence[Ready], layout: Layout) -> str | None:
    """How items are laid out, in words; None while nothing is ready."""
    if not ready:
        return None
    if all(message.packed for message in ready):
        return "on: items are computed one behind the other, without padding"
    if layout == "fifo":
        return "off: batches are made as items come, and padded"
    return "off: batches are of items of similar length, padded"
