"""The course of ``launch run``: when each instance's program starts, when all have to end, and with which status.

Events in (what has happened), actions out (what is to be done); time is an argument. Separate from
``core.lifecycle.worker``: a worker that ends is lost, a program that ends with 0 is done. Nothing is started or
waited for in here; ``run.runner`` does that.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Literal

from launcher.core.lifecycle.worker import RestartPolicy
from launcher.errors import InstanceError, MachineError
from launcher.options.choices import OnFailure

State = Literal["planned", "running", "ending", "waiting", "done", "failed", "ended"]

UNUSABLE = MachineError.exit_code


@dataclass(frozen=True, slots=True)
class StartDue:
    """It is time for the instance's program to start."""


@dataclass(frozen=True, slots=True)
class Ended:
    """The program has ended: ``status`` as ``subprocess`` has it, negative for a signal."""

    status: int


@dataclass(frozen=True, slots=True)
class Refused:
    """The program could not be started, or must not go on where it is; another start would not help."""

    reason: str


@dataclass(frozen=True, slots=True)
class Told:
    """The program has been told to end, by a signal that came or because another one has failed."""


@dataclass(frozen=True, slots=True)
class GraceOver:
    """The program has not ended in its time, or nobody wants to wait for it any more."""


Event = StartDue | Ended | Refused | Told | GraceOver

FINAL: frozenset[State] = frozenset({"done", "failed", "ended"})

# `Ended` out of "running" leads on by the status and the policy; the table names the failing case.
TRANSITIONS: Mapping[State, Mapping[type[Event], State]] = MappingProxyType(
    {
        "planned": {StartDue: "running", Told: "ended", GraceOver: "ended"},
        "running": {Ended: "failed", Refused: "ending", Told: "ending", GraceOver: "ending"},
        "waiting": {StartDue: "running", Told: "ended", GraceOver: "ended"},
        "ending": {Ended: "ended", Refused: "ending", Told: "ending", GraceOver: "ending"},
        "done": {},
        "failed": {},
        "ended": {},
    }
)


@dataclass(frozen=True, slots=True)
class Start:
    """Start the program of the instance; ``attempt`` counts from 1."""

    instance: int
    attempt: int


@dataclass(frozen=True, slots=True)
class Signal:
    """Send the signal to the instance's program and to what it has started."""

    instance: int
    number: int


@dataclass(frozen=True, slots=True)
class Kill:
    """End the instance's program and what it has started with SIGKILL."""

    instance: int


@dataclass(frozen=True, slots=True)
class Restart:
    """Nothing to do but to say so: the program starts again in ``delay`` seconds."""

    instance: int
    delay: float
    failures: int


@dataclass(frozen=True, slots=True)
class Stop:
    """Nothing to do but to say so: the others are told to end because this instance has failed."""

    instance: int


Action = Start | Signal | Kill | Restart | Stop


@dataclass(frozen=True, slots=True)
class CoursePolicy:
    """``on_failure``: stop the others, let them continue, or restart. A program that was told to end has
    ``grace_seconds`` for it. ``restart`` has the back-off and the limit; its ``settled_seconds`` of running end a row
    of failures."""

    on_failure: OnFailure
    grace_seconds: float
    restart: RestartPolicy


@dataclass(frozen=True, slots=True)
class Progress:
    """One instance as it is now. ``status`` is that of its last end, ``deadline`` when ``Course.tick`` has to act."""

    instance: int
    state: State = "planned"
    since: float = 0.0
    starts: int = 0
    failures: int = 0
    status: int | None = None
    reason: str | None = None
    deadline: float | None = None


