"""Owns all worker processes: starts them, watches them, replaces them by the rule, and ends them.

The shell around `core.lifecycle.worker`: every fact goes through `_handle`, which makes the step and carries out its
actions at once. It knows nothing of batches or sockets' contents; what a worker says reaches it through `ready`,
`unusable` and `kill`, which the composition root connects with the dispatcher.
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

from launcher.core.lifecycle.worker import (
    FINAL,
    Action,
    BecameReady,
    Condemned,
    DeclaredUnusable,
    DrainStarted,
    Event,
    Exited,
    GiveUp,
    GraceOver,
    Kill,
    Life,
    RestartPolicy,
    Retry,
    Spawn,
    Spawned,
    SpawnFailed,
    StartDue,
    State,
    StopAsked,
    accepts,
    overdue,
    step,
)
from launcher.errors import InstanceError
from launcher.host.process.spawn import Launch, Worker, start
from launcher.options import SuperviseOptions

log = logging.getLogger("launcher.supervisor")


# What others ask for may come too late, for a worker that is gone; what we see ourselves must fit the table.
ASKED = (BecameReady, Condemned, DeclaredUnusable, DrainStarted, StopAsked, GraceOver)


class Listener(Protocol):
    """Who wants to know. Called in the loop's thread, must not block; may call the supervisor back."""

    def started(self, instance: int, pid: int, sock: socket.socket) -> None:
        """A worker process exists. ``sock`` (non-blocking) is the front's end of its channel; close it when done."""

    def exited(self, instance: int, pid: int, description: str) -> None:
        """The worker process has ended and is reaped; ``description`` says how."""

    def restarting(self, instance: int, delay: float) -> None:
        """Another worker will be started in ``delay`` seconds."""

    def given_up(self, instance: int, reason: str) -> None:
        """There will be no other worker for this instance."""


class InstanceState(TypedDict):
    """One instance for ``/ready`` and ``/info``; ``for_seconds`` is the time in this state."""

    state: State
    pid: int | None
    restarts: int
    failures: int
    for_seconds: float
    reason: str | None


