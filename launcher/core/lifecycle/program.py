"""The lifecycle of the copies of ``launch run``: when each one starts and stops, and the exit status of the whole run.

Separate from ``core.lifecycle.worker``: a worker that exits has failed, a program that exits with 0 has succeeded, and
one program's failure can stop the others. `step` is the only function that changes the state of one program; `Job` has
all programs of a run. Nothing is started or waited for here; ``run.runner`` does that.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Literal

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
from launcher.errors import InstanceError, MachineError

State = Literal["planned", "starting", "running", "stopping", "killing", "backoff", "succeeded", "stopped", "failed"]
Guard = Literal["exit status 0", "may restart", "must not restart", "shutting down"]

# signal(7): the same number on all architectures; core may not import the signal module.
SIGTERM = 15


@dataclass(frozen=True, slots=True)
class Exited:
    """The program has exited.

    ``exit_status`` as ``subprocess`` gives it, negative for a signal.
    """

    exit_status: int


@dataclass(frozen=True, slots=True)
class StopRequested:
    """The program must stop, because of a signal to the launcher or the failure of another program.

    It is sent ``signal``, and SIGKILL after ``grace`` seconds.
    """

    signal: int
    grace: float


Event = (
    StartRequested
    | BackoffElapsed
    | Spawned
    | SpawnFailed
    | FailedPermanently
    | Exited
    | StopRequested
    | GracePeriodElapsed
    | KillRequested
)

STATES: Mapping[State, str] = MappingProxyType(
    {
        "planned": "The instance is in the plan; its program has not been started yet.",
        "starting": "The operating system is starting the process.",
        "running": "The program runs.",
        "stopping": "The program has been sent the signal to stop and has its grace period to exit.",
        "killing": "The program has been sent SIGKILL; its exit has not been seen yet.",
        "backoff": "The program has failed; it starts again on the same cores when the back-off is over.",
        "succeeded": "The program has exited with status 0 and is not started again.",
        "stopped": "The program has been stopped, or was never started because the run ended first.",
        "failed": "The program has failed and is not restarted.",
    }
)

GUARDS: Mapping[str, str] = MappingProxyType(
    {
        "exit status 0": "The program has exited with status 0.",
        "may restart": "The policy restarts failed programs, and the limit of consecutive failures is not reached.",
        "must not restart": "The policy does not restart programs, the limit is reached, or the failure is permanent.",
        "shutting down": "The program has already been told to stop.",
    }
)

TRANSITIONS: TransitionTable[State] = TransitionTable(
    "a program",
    STATES,
    GUARDS,
    MappingProxyType(
        {
            "planned": {StartRequested: "starting", StopRequested: "stopped", KillRequested: "stopped"},
            "starting": {
                Spawned: "running",
                SpawnFailed: {"may restart": "backoff", "must not restart": "failed"},
            },
            "running": {
                Exited: {"exit status 0": "succeeded", "may restart": "backoff", "must not restart": "failed"},
                FailedPermanently: "killing",
                StopRequested: "stopping",
                KillRequested: "killing",
            },
            "stopping": {Exited: "stopped", GracePeriodElapsed: "killing", KillRequested: "killing"},
            "killing": {Exited: {"shutting down": "stopped", "must not restart": "failed"}},
            "backoff": {BackoffElapsed: "starting", StopRequested: "stopped", KillRequested: "stopped"},
            "succeeded": {},
            "stopped": {},
            "failed": {},
        }
    ),
)

WITH_PROCESS: frozenset[State] = frozenset({"running", "stopping", "killing"})
FINAL = TRANSITIONS.final


@dataclass(frozen=True, slots=True)
class ProgramStatus:
    """One instance and its program as they are now. Times are those of the caller's clock, in seconds.

    ``pid`` is set while the process exists. ``failures`` counts consecutive failures, ``starts`` all starts so far.
    ``exit_status`` is that of its last exit, ``deadline`` is when `timeout_event` has an event. ``reason`` is why it
    failed, if not by its exit status. ``shortages`` counts consecutive starts for which the system lacked a resource;
    they are no failures. ``permanent``: a restart would not help. ``shutting_down``: it was told to stop.
    """

    instance: int
    state: State = TRANSITIONS.initial
    since: float = 0.0
    pid: int | None = None
    starts: int = 0
    failures: int = 0
    shortages: int = 0
    exit_status: int | None = None
    deadline: float | None = None
    reason: str | None = None
    permanent: bool = False
    shutting_down: bool = False

    @property
    def exit_code(self) -> int:
        """What this program contributes to the exit status of the launcher, once its state is final."""
        if self.permanent:
            return MachineError.exit_code
        if self.exit_status is None:
            return InstanceError.exit_code if self.state == "failed" else 0
        return exit_code(self.exit_status)


@dataclass(frozen=True, slots=True)
class Policy:
    """What follows when a program fails: the others are stopped (``stop_others``), it is restarted (``restart`` is not
    None), or neither. ``grace_seconds`` is the time between the signal to stop and SIGKILL."""

    stop_others: bool
    restart: RestartPolicy | None
    grace_seconds: float


@dataclass(frozen=True, slots=True)
class Spawn:
    """Start the program of the instance, then report `Job.spawned` or `Job.spawn_failed`."""

    instance: int


@dataclass(frozen=True, slots=True)
class Signal:
    """Send the signal to the instance's program and to what it has started."""

    instance: int
    number: int


