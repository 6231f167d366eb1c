"""Owns all worker processes: starts, watches, restarts and stops them.

The shell around `core.lifecycle.worker`: every event goes through `_handle`, which makes the step and carries out its
actions at once. It knows nothing about batches or the messages on a channel; reports of workers arrive through `ready`,
`unusable` and `kill`, which the engine connects with the dispatcher.
"""

from __future__ import annotations

import logging
import socket
import time
from collections import deque
from collections.abc import Sequence
from typing import Protocol, TypedDict

import anyio
import anyio.lowlevel
from anyio.abc import TaskGroup

from launcher.core.lifecycle.process_events import (
    FailedPermanently,
    KillRequested,
    Spawned,
    SpawnFailed,
    StartRequested,
)
from launcher.core.lifecycle.worker import (
    FINAL,
    TRANSITIONS,
    Action,
    AnnounceFailure,
    AnnounceRestart,
    BecameReady,
    BecameUnhealthy,
    DrainStarted,
    Event,
    Exited,
    Kill,
    Spawn,
    State,
    StopRequested,
    WorkerStatus,
    step,
    timeout_event,
)
from launcher.errors import InstanceError, ResourceShortageError
from launcher.host.process.spawn_worker import Launch, Worker, start
from launcher.options import SuperviseOptions

log = logging.getLogger("launcher.supervisor")

# Reports and requests from outside may arrive too late, for a worker that is gone, and are ignored then. An event that
# the supervisor itself observes must be in the table.
FROM_OUTSIDE = (BecameReady, BecameUnhealthy, FailedPermanently, DrainStarted, StopRequested, KillRequested)


class Listener(Protocol):
    """Notified of changes to workers. Called in the loop's thread; must not block; may call the supervisor back."""

    def started(self, instance: int, pid: int, sock: socket.socket) -> None:
        """A worker process exists. ``sock`` (non-blocking) is the front's end of its channel; close it when done."""

    def exited(self, instance: int, pid: int, description: str) -> None:
        """The worker process has exited and is reaped; ``description`` says how."""

    def restarting(self, instance: int, delay: float) -> None:
        """Another worker starts in ``delay`` seconds."""

    def failed(self, instance: int, reason: str) -> None:
        """No other worker will be started for this instance."""


class InstanceState(TypedDict):
    """One instance for ``/ready`` and ``/info``; ``for_seconds`` is the time in this state."""

    state: State
    pid: int | None
    restarts: int
    failures: int
    for_seconds: float
    reason: str | None


