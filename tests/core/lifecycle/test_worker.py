"""The lifecycle of a served instance: its table, the restart policy, and histories drawn by hypothesis."""

from __future__ import annotations

import itertools
from dataclasses import replace
from typing import get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from launcher.core.lifecycle.events import (
    BackoffElapsed,
    FailedPermanently,
    GracePeriodElapsed,
    KillRequested,
    Spawned,
    SpawnFailed,
    StartRequested,
)
from launcher.core.lifecycle.restart import restart_delay
from launcher.core.lifecycle.transitions import IllegalTransition
from launcher.core.lifecycle.worker import (
    FINAL,
    TRANSITIONS,
    AnnounceFailure,
    AnnounceRestart,
    BecameReady,
    BecameUnhealthy,
    DrainStarted,
    Event,
    Exited,
    Guard,
    Kill,
    Spawn,
    State,
    StopRequested,
    WorkerStatus,
    check,
    step,
    timeout_event,
)
from launcher.options import SuperviseOptions
from tests.core.lifecycle.tables import check_table

POLICY = SuperviseOptions(
    start_seconds=100, max_failures=3, backoff_seconds=0.5, backoff_limit_seconds=1.5, settled_seconds=60
)
STATES: tuple[State, ...] = get_args(State)
EVENTS: tuple[type[Event], ...] = get_args(Event)
SHUTDOWN = (DrainStarted, StopRequested, KillRequested)


def history(*timed: tuple[float, Event], policy: SuperviseOptions = POLICY) -> tuple[WorkerStatus, list[object]]:
    """The status after these (time, event) pairs, and all actions on the way."""
    status, actions = WorkerStatus(0), []
    for now, event in timed:
        status, new = step(status, event, now, policy)
        check(status, policy)
        actions += new
    return status, actions


STARTED: tuple[tuple[float, Event], ...] = ((0.0, StartRequested()), (0.0, Spawned(7)))
WARM = (*STARTED, (3.0, BecameReady()))


def test_the_table_is_complete() -> None:
    check_table(TRANSITIONS, STATES, EVENTS, get_args(Guard))


def make(event: type[Event]) -> Event:
    """An event of this type with some contents."""
    return {Spawned: Spawned(100), StopRequested: StopRequested(5.0)}.get(event) or (
        event("why") if event.__match_args__ else event()
    )


@pytest.mark.parametrize(("state", "event"), list(itertools.product(STATES, EVENTS)))
def test_a_step_follows_the_table_or_raises_with_what_is_possible(state: State, event: type[Event]) -> None:
    status = WorkerStatus(0, state=state)
    if TRANSITIONS.accepts(state, event):
        after, _ = step(status, make(event), 1.0, POLICY)
        assert after.state in {target for _, target in TRANSITIONS.targets(state, event)}
    else:
        with pytest.raises(IllegalTransition, match=f"^{event.__name__} is not possible .* state {state};") as caught:
            step(status, make(event), 1.0, POLICY)
        for legal in TRANSITIONS.rows[state]:
            assert legal.__name__ in str(caught.value)


def test_an_illegal_event_changes_nothing() -> None:
    status, _ = history(*WARM)
    before = replace(status)
    with pytest.raises(IllegalTransition):
        step(status, Spawned(8), 4.0, POLICY)
    assert status == before


def test_a_good_start_leads_to_ready() -> None:
    status, actions = history(*WARM)
    assert (status.state, status.pid, status.since, status.starts, status.restarts, status.failures) == (
        "ready",
        7,
        3.0,
        1,
        0,
        0,
    )
    assert actions == [Spawn()]
    assert timeout_event(status, 1e9) is None


def test_a_failed_worker_is_restarted_after_the_back_off() -> None:
    status, actions = history(*WARM, (10.0, Exited("killed by SIGSEGV")))
    assert (status.state, status.pid, status.reason) == ("backoff", None, "killed by SIGSEGV")
    assert actions[-1] == AnnounceRestart(0.5, 1)
    assert timeout_event(status, 10.4) is None
    assert timeout_event(status, 10.5) == BackoffElapsed()
    status, actions = step(status, BackoffElapsed(), 10.5, POLICY)
    assert (status.state, status.restarts, actions) == ("starting", 1, (Spawn(),))


def test_exit_status_0_without_being_asked_is_a_failure_too() -> None:
    status, _ = history(*WARM, (10.0, Exited("exit status 0")))
    assert status.state == "backoff"


def test_failures_in_a_row_wait_longer_each_time_and_end_at_the_limit() -> None:
    crash: list[tuple[float, Event]] = []
    for now in range(3):
        crash += [
            (now, BackoffElapsed() if now else StartRequested()),
            (now, Spawned(7 + now)),
            (now, Exited("exit status 1")),
        ]
    status, actions = history(*crash)
    assert [action for action in actions if isinstance(action, AnnounceRestart)] == [
        AnnounceRestart(0.5, 1),
        AnnounceRestart(1.0, 2),
    ]
    assert status.state == "failed"
    assert actions[-1] == AnnounceFailure("3 consecutive failures, the last: exit status 1")
    assert status.state in FINAL, "nothing brings it back: no loop"