@dataclass(frozen=True, slots=True)
class Kill:
    """Send SIGKILL to the instance's program and to what it has started."""

    instance: int


@dataclass(frozen=True, slots=True)
class AnnounceRestart:
    """Tell the operator that the program starts again in ``delay`` seconds."""

    instance: int
    delay: float
    failures: int


@dataclass(frozen=True, slots=True)
class AnnounceStop:
    """Tell the operator that the other programs are stopped because this one has failed."""

    instance: int


Action = Spawn | Signal | Kill | AnnounceRestart | AnnounceStop
Step = tuple[ProgramStatus, tuple[Action, ...]]


def step(before: ProgramStatus, event: Event, now: float, policy: Policy) -> Step:
    """The status after ``event``, and the actions to carry out. Raises ``IllegalTransition`` and changes nothing."""
    recorded = _record(before, event, now, policy)
    state = TRANSITIONS.next_state(before.state, type(event), _guard(recorded, policy))
    after = replace(recorded, state=state, since=now)
    after = replace(after, deadline=_deadline(after, event, policy))
    return after, _actions(after, event, policy)


def _record(before: ProgramStatus, event: Event, now: float, policy: Policy) -> ProgramStatus:
    """``before`` with the facts of the event added; the state is still the old one."""
    if isinstance(event, StartRequested | BackoffElapsed):
        return replace(before, starts=before.starts + 1)
    if isinstance(event, Spawned):
        return replace(before, pid=event.pid, shortages=0)
    if isinstance(event, SpawnFailed):
        shortages = before.shortages + 1 if event.transient and policy.restart is not None else 0
        return replace(before, reason=event.reason, exit_status=None, shortages=shortages)
    if isinstance(event, FailedPermanently):
        return replace(before, reason=event.reason, permanent=True)
    if isinstance(event, Exited):
        gone = replace(before, pid=None, exit_status=event.exit_status)
        if before.state != "running" or event.exit_status == 0:
            return gone
        if policy.restart is None:
            return replace(gone, failures=before.failures + 1)
        return replace(gone, failures=count_failure(before.failures, now - before.since, policy.restart))
    if isinstance(event, StopRequested | KillRequested):
        return replace(before, shutting_down=True)
    return before


def _guard(status: ProgramStatus, policy: Policy) -> Guard:
    if status.permanent:
        return "must not restart"
    if status.state == "starting":  # no process could be created
        return "may restart" if status.shortages else "must not restart"
    if status.shutting_down:
        return "shutting down"
    if status.exit_status == 0:
        return "exit status 0"
    if policy.restart is None or status.failures >= policy.restart.max_failures:
        return "must not restart"
    return "may restart"


def _deadline(after: ProgramStatus, event: Event, policy: Policy) -> float | None:
    if after.state == "backoff" and policy.restart is not None:
        return after.since + _restart_delay(after, policy.restart)
    return after.since + event.grace if isinstance(event, StopRequested) and after.state == "stopping" else None


def _restart_delay(status: ProgramStatus, policy: RestartPolicy) -> float:
    if status.shortages:
        return shortage_delay(status.shortages, policy)
    return restart_delay(status.failures, policy)


def _actions(after: ProgramStatus, event: Event, policy: Policy) -> tuple[Action, ...]:
    """The actions to carry out in the new state."""
    if after.state == "starting":
        return (Spawn(after.instance),)
    if isinstance(event, StopRequested) and after.state == "stopping":
        return (Signal(after.instance, event.signal),)
    if after.state == "killing":
        return (Kill(after.instance),)
    if after.state == "backoff" and policy.restart is not None:
        return (AnnounceRestart(after.instance, _restart_delay(after, policy.restart), after.failures),)
    return ()


def timeout_event(status: ProgramStatus, now: float) -> Event | None:
    """The event that occurs when the deadline passes; None before that."""
    if status.deadline is None or now < status.deadline:
        return None
    return BackoffElapsed() if status.state == "backoff" else GracePeriodElapsed()


def exit_code(exit_status: int) -> int:
    """The exit code that a shell reports for a process with this exit status: 128 + N for signal N."""
    return exit_status if exit_status >= 0 else 128 - exit_status