class Supervisor:
    """The processes of all instances. Call `run` in one task, and any other method from the same loop at any time."""

    def __init__(self, launches: Sequence[Launch], options: SuperviseOptions, listener: Listener) -> None:
        self._launches = {launch.instance: launch for launch in launches}
        self._options = options
        self._listener = listener
        self._statuses = {one.instance: WorkerStatus(one.instance, since=time.monotonic()) for one in launches}
        self._workers: dict[int, Worker] = {}
        self._removing: dict[int, anyio.Event] = {}
        self._inbox: deque[tuple[int, Event, int | None]] = deque()
        self._handling = False
        self._changed = anyio.Event()
        self._all_stopped = anyio.Event()
        self._stopping = False
        self._group: TaskGroup | None = None

    async def run(self) -> None:
        """Start all instances and keep them running until `stop` or `stop_now`.

        However it ends, cancellation included, all workers are killed and reaped before it returns.
        """
        try:
            async with anyio.create_task_group() as group:
                self._group = group
                try:
                    for instance in list(self._statuses):
                        status = self._statuses.get(instance)
                        # Else it was stopped or removed before its start, perhaps while another one was started.
                        if status is not None and TRANSITIONS.accepts(status.state, StartRequested):
                            self._post(instance, StartRequested())
                        await anyio.lowlevel.checkpoint()  # a start blocks for milliseconds; other tasks need a turn
                    await self._watch_deadlines()
                finally:
                    self.stop_now()
        finally:
            self._group = None

    def add(self, launch: Launch) -> None:
        """Start another instance and keep it running. Raises ``InstanceError`` if all are being stopped."""
        if self._stopping or self._group is None:
            raise InstanceError("the server is shutting down")
        if launch.instance in self._statuses:
            raise ValueError(f"there is an instance {launch.instance} already")
        self._launches[launch.instance] = launch
        self._statuses[launch.instance] = WorkerStatus(launch.instance, since=time.monotonic())
        self._post(launch.instance, StartRequested())

    async def remove(self, instance: int, grace: float) -> None:
        """Stop one instance as `stop` does, and forget it when its worker has exited."""
        ended = self._removing.setdefault(instance, anyio.Event())
        self._post(instance, StopRequested(grace))
        await ended.wait()
        self._removing.pop(instance, None)
        self._statuses.pop(instance, None)
        self._launches.pop(instance, None)

    def ready(self, instance: int, pid: int | None = None) -> None:
        """The worker has reported that it is ready. With ``pid``, reports of an earlier worker are ignored."""
        self._post(instance, BecameReady(), pid)

    def unusable(self, instance: int, reason: str, pid: int | None = None) -> None:
        """No worker of this instance can serve correctly: this one is killed and not restarted."""
        self._post(instance, FailedPermanently(reason), pid)

    def kill(self, instance: int, reason: str, pid: int | None = None) -> None:
        """Kill a worker that hangs or whose channel is broken; the restart policy decides what follows."""
        self._post(instance, BecameUnhealthy(reason), pid)

    def reconfigure(self, options: SuperviseOptions) -> None:
        """Use these options for all that follows."""
        self._options = options

    def begin_drain(self) -> None:
        """From now on no worker is started or restarted."""
        for instance in self._statuses:
            self._post(instance, DrainStarted())

    async def stop(self, grace: float) -> None:
        """Stop all workers; returns when all have exited. Ready workers, which the front has told to stop, have
        ``grace`` seconds to exit; the others are killed at once."""
        self._stopping = True
        for instance in self._statuses:
            self._post(instance, StopRequested(grace))
        self._check_all_stopped()
        await self._all_stopped.wait()

    def stop_now(self) -> None:
        """Kill all workers at once; `run` and `stop` return when they are reaped."""
        self._stopping = True
        for instance in self._statuses:
            self._post(instance, KillRequested())
        self._check_all_stopped()

    def states(self) -> dict[int, InstanceState]:
        """Every instance as it is now."""
        now = time.monotonic()
        return {
            instance: {
                "state": status.state,
                "pid": status.pid,
                "restarts": status.restarts,
                "failures": status.failures,
                "for_seconds": round(now - status.since, 3),
                "reason": status.reason,
            }
            for instance, status in self._statuses.items()
        }

    async def _watch_deadlines(self) -> None:
        while not self._all_stopped.is_set():
            self._changed = anyio.Event()
            now = time.monotonic()
            for instance, status in self._statuses.items():
                if event := timeout_event(status, now):
                    self._post(instance, event)
            deadlines = [status.deadline for status in self._statuses.values() if status.deadline is not None]
            with anyio.move_on_after(min(deadlines, default=float("inf")) - time.monotonic()):
                await self._changed.wait()

    async def _watch(self, worker: Worker) -> None:
        # A worker that nobody waits for becomes a zombie, so this is shielded: `run` kills, then this returns.
        with anyio.CancelScope(shield=True):
            try:
                description = await worker.wait()
            except OSError as error:  # its output or its exit cannot be watched; it has been killed and reaped
                description = f"killed, because it could not be watched: {error}"
        del self._workers[worker.instance]
        self._post(worker.instance, Exited(description), worker.pid)

    def _post(self, instance: int, event: Event, pid: int | None = None) -> None:
        """Handle the event after those already being handled: listeners may call back from within a call."""
        self._inbox.append((instance, event, pid))
        if self._handling:
            return
        self._handling = True
        try:
            while self._inbox:
                self._handle(*self._inbox.popleft())
        finally:
            self._handling = False
        self._changed.set()
        for instance, ended in self._removing.items():
            if instance not in self._statuses or self._statuses[instance].state in FINAL:
                ended.set()
        self._check_all_stopped()

    def _check_all_stopped(self) -> None:
        """End `run` and `stop` if they wait for no worker: in a change there may be no instance for a moment."""
        if self._stopping and all(status.state in FINAL for status in self._statuses.values()):
            self._all_stopped.set()
            self._changed.set()

    def _handle(self, instance: int, event: Event, pid: int | None) -> None:
        before = self._statuses.get(instance)
        if before is None:
            log.debug("ignored %s of an instance that was removed", event, extra={"instance": instance})
            return
        if pid is not None and before.pid is not None and pid != before.pid:
            log.debug("ignored %s of an earlier worker, pid %d", event, pid, extra={"instance": instance})
            return
        if isinstance(event, FROM_OUTSIDE) and not TRANSITIONS.accepts(before.state, type(event)):
            log.debug("ignored %s in state %s", event, before.state, extra={"instance": instance})
            return
        now = time.monotonic()
        after, actions = step(before, event, now, self._options)
        self._statuses[instance] = after
        self._report(before, after, event, now)
        for action in actions:
            self._act(after, action)

    def _act(self, status: WorkerStatus, action: Action) -> None:
        instance = status.instance
        if isinstance(action, Spawn):
            self._spawn(instance)
        elif isinstance(action, Kill):
            self._workers[instance].kill(action.reason)
        elif isinstance(action, AnnounceRestart):
            if status.shortages:
                _log(logging.WARNING, status, "restarting", "the start is retried in %.1f s", action.delay)
            else:
                message = "restarts on the same cores in %.1f s (consecutive failure %d)"
                _log(logging.WARNING, status, "restarting", message, action.delay, action.failures)
            self._listener.restarting(instance, action.delay)
        elif isinstance(action, AnnounceFailure):
            _log(logging.ERROR, status, "failed", "failed and will not be restarted: %s", action.reason)
            self._listener.failed(instance, action.reason)

    def _spawn(self, instance: int) -> None:
        assert self._group is not None, "workers are started inside run()"
        try:
            worker = start(self._launches[instance])
        except InstanceError as error:
            self._inbox.appendleft((instance, SpawnFailed(str(error), isinstance(error, ResourceShortageError)), None))
            return
        self._workers[instance] = worker
        # First in the queue: events that arrived meanwhile refer to an instance with this process.
        self._inbox.appendleft((instance, Spawned(worker.pid), None))
        self._group.start_soon(self._watch, worker, name=f"worker of instance {instance}")

    def _report(self, before: WorkerStatus, after: WorkerStatus, event: Event, now: float) -> None:
        """Log the event and notify the listener; `_act` does the same for the actions."""
        if isinstance(event, Spawned):
            _log(logging.INFO, after, "started", "started as pid %d", event.pid)
            self._listener.started(after.instance, event.pid, self._workers[after.instance].sock)
        elif isinstance(event, SpawnFailed):
            level = logging.WARNING if after.shortages else logging.ERROR
            _log(level, after, "spawn_failed", "%s", event.reason)
        elif isinstance(event, BecameReady):
            _log(logging.INFO, after, "ready", "ready after %.1f s", now - before.since)
        elif isinstance(event, BecameUnhealthy | FailedPermanently) and before.pid is not None:
            _log(logging.ERROR, after, "killing", "killing the worker, pid %d: %s", before.pid, event.reason)
        elif isinstance(event, Exited) and before.pid is not None:
            expected = before.shutting_down and before.reason is None and before.state in ("stopping", "killing")
            level = logging.INFO if expected else logging.ERROR
            message = "worker, pid %d, exited after %.1f s in state %s: %s"
            _log(level, after, "exited", message, before.pid, now - before.since, before.state, event.reason)
            self._listener.exited(after.instance, before.pid, event.reason)


def _log(level: int, status: WorkerStatus, event: str, message: str, *values: object) -> None:
    log.log(level, message, *values, extra={"instance": status.instance, "event": event, "state": status.state})
