"""The lifecycle of a served instance: its states as a table, and when its worker is restarted.

`step` is the only function that changes a state: (status, event, now) gives the next status and the actions. The
supervisor reports what it observes and carries out the actions; processes, clocks and logs do not belong here.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Literal, Protocol

from launcher.core.lifecycle.process_events import (
    BackoffElapsed,
    FailedPermanently,
    GracePeriodElapsed,
    KillRequested,
    Spawned,
    SpawnFailed,
    StartRequested,
)
from launcher.core.lifecycle.restart import RestartPolicy, count_failure, restart_delay, shortage_delay
from launcher.core.lifecycle.transitions import TransitionTable

State = Literal["planned", "starting", "loading", "ready", "stopping", "killing", "backoff", "stopped", "failed"]
Guard = Literal["may restart", "must not restart", "shutting down"]


@dataclass(frozen=True, slots=True)
class BecameReady:
    """The worker has loaded its model and warmed up."""


@dataclass(frozen=True, slots=True)
class BecameUnhealthy:
    """The worker must be replaced: it hangs, its channel is broken, or it was not ready in time."""

    reason: str


@dataclass(frozen=True, slots=True)
class Exited:
    """The worker process has exited.

    ``reason`` says how.
    """

    reason: str


@dataclass(frozen=True, slots=True)
class DrainStarted:
    """The server is draining: from now on nothing is started or restarted."""


@dataclass(frozen=True, slots=True)
class StopRequested:
    """The worker must stop. A ready worker has a grace period; any other is killed.

    ``grace`` is in seconds. The front tells a ready worker through its channel.
    """

    grace: float


Event = (
    StartRequested
    | BackoffElapsed
    | Spawned
    | SpawnFailed
    | BecameReady
    | BecameUnhealthy
    | FailedPermanently
    | Exited
    | DrainStarted
    | StopRequested
    | GracePeriodElapsed
    | KillRequested
)

STATES: Mapping[State, str] = MappingProxyType(
    {
        "planned": "The instance is in the plan; no worker has been started yet.",
        "starting": "The operating system is starting the worker process.",
        "loading": "The worker process exists; it is loading the model and warming up.",
        "ready": "The worker computes batches.",
        "stopping": "The worker has been told to stop and finishes its batch within the grace period.",
        "killing": "The worker has been sent SIGKILL; its exit has not been seen yet.",
        "backoff": "The worker has failed; the next one starts on the same cores when the back-off is over.",
        "stopped": "The server is shutting down, and this instance no longer has a process.",
        "failed": "The worker has failed and is not restarted: too many consecutive failures, or a permanent one.",
    }
)

GUARDS: Mapping[str, str] = MappingProxyType(
    {
        "may restart": "The worker is restarted after a delay.",
        "must not restart": "The failure is permanent, or too many consecutive workers never became ready.",
        "shutting down": "The server is draining or stopping.",
    }
)

TRANSITIONS: TransitionTable[State] = TransitionTable(
    "an instance",
    STATES,
    GUARDS,
    MappingProxyType(
        {
            "planned": {
                StartRequested: "starting",
                DrainStarted: "stopped",
                StopRequested: "stopped",
                KillRequested: "stopped",
            },
            "starting": {
                Spawned: "loading",
                SpawnFailed: {"may restart": "backoff", "must not restart": "failed"},
            },
            "loading": {
                BecameReady: "ready",
                BecameUnhealthy: "killing",
                FailedPermanently: "killing",
                Exited: {"may restart": "backoff", "must not restart": "failed", "shutting down": "stopped"},
                DrainStarted: "loading",
                StopRequested: "killing",
                KillRequested: "killing",
            },
            "ready": {
                BecameUnhealthy: "killing",
                FailedPermanently: "killing",
                Exited: {"may restart": "backoff", "must not restart": "failed", "shutting down": "stopped"},
                DrainStarted: "ready",
                StopRequested: "stopping",
                KillRequested: "killing",
            },
            "stopping": {
                BecameUnhealthy: "killing",
                Exited: "stopped",
                GracePeriodElapsed: "killing",
                KillRequested: "killing",
            },
            "killing": {
                Exited: {"may restart": "backoff", "must not restart": "failed", "shutting down": "stopped"},
                DrainStarted: "killing",
                StopRequested: "killing",
                KillRequested: "killing",
            },
            "backoff": {
                BackoffElapsed: "starting",
                FailedPermanently: "failed",
                DrainStarted: "stopped",
                StopRequested: "stopped",
                KillRequested: "stopped",
            },
            "stopped": {},
            "failed": {},
        }
    ),
)

WITH_PROCESS: frozenset[State] = frozenset({"loading", "ready", "stopping", "killing"})
FINAL = TRANSITIONS.final


class WorkerPolicy(RestartPolicy, Protocol):
    """The part of ``options.SuperviseOptions`` that concerns workers."""

    @property
    def start_seconds(self) -> float:
        """The time within which a worker must become ready."""


@dataclass(frozen=True, slots=True)
class WorkerStatus:
    """One instance and its worker as they are now. Times are those of the caller's clock, in seconds.

    ``pid`` is set while a worker process exists. ``failures`` counts consecutive failures, ``failed_starts``
    consecutive workers that never became ready, ``starts`` all workers so far. ``deadline`` is when `timeout_event` has
    an event; ``reason`` is why the last worker failed. ``shortages`` counts consecutive attempts to start a worker for
    which the system lacked a resource; they are no failures. ``permanent``: a restart would not help.
    ``shutting_down``: nothing is restarted.
    """

    instance: int
    state: State = TRANSITIONS.initial
    since: float = 0.0
    pid: int | None = None
    starts: int = 0
    failures: int = 0
    failed_starts: int = 0
    shortages: int = 0
    deadline: float | None = None
    reason: str | None = None
    permanent: bool = False
    shutting_down: bool = False

    @property
    def restarts(self) -> int:
        """The number of workers started after the first."""
        return max(0, self.starts - 1)


@dataclass(frozen=True, slots=True)
class Spawn:
    """Start the worker process, then report ``Spawned`` or ``SpawnFailed``."""


@dataclass(frozen=True, slots=True)
class Kill:
    """Send SIGKILL to the worker process; its ``Exited`` follows."""

    reason: str


@dataclass(frozen=True, slots=True)
class AnnounceRestart:
    """Tell the operator and the listener that the next worker starts in ``delay`` seconds."""

    delay: float
    failures: int


@dataclass(frozen=True, slots=True)
class AnnounceFailure:
    """Tell the operator and the listener that no other worker will be started."""

    reason: str


Action = Spawn | Kill | AnnounceRestart | AnnounceFailure
Step = tuple[WorkerStatus, tuple[Action, ...]]


def step(before: WorkerStatus, event: Event, now: float, policy: WorkerPolicy) -> Step:
    """The status after ``event``, and the actions to carry out. Raises ``IllegalTransition`` and changes nothing."""
    recorded = _record(before, event, now, policy)
    state = TRANSITIONS.next_state(before.state, type(event), _guard(recorded, policy))
    if state == before.state:
        return recorded, ()
    after = replace(recorded, state=state, since=now)
    after = replace(after, deadline=_deadline(after, event, policy))
    return after, _actions(after, event, policy)


def _record(before: WorkerStatus, event: Event, now: float, policy: WorkerPolicy) -> WorkerStatus:
    """``before`` with the facts of the event added; the state is still the old one."""
    if isinstance(event, StartRequested | BackoffElapsed):
        return replace(before, starts=before.starts + 1, reason=None)
    if isinstance(event, Spawned):
        return replace(before, pid=event.pid, shortages=0)
    # Where nothing is restarted (a maximum of one failure), the first shortage is final, too.
    if isinstance(event, SpawnFailed) and event.transient and policy.max_failures > 1:
        return replace(before, reason=event.reason, shortages=before.shortages + 1)
    if isinstance(event, SpawnFailed | BecameUnhealthy):
        return _count(replace(before, reason=event.reason), now, policy)
    if isinstance(event, FailedPermanently):
        failed = replace(before, reason=event.reason, permanent=True)
        # In back-off, the exit was counted before its reason arrived.
        return failed if before.state == "backoff" else _count(failed, now, policy)
    if isinstance(event, Exited):
        # A worker that had to be killed was counted then, with a reason that says more than SIGKILL does.
        gone = replace(before, pid=None, reason=before.reason or event.reason)
        return gone if before.state in ("stopping", "killing") else _count(gone, now, policy)
    if isinstance(event, DrainStarted | StopRequested | KillRequested):
        return replace(before, shutting_down=True)
    return before


def _count(status: WorkerStatus, now: float, policy: WorkerPolicy) -> WorkerStatus:
    # A worker that has served may have failed because of a request; only one that never becomes ready is hopeless.
    served = status.state == "ready"
    failures = count_failure(status.failures, now - status.since if served else None, policy)
    return replace(status, failures=failures, failed_starts=0 if served else status.failed_starts + 1)


def _guard(status: WorkerStatus, policy: WorkerPolicy) -> Guard:
    if status.shutting_down:
        return "shutting down"
    exhausted = status.permanent or status.failed_starts >= policy.max_failures
    return "must not restart" if exhausted else "may restart"


def _deadline(after: WorkerStatus, event: Event, policy: WorkerPolicy) -> float | None:
    if after.state == "starting":
        return after.since + policy.start_seconds
    if after.state == "loading":
        return after.deadline  # starting and loading share one time limit
    if after.state == "backoff":
        return after.since + _restart_delay(after, policy)
    return after.since + event.grace if after.state == "stopping" and isinstance(event, StopRequested) else None


def _restart_delay(status: WorkerStatus, policy: WorkerPolicy) -> float:
    if status.shortages:
        return shortage_delay(status.shortages, policy)
    return restart_delay(status.failures, policy)


def _actions(after: WorkerStatus, event: Event, policy: WorkerPolicy) -> tuple[Action, ...]:
    """The actions to carry out in the new state."""
    if after.state == "starting":
        return (Spawn(),)
    if after.state == "killing":
        return (Kill(_reason_to_kill(event)),)
    if after.state == "backoff":
        return (AnnounceRestart(_restart_delay(after, policy), after.failures),)
    return (AnnounceFailure(_reason_of_failure(after)),) if after.state == "failed" else ()


def _reason_to_kill(event: Event) -> str:
    if isinstance(event, BecameUnhealthy | FailedPermanently):
        return event.reason
    if isinstance(event, GracePeriodElapsed):
        return "did not stop within the grace period"
    return "stopped before it was ready" if isinstance(event, StopRequested) else "immediate shutdown was requested"


def _reason_of_failure(status: WorkerStatus) -> str:
    reason = status.reason or "unknown reason"
    if status.permanent or status.failed_starts == 1:
        return reason
    return f"{status.failed_starts} consecutive failures, the last: {reason}"


def timeout_event(status: WorkerStatus, now: float) -> Event | None:
    """The event that occurs when the deadline passes; None before that."""
    if status.deadline is None or now < status.deadline:
        return None
    if status.state == "backoff":
        return BackoffElapsed()
    if status.state == "stopping":
        return GracePeriodElapsed()
    return BecameUnhealthy(f"not ready after {now - status.since:.1f} s")


def check(status: WorkerStatus, policy: WorkerPolicy) -> None:
    """Raise ``AssertionError`` if a status is inconsistent; for tests, after each step."""
    assert (status.pid is not None) == (status.state in WITH_PROCESS), f"{status}: process and state disagree"
    timed = status.state in ("starting", "loading", "backoff", "stopping")
    assert (status.deadline is not None) == timed, f"{status}: deadlines belong to states that wait for something"
    assert 0 <= status.failed_starts <= policy.max_failures, f"{status}: more failed starts than the limit"
    assert status.failed_starts <= status.failures, f"{status}: more failed starts than failures"
    assert status.failures <= status.starts, f"{status}: more failures than workers"
    if status.permanent:
        assert status.state in ("killing", "failed", "stopped"), f"{status}: a permanent failure is not retried"
    if status.state == "failed":
        assert status.permanent or status.failed_starts == policy.max_failures, f"{status}: failed too early"
        assert not status.shutting_down, f"{status}: failed during a shutdown"
    if status.state in ("stopping", "stopped"):
        assert status.shutting_down, f"{status}: stopping without a request to stop"
    if status.shutting_down:
        assert status.state not in ("planned", "starting", "backoff"), f"{status}: nothing starts during a shutdown"