def test_a_process_that_cannot_be_started_counts_as_a_failure() -> None:
    status, actions = history((0, StartRequested()), (0, SpawnFailed("no such file")))
    assert (status.state, status.failures, status.pid) == ("backoff", 1, None)
    assert actions == [Spawn(), AnnounceRestart(0.5, 1)]


def test_the_back_off_doubles_up_to_its_limit() -> None:
    policy = SuperviseOptions(backoff_seconds=0.5, backoff_limit_seconds=30, max_failures=5000)
    assert [restart_delay(failures, policy) for failures in (1, 2, 3, 6, 7, 8, 5000)] == [0.5, 1, 2, 16, 30, 30, 30]


def test_a_worker_that_was_ready_for_a_while_starts_a_new_series_of_failures() -> None:
    twice = [
        *[(0, StartRequested()), (0, Spawned(1)), (0, Exited("crash"))],
        *[(1, BackoffElapsed()), (1, Spawned(2)), (1, Exited("crash"))],
        *[(2, BackoffElapsed()), (2, Spawned(3)), (5, BecameReady())],
    ]
    late, _ = history(*twice, (5 + POLICY.settled_seconds, Exited("crash")))
    assert (late.state, late.failures) == ("backoff", 1)
    early, _ = history(*twice, (4 + POLICY.settled_seconds, Exited("crash")))
    assert (early.state, early.failures) == ("backoff", 3)


def test_a_worker_that_becomes_ready_each_time_never_fails_for_good() -> None:
    status, now = WorkerStatus(0, since=0.0), 0.0
    for pid in range(1, 20):
        for event in (
            BackoffElapsed() if pid > 1 else StartRequested(),
            Spawned(pid),
            BecameReady(),
            Exited("killed by SIGSEGV"),
        ):
            now += 1.0
            status, actions = step(status, event, now, POLICY)
    assert status.state == "backoff"
    assert actions == (AnnounceRestart(POLICY.backoff_limit_seconds, 19),), "it waits as long as it ever waits"


def test_time_spent_loading_does_not_end_a_series_of_failures() -> None:
    status, _ = history(
        (0, StartRequested()), (0, Spawned(1)), (0, Exited("crash")), (1, BackoffElapsed()), (1, Spawned(2))
    )
    status, _ = step(status, Exited("crash"), 1000.0, POLICY)
    assert status.failures == 2


def test_a_worker_that_does_not_get_ready_in_time_is_killed_and_counted() -> None:
    status, _ = history(*STARTED)
    assert timeout_event(status, 99.9) is None
    event = timeout_event(status, 100.0)
    assert event == BecameUnhealthy("not ready after 100.0 s")
    status, actions = step(status, event, 100.0, POLICY)
    assert (status.state, status.pid, actions) == ("killing", 7, (Kill("not ready after 100.0 s"),))
    status, actions = step(status, Exited("killed by SIGKILL"), 100.1, POLICY)
    assert (status.state, status.failures, status.reason) == ("backoff", 1, "not ready after 100.0 s")


def test_a_hung_worker_is_killed_counted_once_and_replaced() -> None:
    status, actions = history(*WARM, (10, BecameUnhealthy("hangs")), (10.1, Exited("killed by SIGKILL")))
    assert actions == [Spawn(), Kill("hangs"), AnnounceRestart(0.5, 1)]
    assert (status.state, status.failures) == ("backoff", 1)


def test_a_permanent_failure_is_not_restarted() -> None:
    status, actions = history(*STARTED, (1, FailedPermanently("no such weights")), (1.1, Exited("exit status 4")))
    assert status.state == "failed"
    assert actions == [Spawn(), Kill("no such weights"), AnnounceFailure("no such weights")]


def test_a_permanent_failure_that_is_reported_after_the_exit_ends_the_back_off() -> None:
    status, actions = history(*STARTED, (1, Exited("exit status 4")), (1.1, FailedPermanently("no such weights")))
    assert status.state == "failed"
    assert actions == [Spawn(), AnnounceRestart(0.5, 1), AnnounceFailure("no such weights")]


def test_a_permanent_failure_of_a_ready_worker_is_not_restarted_either() -> None:
    status, actions = history(*WARM, (4, FailedPermanently("--strict: not on its cpus")), (4.1, Exited("killed")))
    assert (status.state, actions[-1]) == ("failed", AnnounceFailure("--strict: not on its cpus"))