class Supervisor:
    """All instances' processes. `run` in one task; every other method from the same loop, at any time."""

    def __init__(self, launches: Sequence[Launch], options: SuperviseOptions, listener: Listener) -> None:
        self._launches = {launch.instance: launch for launch in launches}
        self._policy = RestartPolicy(
            start_seconds=options.start_seconds,
            max_failures=options.max_failures,
            backoff_seconds=options.backoff_seconds,
            backoff_limit_seconds=options.backoff_limit_seconds,
            settled_seconds=options.settled_seconds,
        )
        self._listener = listener
        self._lives = {launch.instance: Life(launch.instance, since=time.monotonic()) for launch in launches}
        self._workers: dict[int, Worker] = {}
        self._inbox: deque[tuple[int, Event, int | None]] = deque()
        self._handling = False
        self._changed = anyio.Event()
        self._ended = anyio.Event()
        self._ending = False
        self._group: TaskGroup | None = None

    async def run(self) -> None:
        """Start all instances and keep them alive until `stop` or `stop_now`; then nothing is left.

        However it ends, cancellation included, every worker is killed and reaped before it returns.
        """
        try:
            async with anyio.create_task_group() as group:
                self._group = group
                try:
                    for instance in self._lives:
                        if accepts(self._lives[instance].state, StartDue):  # else it was stopped before it began
                            self._post(instance, StartDue())
                        await anyio.lowlevel.checkpoint()  # a start blocks for milliseconds; others want a turn
                    await self._watch_deadlines()
                finally:
                    self.stop_now()
        finally:
            self._group = None

    def ready(self, instance: int, pid: int | None = None) -> None:
        """The worker has said that it is warm. With ``pid``, news of an earlier worker is ignored."""
        self._post(instance, BecameReady(), pid)

    def unusable(self, instance: int, reason: str, pid: int | None = None) -> None:
        """The worker has said that it can never serve: it is ended, and not replaced."""
        self._post(instance, DeclaredUnusable(reason), pid)

    def kill(self, instance: int, reason: str, pid: int | None = None) -> None:
        """End a worker that hangs or whose channel is broken; the restart rule decides what follows."""
        self._post(instance, Condemned(reason), pid)

    def begin_drain(self) -> None:
        """From now on nothing is started: a worker that is lost is not replaced any more."""
        for instance in self._lives:
            self._post(instance, DrainStarted())

    async def stop(self, grace: float) -> None:
        """End all workers; returns when nothing is left. Ready workers, which the front has told to stop, have
        ``grace`` seconds to finish; the others are killed at once."""
        self._ending = True
        for instance in self._lives:
            self._post(instance, StopAsked(grace))
        await self._ended.wait()

    def stop_now(self) -> None:
        """Kill all workers at once; `run` and `stop` return when they are reaped."""
        self._ending = True
        for instance in self._lives:
            self._post(instance, GraceOver())

    def states(self) -> dict[int, InstanceState]:
        """Every instance as it is now."""
        now = time.monotonic()
        return {
            instance: {
                "state": life.state,
                "pid": life.pid,
                "restarts": life.restarts,
                "failures": life.failures,
                "for_seconds": round(now - life.since, 3),
                "reason": life.reason,
            }
            for instance, life in self._lives.items()
        }

    async def _watch_deadlines(self) -> None:
        while not self._ended.is_set():
            self._changed = anyio.Event()
            now = time.monotonic()
            for instance in self._lives:
                if event := overdue(self._lives[instance], now):
                    self._post(instance, event)
            deadlines = [life.deadline for life in self._lives.values() if life.deadline is not None]
            with anyio.move_on_after(min(deadlines, default=float("inf")) - time.monotonic()):
                await self._changed.wait()

    async def _watch(self, worker: Worker) -> None:
        # An unawaited worker is a zombie, so not even cancellation ends this: `run` kills, then this returns.
        with anyio.CancelScope(shield=True):
            description = await worker.wait()
        del self._workers[worker.instance]
        self._post(worker.instance, Exited(description), worker.pid)

    def _post(self, instance: int, event: Event, pid: int | None = None) -> None:
        """Handle the event, after those that are being handled: listeners call back while they are told."""
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
        if self._ending and all(life.state in FINAL for life in self._lives.values()):
            self._ended.set()

    def _handle(self, instance: int, event: Event, pid: int | None) -> None:
        before = self._lives[instance]
        if pid is not None and before.pid is not None and pid != before.pid:
            log.debug("ignored %s of an earlier worker, pid %d", event, pid, extra={"instance": instance})
            return
        if isinstance(event, ASKED) and not accepts(before.state, type(event)):
            log.debug("ignored %s: it is %s", event, before.state, extra={"instance": instance})
            return
        now = time.monotonic()
        after, actions = step(before, event, now, self._policy)
        self._lives[instance] = after
        self._tell(before, after, event, now)
        for action in actions:
            self._act(after, action)

    def _act(self, life: Life, action: Action) -> None:
        instance = life.instance
        if isinstance(action, Spawn):
            self._spawn(instance)
        elif isinstance(action, Kill):
            self._workers[instance].kill(action.reason)
        elif isinstance(action, Retry):
            message = "restarts on the same cores in %.1f s (failure %d in a row)"
            _say(logging.WARNING, life, "restarting", message, action.delay, action.failures)
            self._listener.restarting(instance, action.delay)
        elif isinstance(action, GiveUp):
            _say(logging.ERROR, life, "given_up", "is given up and will not be restarted: %s", action.reason)
            self._listener.given_up(instance, action.reason)

    def _spawn(self, instance: int) -> None:
        assert self._group is not None, "workers are started inside run()"
        try:
            worker = start(self._launches[instance])
        except InstanceError as error:
            self._inbox.appendleft((instance, SpawnFailed(str(error)), None))
            return
        self._workers[instance] = worker
        # First in the queue: whatever was asked meanwhile was asked of an instance that has this process.
        self._inbox.appendleft((instance, Spawned(worker.pid), None))
        self._group.start_soon(self._watch, worker, name=f"worker of instance {instance}")

    def _tell(self, before: Life, after: Life, event: Event, now: float) -> None:
        """What people and the listener hear of an event; what follows from it is said by `_act`."""
        if isinstance(event, Spawned):
            _say(logging.INFO, after, "started", "started as pid %d", event.pid)
            self._listener.started(after.instance, event.pid, self._workers[after.instance].sock)
        elif isinstance(event, SpawnFailed):
            _say(logging.ERROR, after, "lost", "%s", event.reason)
        elif isinstance(event, BecameReady):
            _say(logging.INFO, after, "ready", "ready after %.1f s", now - before.since)
        elif isinstance(event, Condemned | DeclaredUnusable) and before.pid is not None:
            _say(logging.ERROR, after, "condemned", "kills its worker, pid %d: %s", before.pid, event.reason)
        elif isinstance(event, Exited) and before.pid is not None:
            asked = before.state in ("draining", "stopping")
            level, word = (logging.INFO, "ended") if asked else (logging.ERROR, "lost")
            message = "%s its worker, pid %d, %s for %.1f s: %s"
            _say(level, after, "exited", message, word, before.pid, before.state, now - before.since, event.reason)
            self._listener.exited(after.instance, before.pid, event.reason)


def _say(level: int, life: Life, event: str, message: str, *values: object) -> None:
    log.log(level, message, *values, extra={"instance": life.instance, "event": event, "state": life.state})
