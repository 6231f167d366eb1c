"""The life of an instance: its states as a table, and the rule by which a lost worker is replaced.

`step` is the one door: (life, event, now) gives the next life and what is to be done. The supervisor feeds what
it sees and carries out the actions; processes, clocks and logs must not enter here. `mermaid` draws the table.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Literal

from launcher.errors import LauncherError

State = Literal[
    "planned",
    "starting",
    "loading",
    "ready",
    "ending",
    "lost",
    "backoff",
    "draining",
    "stopping",
    "stopped",
    "given_up",
]


class IllegalTransition(LauncherError):
    """This event cannot happen in this state; the state is unchanged."""


@dataclass(frozen=True, slots=True)
class StartDue:
    """It is time to start a worker: for the first time, or because the back-off is over."""


@dataclass(frozen=True, slots=True)
class Spawned:
    """The worker's process exists."""

    pid: int


@dataclass(frozen=True, slots=True)
class SpawnFailed:
    """The operating system refused to start the process."""

    reason: str


@dataclass(frozen=True, slots=True)
class BecameReady:
    """The worker has said that it is warm."""


@dataclass(frozen=True, slots=True)
class Condemned:
    """The worker must go: it hangs, its channel broke, or it was too slow to load."""

    reason: str


@dataclass(frozen=True, slots=True)
class DeclaredUnusable:
    """The worker has said, or a look at it has shown, that no worker here can serve as it should.

    A worker that says so ends by itself, so this may be heard after its exit.
    """

    reason: str


@dataclass(frozen=True, slots=True)
class Exited:
    """The worker's process has ended; ``reason`` says how."""

    reason: str


@dataclass(frozen=True, slots=True)
class RetryGranted:
    """The restart rule allows another worker."""


@dataclass(frozen=True, slots=True)
class RetryRefused:
    """The restart rule allows no other worker."""


@dataclass(frozen=True, slots=True)
class DrainStarted:
    """The program is about to end: from now on nothing is started."""


@dataclass(frozen=True, slots=True)
class StopAsked:
    """A warm worker has been told to finish and has ``grace`` seconds for it; any other goes at once."""

    grace: float


@dataclass(frozen=True, slots=True)
class GraceOver:
    """The worker did not finish in the time it was given, or nobody wants to wait for it any more."""


Event = (
    StartDue
    | Spawned
    | SpawnFailed
    | BecameReady
    | Condemned
    | DeclaredUnusable
    | Exited
    | RetryGranted
    | RetryRefused
    | DrainStarted
    | StopAsked
    | GraceOver
)

TRANSITIONS: Mapping[State, Mapping[type[Event], State]] = MappingProxyType(
    {
        "planned": {StartDue: "starting", DrainStarted: "stopped", StopAsked: "stopped", GraceOver: "stopped"},
        "starting": {Spawned: "loading", SpawnFailed: "lost"},
        "loading": {
            BecameReady: "ready",
            Condemned: "ending",
            DeclaredUnusable: "ending",
            Exited: "lost",
            DrainStarted: "loading",
            StopAsked: "stopping",
            GraceOver: "stopping",
        },
        "ready": {
            Condemned: "ending",
            DeclaredUnusable: "ending",
            Exited: "lost",
            DrainStarted: "ready",
            StopAsked: "draining",
            GraceOver: "stopping",
        },
        "ending": {Exited: "lost", DrainStarted: "ending", StopAsked: "stopping", GraceOver: "stopping"},
        "lost": {RetryGranted: "backoff", RetryRefused: "given_up", DrainStarted: "stopped"},
        "backoff": {
            StartDue: "starting",
            DeclaredUnusable: "given_up",
            DrainStarted: "stopped",
            StopAsked: "stopped",
            GraceOver: "stopped",
        },
        "draining": {Condemned: "stopping", Exited: "stopped", GraceOver: "stopping"},
        "stopping": {Exited: "stopped"},
        "stopped": {},
        "given_up": {},
    }
)

WITH_PROCESS: frozenset[State] = frozenset({"loading", "ready", "ending", "draining", "stopping"})
FINAL: frozenset[State] = frozenset({"stopped", "given_up"})


def accepts(state: State, event: type[Event]) -> bool:
    """Whether this event is legal in this state."""
    return event in TRANSITIONS[state]