def test_while_draining_a_failed_worker_is_not_restarted() -> None:
    status, actions = history(*WARM, (5, DrainStarted()), (6, Exited("killed by SIGKILL")))
    assert (status.state, actions) == ("stopped", [Spawn()])


def test_draining_ends_a_back_off() -> None:
    status, _ = history(*STARTED, (1, Exited("crash")), (1.1, DrainStarted()))
    assert (status.state, status.deadline) == ("stopped", None)


def test_a_ready_worker_has_its_grace_to_finish() -> None:
    status, actions = history(*WARM, (10, StopRequested(5)))
    assert (status.state, actions) == ("stopping", [Spawn()])
    finished, actions = step(status, Exited("exit status 0"), 12, POLICY)
    assert (finished.state, actions) == ("stopped", ())
    assert timeout_event(status, 14.9) is None
    event = timeout_event(status, 15)
    assert event == GracePeriodElapsed()
    late, actions = step(status, event, 15, POLICY)
    assert (late.state, actions) == ("killing", (Kill("did not stop within the grace period"),))


def test_a_loading_worker_is_stopped_at_once() -> None:
    status, actions = history(*STARTED, (1, StopRequested(30)))
    assert (status.state, actions[-1]) == ("killing", Kill("stopped before it was ready"))
    assert history(*STARTED, (1, StopRequested(30)), (1.1, Exited("killed by SIGKILL")))[0].state == "stopped"


def test_a_second_signal_kills_what_drains() -> None:
    status, actions = history(*WARM, (10, StopRequested(30)), (11, KillRequested()))
    assert (status.state, actions[-1]) == ("killing", Kill("immediate shutdown was requested"))


@st.composite
def histories(draw: st.DrawFn) -> tuple[SuperviseOptions, list[tuple[float, Event]]]:
    """A policy and legal events at growing times; the pids are new each time."""
    policy = SuperviseOptions(
        start_seconds=draw(st.floats(0.1, 50)),
        max_failures=draw(st.integers(1, 4)),
        backoff_seconds=draw(st.floats(0, 4)),
        backoff_limit_seconds=draw(st.floats(0, 8)),
        settled_seconds=draw(st.floats(0, 40)),
    )
    pids = itertools.count(100)
    status, now, events = WorkerStatus(0), 0.0, []
    for _ in range(draw(st.integers(0, 60))):
        shutdown = draw(st.integers(0, 9)) == 0  # else most histories would be over after a few steps
        legal = sorted(
            (kind for kind in TRANSITIONS.rows[status.state] if shutdown or kind not in SHUTDOWN),
            key=lambda kind: kind.__name__,
        )
        if not legal:
            continue
        kind = draw(st.sampled_from(legal))
        now += draw(st.floats(0, 30))
        event = {
            Spawned: lambda: Spawned(next(pids)),
            StopRequested: lambda: StopRequested(5.0),
        }.get(kind, lambda kind=kind: kind("why") if kind.__match_args__ else kind())()
        status, _ = step(status, event, now, policy)
        events.append((now, event))
    return policy, events


@given(histories())
def test_every_history_keeps_the_invariants_and_its_actions_match_its_states(
    drawn: tuple[SuperviseOptions, list[tuple[float, Event]]],
) -> None:
    policy, events = drawn
    status, spawned, retries = WorkerStatus(0), 0, 0
    for now, event in events:
        before = status
        status, actions = step(status, event, now, policy)
        check(status, policy)
        assert status.since <= now
        for action in actions:
            if isinstance(action, Spawn):
                spawned += 1
                assert status.state == "starting"
                assert not status.shutting_down
            elif isinstance(action, Kill):
                assert status.pid is not None
            elif isinstance(action, AnnounceRestart):
                retries += 1
                assert 0 <= action.delay <= policy.backoff_limit_seconds
                assert status.deadline == now + action.delay
            else:
                assert status.state == "failed"
        assert status.starts == spawned
        assert status.starts >= before.starts
        assert not (before.shutting_down and not status.shutting_down), "a shutdown is for good"
    assert spawned <= retries + 1, "each worker after the first was announced"


@given(histories())
def test_whatever_happened_stopping_and_the_exit_end_every_life(
    drawn: tuple[SuperviseOptions, list[tuple[float, Event]]],
) -> None:
    policy, events = drawn
    status, now = WorkerStatus(0), 0.0
    for now, event in events:
        status, _ = step(status, event, now, policy)
    if status.state == "starting":
        status, _ = step(status, Spawned(1), now, policy)
    killed = status.state == "killing"
    if TRANSITIONS.accepts(status.state, KillRequested):
        status, actions = step(status, KillRequested(), now, policy)
        killed = killed or any(isinstance(action, Kill) for action in actions)
    if status.pid is not None:
        assert killed, "a process that nobody kills would be waited for without end"
        status, actions = step(status, Exited("killed by SIGKILL"), now, policy)
        assert actions == ()
    assert status.state in FINAL