class Job:
    """All programs of one run. Every method that changes the state returns the actions to carry out, in order."""

    def __init__(self, instances: Sequence[int], policy: Policy) -> None:
        self._policy = policy
        self._programs = {instance: ProgramStatus(instance) for instance in instances}
        self._exit_status = 0
        self._stopping = False

    # -- queries --------------------------------------------------------------------------------------------------

    def programs(self) -> tuple[ProgramStatus, ...]:
        """Every program as it is now."""
        return tuple(self._programs.values())

    @property
    def finished(self) -> bool:
        """Whether every program is in a final state."""
        return all(program.state in FINAL for program in self._programs.values())

    @property
    def stopping(self) -> bool:
        """Whether every program has been told to stop, so that no more are started."""
        return self._stopping

    @property
    def exit_status(self) -> int:
        """The exit status of the launcher: the exit code of the first program that failed permanently, else 0."""
        return self._exit_status

    def next_deadline(self) -> float | None:
        """When `tick` must be called next; None: not before the next event."""
        return min((one.deadline for one in self._programs.values() if one.deadline is not None), default=None)

    # -- events ---------------------------------------------------------------------------------------------------

    def start(self, instance: int, now: float) -> list[Action]:
        """Start the program for the first time; does nothing if all programs were told to stop before its turn."""
        return [] if self._stopping else self._handle([instance], StartRequested(), now)

    def spawned(self, instance: int, pid: int, now: float) -> list[Action]:
        """The process exists."""
        return self._handle([instance], Spawned(pid), now)

    def spawn_failed(self, instance: int, reason: str, now: float, *, transient: bool = False) -> list[Action]:
        """The process could not be started. Only if that is ``transient``, a restart may help."""
        return self._handle([instance], SpawnFailed(reason, transient), now)

    def exited(self, instance: int, exit_status: int, now: float) -> list[Action]:
        """The program has exited."""
        return self._handle([instance], Exited(exit_status), now)

    def fail(self, instance: int, reason: str, now: float) -> list[Action]:
        """Kill a program that must not continue here; does nothing if it is not running or is already stopping."""
        if not TRANSITIONS.accepts(self._programs[instance].state, FailedPermanently):
            return []
        return self._handle([instance], FailedPermanently(reason), now)

    def stop(self, signal: int, now: float) -> list[Action]:
        """A signal to stop has arrived: the first one is passed on, with a grace period; the next one kills."""
        if self._stopping:
            return self.kill(now)
        actions = self._handle(
            self._except(*FINAL, "stopping", "killing"), StopRequested(signal, self._policy.grace_seconds), now
        )
        self._stopping = True
        return actions

    def kill(self, now: float) -> list[Action]:
        """Kill every program without a grace period."""
        actions = self._handle(self._except(*FINAL, "killing"), KillRequested(), now)
        self._stopping = True
        return actions

    def tick(self, now: float) -> list[Action]:
        """Handle the deadlines that have passed."""
        due = [(one.instance, event) for one in self.programs() if (event := timeout_event(one, now))]
        return [action for instance, event in due for action in self._handle([instance], event, now)]

    # -- steps ----------------------------------------------------------------------------------------------------

    def _except(self, *states: State) -> list[int]:
        return [one.instance for one in self._programs.values() if one.state not in states]

    def _handle(self, instances: Sequence[int], event: Event, now: float) -> list[Action]:
        """The same event for these instances; if it is illegal for one of them, nothing is changed."""
        steps = [step(self._programs[instance], event, now, self._policy) for instance in instances]
        actions: list[Action] = []
        for after, todo in steps:
            self._programs[after.instance] = after
            actions += todo
            if after.state in FINAL:
                self._exit_status = self._exit_status or after.exit_code
        failed = [after for after, _ in steps if after.state == "failed"]
        if failed and self._policy.stop_others and not self._stopping and not self.finished:
            actions += [AnnounceStop(failed[0].instance), *self.stop(SIGTERM, now)]
        return actions


def check(job: Job, policy: Policy) -> None:
    """Raise ``AssertionError`` if a job is inconsistent; for tests, after each event."""
    for one in job.programs():
        _check_program(one, policy)
        if job.stopping:
            assert one.state not in ("planned", "starting", "running", "backoff"), f"{one}: it was not told to stop"
    codes = [one.exit_code for one in job.programs() if one.state in FINAL]
    assert job.exit_status in ({0} if not any(codes) else set(codes) - {0}), "the exit status must be that of a failure"


def _check_program(one: ProgramStatus, policy: Policy) -> None:
    assert (one.pid is not None) == (one.state in WITH_PROCESS), f"{one}: process and state disagree"
    timed = one.state in ("backoff", "stopping")
    assert (one.deadline is not None) == timed, f"{one}: deadlines belong to states that wait for something"
    assert one.failures <= one.starts, f"{one}: more failures than starts"
    limit = 1 if policy.restart is None else policy.restart.max_failures
    assert one.failures <= limit, f"{one}: more failures than the limit"
    assert one.starts > 0 or one.state in ("planned", "stopped"), f"{one}: it was never started"
    assert one.state != "succeeded" or one.exit_status == 0, f"{one}: succeeded with a nonzero exit status"
    assert one.state != "backoff" or policy.restart is not None, f"{one}: the policy does not restart"
    assert not one.permanent or one.state in ("killing", "failed"), f"{one}: a permanent failure is not retried"
    assert one.state != "stopped" or one.shutting_down, f"{one}: stopped without a request to stop"