class Course:
    """All instances of one run. Every method that changes something returns what is to be done, in order."""

    def __init__(self, instances: Sequence[int], policy: CoursePolicy) -> None:
        self._policy = policy
        self._all = {instance: Progress(instance) for instance in instances}
        self._exit_status: int | None = None
        self._ending = False

    # -- what there is to know ------------------------------------------------------------------------------------

    def progress(self) -> tuple[Progress, ...]:
        """Every instance as it is now."""
        return tuple(self._all.values())

    @property
    def over(self) -> bool:
        """Whether every instance has come to its end."""
        return all(one.state in FINAL for one in self._all.values())

    @property
    def ending(self) -> bool:
        """Whether every program has been told to end, so that nothing starts any more."""
        return self._ending

    @property
    def exit_status(self) -> int:
        """What the launcher ends with: that of the first program that failed for good, else 0."""
        return self._exit_status or 0

    def next_deadline(self) -> float | None:
        """When `tick` has something to do; None: not before another event."""
        return min((one.deadline for one in self._all.values() if one.deadline is not None), default=None)

    # -- events ---------------------------------------------------------------------------------------------------

    def begin(self, now: float) -> list[Action]:
        """Start every program."""
        return [action for instance in self._all for action in self._start(instance, now)]

    def ended(self, instance: int, status: int, now: float) -> list[Action]:
        """The program of the instance has ended."""
        before = self._all[instance]
        state = self._next(before, Ended)
        after = replace(before, state=state, since=now, status=status, deadline=None)
        if before.reason is not None:  # refused; its status is only that of our own signal
            return self._failed(replace(after, state="failed"), UNUSABLE)
        if status == 0:
            self._all[instance] = replace(after, state="done" if before.state == "running" else "ended")
            return []
        if before.state == "ending":
            self._all[instance] = after
            self._note_failure(exit_code(status))
            return []
        return self._failed_running(before, after, now)

    def refused(self, instance: int, reason: str, now: float) -> list[Action]:
        """The running program of the instance must not go on where it is."""
        before = self._all[instance]
        if before.state != "running":
            return []
        after = replace(before, state=self._next(before, Refused), since=now, reason=reason, deadline=None)
        self._all[instance] = after
        return [Kill(instance)]

    def not_started(self, instance: int, reason: str, now: float) -> list[Action]:
        """The program of the instance could not be started; that is a failure that does not mend itself."""
        before = self._all[instance]
        return self._failed(replace(before, state="failed", since=now, reason=reason), InstanceError.exit_code)

    def signalled(self, number: int, now: float) -> list[Action]:
        """A signal to end has come: the first is passed on and bounded in time, the next one kills."""
        if self._ending:
            return self.kill_all(now)
        self._ending = True
        return [action for instance in self._all for action in self._tell(instance, number, now)]

    def kill_all(self, now: float) -> list[Action]:
        """Nobody wants to wait any more."""
        self._ending = True
        return [action for instance in self._all for action in self._give_no_grace(instance, now)]

    def tick(self, now: float) -> list[Action]:
        """What the passing of time brings."""
        return [action for one in self.progress() for action in self._overdue(one, now)]

    # -- steps ----------------------------------------------------------------------------------------------------

    def _next(self, one: Progress, event: type[Event]) -> State:
        try:
            return TRANSITIONS[one.state][event]
        except KeyError:
            raise ValueError(f"{event.__name__} cannot happen to instance {one.instance}, {one.state}") from None

    def _start(self, instance: int, now: float) -> Iterator[Action]:
        before = self._all[instance]
        state, attempt = self._next(before, StartDue), before.starts + 1
        self._all[instance] = replace(before, state=state, since=now, starts=attempt, deadline=None)
        yield Start(instance, attempt)

    def _failed_running(self, before: Progress, after: Progress, now: float) -> list[Action]:
        restart = self._policy.restart
        settled = now - before.since >= restart.settled_seconds
        failures = 1 if settled else before.failures + 1
        after = replace(after, failures=failures)
        if self._policy.on_failure == "restart" and not self._ending and failures < restart.max_failures:
            delay = restart.delay(failures)
            self._all[after.instance] = replace(after, state="waiting", deadline=now + delay)
            return [Restart(after.instance, delay, failures)]
        return self._failed(after, exit_code(after.status or 0))

    def _failed(self, after: Progress, code: int) -> list[Action]:
        self._all[after.instance] = after
        self._note_failure(code)
        if self._policy.on_failure != "stop" or self._ending or self.over:
            return []
        self._ending = True
        told = [action for other in self._all for action in self._tell(other, SIGTERM, after.since)]
        return [Stop(after.instance), *told]

    def _note_failure(self, code: int) -> None:
        if self._exit_status is None:
            self._exit_status = code

    def _tell(self, instance: int, number: int, now: float) -> Iterator[Action]:
        before = self._all[instance]
        if before.state in FINAL or before.state == "ending":
            return
        state = self._next(before, Told)
        deadline = now + self._policy.grace_seconds if state == "ending" else None
        self._all[instance] = replace(before, state=state, since=now, deadline=deadline)
        if state == "ending":
            yield Signal(instance, number)
        elif before.status:  # it waited for another start that will not come
            self._note_failure(exit_code(before.status))

    def _give_no_grace(self, instance: int, now: float) -> Iterator[Action]:
        before = self._all[instance]
        if before.state in FINAL:
            return
        state = self._next(before, GraceOver)
        self._all[instance] = replace(before, state=state, since=now, deadline=None)
        if state == "ending":
            yield Kill(instance)
        elif before.status:
            self._note_failure(exit_code(before.status))

    def _overdue(self, one: Progress, now: float) -> Iterator[Action]:
        if one.deadline is None or now < one.deadline:
            return
        yield from (
            self._start(one.instance, now) if one.state == "waiting" else self._give_no_grace(one.instance, now)
        )


# Of signal(7): the same number on all machines; core knows no signal module.
SIGTERM = 15


def exit_code(status: int) -> int:
    """The exit code that a shell gives a process that ended so: 128 + N for signal N."""
    return status if status >= 0 else 128 - status


def check(course: Course, policy: CoursePolicy) -> None:
    """Raise ``AssertionError`` where a course contradicts itself; for tests after each event."""
    for one in course.progress():
        assert one.deadline is None or one.state in ("waiting", "ending"), f"{one}: no other state waits for time"
        assert one.state != "waiting" or one.deadline is not None, f"{one}: it would wait for ever"
        assert one.failures <= policy.restart.max_failures, f"{one}: more failures than the limit"
        assert (one.state == "planned") == (one.starts == 0 and one.state not in FINAL), f"{one}: started or not"
        assert one.state != "done" or one.status == 0, f"{one}: done with another status than 0"
    if course.over and all(one.state == "done" for one in course.progress()):
        assert course.exit_status == 0, "all ended with 0"