def transition(state: State, event: type[Event]) -> State:
    """The state that follows. Raises ``IllegalTransition`` where the table has none."""
    try:
        return TRANSITIONS[state][event]
    except KeyError:
        legal = ", ".join(sorted(kind.__name__ for kind in TRANSITIONS[state])) or "nothing"
        raise IllegalTransition(
            f"{event.__name__} cannot happen to an instance that is {state}; possible there: {legal}"
        ) from None


@dataclass(frozen=True, slots=True)
class RestartPolicy:
    """When a lost worker is replaced; all times in seconds.

    ``max_failures`` workers in a row that never got ready, and the instance is given up. The wait before the next
    worker starts at ``backoff_seconds``, doubles with each failure in a row and ends at ``backoff_limit_seconds``. A
    worker that was ready for ``settled_seconds`` proves that starting works: what came before it does not count.
    """

    start_seconds: float = 600.0
    max_failures: int = 5
    backoff_seconds: float = 0.5
    backoff_limit_seconds: float = 30.0
    settled_seconds: float = 60.0

    def delay(self, failures: int) -> float:
        """Seconds to wait after that many failures in a row (1 = the first)."""
        # The exponent is bounded because a float overflows at 2**1024.
        return min(self.backoff_limit_seconds, self.backoff_seconds * 2.0 ** min(failures - 1, 64))


@dataclass(frozen=True, slots=True)
class Life:
    """One instance as it is now. Times are those of the caller's clock, in seconds.

    ``pid`` is set while a worker process exists; ``failures`` counts losses in a row, ``failed_starts``
    those in a row that were never ready, ``starts`` all workers so far.
    ``deadline`` is when `overdue` becomes true; ``reason`` is why the last worker went, or has to go.
    """

    instance: int
    state: State = "planned"
    since: float = 0.0
    pid: int | None = None
    starts: int = 0
    failures: int = 0
    failed_starts: int = 0
    deadline: float | None = None
    reason: str | None = None
    permanent: bool = False
    draining: bool = False

    @property
    def restarts(self) -> int:
        """How many workers were started after the first."""
        return max(0, self.starts - 1)


@dataclass(frozen=True, slots=True)
class Spawn:
    """Start the worker's process, then report ``Spawned`` or ``SpawnFailed``."""


@dataclass(frozen=True, slots=True)
class Kill:
    """End the worker's process with SIGKILL; its ``Exited`` follows."""

    reason: str


@dataclass(frozen=True, slots=True)
class Retry:
    """Nothing to do but to say so: the next worker comes in ``delay`` seconds."""

    delay: float
    failures: int


@dataclass(frozen=True, slots=True)
class GiveUp:
    """Nothing to do but to say so: there will be no other worker."""

    reason: str


Action = Spawn | Kill | Retry | GiveUp
Step = tuple[Life, tuple[Action, ...]]


def step(life: Life, event: Event, now: float, policy: RestartPolicy) -> Step:
    """The life after ``event`` and what is to be done. Raises ``IllegalTransition`` and changes nothing."""
    state = transition(life.state, type(event))
    since = life.since if state == life.state else now
    moved = replace(life, state=state, since=since, draining=life.draining or _ends_restarts(event))
    if isinstance(event, StartDue):
        started = replace(moved, starts=life.starts + 1, deadline=now + policy.start_seconds, reason=None)
        return started, (Spawn(),)
    if isinstance(event, Spawned):
        return replace(moved, pid=event.pid), ()
    if isinstance(event, BecameReady):
        return replace(moved, deadline=None), ()
    if isinstance(event, Condemned | DeclaredUnusable):
        return _condemned(moved, life, event, now, policy)
    if isinstance(event, SpawnFailed):
        return _after_loss(_counted(replace(moved, reason=event.reason), life, now, policy), now, policy)
    if isinstance(event, Exited):
        return _exited(moved, life, event, now, policy)
    return _stop(moved, event, now)


def _ends_restarts(event: Event) -> bool:
    return isinstance(event, DrainStarted | StopAsked | GraceOver)


def _condemned(
    moved: Life, before: Life, event: Condemned | DeclaredUnusable, now: float, policy: RestartPolicy
) -> Step:
    permanent = isinstance(event, DeclaredUnusable)
    condemned = replace(moved, deadline=None, reason=event.reason, permanent=permanent)
    if condemned.state == "given_up":  # its process has ended, and was counted, before we heard why
        return condemned, (GiveUp(event.reason),)
    return _counted(condemned, before, now, policy), (Kill(event.reason),)


def _exited(moved: Life, before: Life, event: Exited, now: float, policy: RestartPolicy) -> Step:
    gone = replace(moved, pid=None, deadline=None)
    if gone.state == "stopped":
        return replace(gone, reason=event.reason), ()
    if before.state == "ending":  # counted when it was condemned, for a reason that says more than SIGKILL does
        return _after_loss(gone, now, policy)
    return _after_loss(_counted(replace(gone, reason=event.reason), before, now, policy), now, policy)


def _counted(life: Life, before: Life, now: float, policy: RestartPolicy) -> Life:
    # What kills a worker that serves may be what it is asked to compute; hopeless is only what never gets ready.
    served = before.state == "ready"
    settled = served and now - before.since >= policy.settled_seconds
    failures = 1 if settled else before.failures + 1
    return replace(life, failures=failures, failed_starts=0 if served else before.failed_starts + 1)


def _after_loss(life: Life, now: float, policy: RestartPolicy) -> Step:
    if life.draining:
        return replace(life, state=transition(life.state, DrainStarted), deadline=None), ()
    reason = life.reason or "no reason known"
    if life.permanent or life.failed_starts >= policy.max_failures:
        in_a_row = f"{life.failed_starts} failures in a row, the last: {reason}"
        why = reason if life.permanent or life.failed_starts == 1 else in_a_row
        return replace(life, state=transition(life.state, RetryRefused), deadline=None), (GiveUp(why),)
    delay = policy.delay(life.failures)
    waiting = replace(life, state=transition(life.state, RetryGranted), deadline=now + delay)
    return waiting, (Retry(delay, life.failures),)


def _stop(moved: Life, event: Event, now: float) -> Step:
    if moved.state == "draining" and isinstance(event, StopAsked):
        return replace(moved, deadline=now + event.grace), ()
    if moved.state == "stopping":
        reason = "did not finish in time" if isinstance(event, GraceOver) else "stopped before it was ready"
        return replace(moved, deadline=None), (Kill(reason),)
    if moved.state == "stopped":
        return replace(moved, deadline=None), ()
    return moved, ()


def overdue(life: Life, now: float) -> Event | None:
    """The event that the passing of time makes of this life, or None while its deadline is ahead."""
    if life.deadline is None or now < life.deadline:
        return None
    if life.state == "backoff":
        return StartDue()
    if life.state == "draining":
        return GraceOver()
    return Condemned(f"not ready after {now - life.since:.1f} s")


def check(life: Life, policy: RestartPolicy) -> None:
    """Raise ``AssertionError`` where a life contradicts itself; for tests after each step."""
    assert (life.pid is not None) == (life.state in WITH_PROCESS), f"{life}: process and state disagree"
    timed = life.state in ("starting", "loading", "backoff", "draining")
    assert (life.deadline is not None) == timed, f"{life}: deadlines belong to states that wait for something"
    assert 0 <= life.failed_starts <= policy.max_failures, f"{life}: more failed starts than the limit"
    assert life.failed_starts <= life.failures, f"{life}: more failed starts than failures"
    assert life.failures <= life.starts, f"{life}: more failures than workers"
    assert life.state != "lost", f"{life}: a lost worker is decided about at once"
    if life.state == "given_up":
        assert life.permanent or life.failed_starts == policy.max_failures, f"{life}: given up too early"
    if life.draining:
        assert life.state not in ("planned", "starting", "backoff"), f"{life}: nothing starts while draining"


def mermaid() -> str:
    """The table as a mermaid state diagram, for ``docs/state-machines.md``."""
    lines = ["stateDiagram-v2", "    [*] --> planned"]
    for state, row in TRANSITIONS.items():
        targets: dict[State, list[str]] = {}
        for event, target in row.items():
            targets.setdefault(target, []).append(event.__name__)
        lines += [f"    {state} --> {target}: {', '.join(events)}" for target, events in targets.items()]
    return "\n".join(lines + [f"    {state} --> [*]" for state in TRANSITIONS if state in FINAL]) + "\n"
