"""The table of states, the restart rule, and every history that hypothesis can think of."""

from __future__ import annotations

import itertools
from dataclasses import replace
from typing import get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from launcher.core.lifecycle.worker import (
    FINAL,
    TRANSITIONS,
    BecameReady,
    Condemned,
    DeclaredUnusable,
    DrainStarted,
    Event,
    Exited,
    GiveUp,
    GraceOver,
    IllegalTransition,
    Kill,
    Life,
    RestartPolicy,
    Retry,
    RetryGranted,
    RetryRefused,
    Spawn,
    Spawned,
    SpawnFailed,
    StartDue,
    State,
    StopAsked,
    accepts,
    check,
    mermaid,
    overdue,
    step,
    transition,
)

POLICY = RestartPolicy(
    start_seconds=100, max_failures=3, backoff_seconds=0.5, backoff_limit_seconds=1.5, settled_seconds=60
)
STATES: tuple[State, ...] = get_args(State)
EVENTS: tuple[type[Event], ...] = get_args(Event)
DECIDED_INSIDE = (RetryGranted, RetryRefused)
ENDING = (DrainStarted, StopAsked, GraceOver)


def history(*timed: tuple[float, Event], policy: RestartPolicy = POLICY) -> tuple[Life, list[object]]:
    """The life after these (time, event) pairs, and all actions on the way."""
    life, actions = Life(0), []
    for now, event in timed:
        life, new = step(life, event, now, policy)
        check(life, policy)
        actions += new
    return life, actions


STARTED: tuple[tuple[float, Event], ...] = ((0.0, StartDue()), (0.0, Spawned(7)))
WARM = (*STARTED, (3.0, BecameReady()))


def test_every_state_and_event_is_in_the_table() -> None:
    assert set(TRANSITIONS) == set(STATES)
    used = {event for row in TRANSITIONS.values() for event in row}
    assert used == set(EVENTS)


def test_every_state_can_be_reached_and_leads_to_an_end() -> None:
    reached: set[State] = {"planned"}
    while new := {target for state in reached for target in TRANSITIONS[state].values()} - reached:
        reached |= new
    assert reached == set(STATES)
    for state in reached - FINAL:
        ahead, seen = {state}, set[State]()
        while ahead - seen:
            seen |= ahead
            ahead = {target for one in ahead for target in TRANSITIONS[one].values()}
        assert seen & FINAL, f"{state} never ends"
    assert all(not TRANSITIONS[state] for state in FINAL)


@pytest.mark.parametrize(("state", "event"), list(itertools.product(STATES, EVENTS)))
def test_a_transition_is_either_in_the_table_or_raises_with_what_would_work(state: State, event: type[Event]) -> None:
    if event in TRANSITIONS[state]:
        assert accepts(state, event)
        assert transition(state, event) == TRANSITIONS[state][event]
        return
    assert not accepts(state, event)
    with pytest.raises(
        IllegalTransition, match=f"{event.__name__} cannot happen to an instance that is {state}"
    ) as caught:
        transition(state, event)
    for legal in TRANSITIONS[state]:
        assert legal.__name__ in str(caught.value)


def test_an_illegal_event_changes_nothing() -> None:
    life, _ = history(*WARM)
    before = replace(life)
    with pytest.raises(IllegalTransition):
        step(life, Spawned(8), 4.0, POLICY)
    assert life == before


def test_a_good_start_leads_to_ready() -> None:
    life, actions = history(*WARM)
    assert (life.state, life.pid, life.since, life.starts, life.restarts, life.failures) == ("ready", 7, 3.0, 1, 0, 0)
    assert actions == [Spawn()]
    assert overdue(life, 1e9) is None


def test_a_lost_worker_is_replaced_after_the_back_off() -> None:
    life, actions = history(*WARM, (10.0, Exited("killed by SIGSEGV")))
    assert (life.state, life.pid, life.reason) == ("backoff", None, "killed by SIGSEGV")
    assert actions[-1] == Retry(0.5, 1)
    assert overdue(life, 10.4) is None
    assert overdue(life, 10.5) == StartDue()
    life, actions = step(life, StartDue(), 10.5, POLICY)
    assert (life.state, life.restarts, actions) == ("starting", 1, (Spawn(),))


def test_exit_status_0_without_being_asked_is_a_loss_too() -> None:
    life, _ = history(*WARM, (10.0, Exited("exit status 0")))
    assert life.state == "backoff"


def test_failures_in_a_row_wait_longer_each_time_and_end_at_the_limit() -> None:
    crash: list[tuple[float, Event]] = []
    for now in range(3):
        crash += [(now, StartDue()), (now, Spawned(7 + now)), (now, Exited("exit status 1"))]
    life, actions = history(*crash)
    assert [action for action in actions if isinstance(action, Retry)] == [Retry(0.5, 1), Retry(1.0, 2)]
    assert life.state == "given_up"
    assert actions[-1] == GiveUp("3 failures in a row, the last: exit status 1")
    assert not TRANSITIONS[life.state], "nothing brings it back: no loop"


def test_a_process_that_cannot_be_started_counts_as_a_failure() -> None:
    life, actions = history((0, StartDue()), (0, SpawnFailed("no such file")))
    assert (life.state, life.failures, life.pid) == ("backoff", 1, None)
    assert actions == [Spawn(), Retry(0.5, 1)]


def test_the_back_off_doubles_up_to_its_limit() -> None:
    policy = RestartPolicy(backoff_seconds=0.5, backoff_limit_seconds=30, max_failures=5000)
    assert [policy.delay(failures) for failures in (1, 2, 3, 6, 7, 8, 5000)] == [0.5, 1, 2, 16, 30, 30, 30]


def test_a_worker_that_was_ready_for_a_while_ends_the_row_of_failures() -> None:
    twice = [
        *[(0, StartDue()), (0, Spawned(1)), (0, Exited("crash"))],
        *[(1, StartDue()), (1, Spawned(2)), (1, Exited("crash"))],
        *[(2, StartDue()), (2, Spawned(3)), (5, BecameReady())],
    ]
    late, _ = history(*twice, (5 + POLICY.settled_seconds, Exited("crash")))
    assert (late.state, late.failures) == ("backoff", 1)
    early, _ = history(*twice, (4 + POLICY.settled_seconds, Exited("crash")))
    assert (early.state, early.failures) == ("backoff", 3)


def test_a_worker_that_gets_ready_each_time_is_never_given_up() -> None:
    life, now = Life(0, since=0.0), 0.0
    for pid in range(1, 20):
        for event in (StartDue(), Spawned(pid), BecameReady(), Exited("killed by SIGSEGV")):
            now += 1.0
            life, actions = step(life, event, now, POLICY)
    assert life.state == "backoff"
    assert actions == (Retry(POLICY.backoff_limit_seconds, 19),), "it waits as long as it ever waits"


def test_time_spent_loading_does_not_end_the_row() -> None:
    life, _ = history((0, StartDue()), (0, Spawned(1)), (0, Exited("crash")), (1, StartDue()), (1, Spawned(2)))
    life, _ = step(life, Exited("crash"), 1000.0, POLICY)
    assert life.failures == 2


def test_a_worker_that_does_not_get_ready_in_time_is_killed_and_counted() -> None:
    life, _ = history(*STARTED)
    assert overdue(life, 99.9) is None
    event = overdue(life, 100.0)
    assert event == Condemned("not ready after 100.0 s")
    life, actions = step(life, event, 100.0, POLICY)
    assert (life.state, life.pid, actions) == ("ending", 7, (Kill("not ready after 100.0 s"),))
    life, actions = step(life, Exited("killed by SIGKILL"), 100.1, POLICY)
    assert (life.state, life.failures, life.reason) == ("backoff", 1, "not ready after 100.0 s")


def test_a_hung_worker_is_killed_counted_once_and_replaced() -> None:
    life, actions = history(*WARM, (10, Condemned("hangs")), (10.1, Exited("killed by SIGKILL")))
    assert actions == [Spawn(), Kill("hangs"), Retry(0.5, 1)]
    assert (life.state, life.failures) == ("backoff", 1)


def test_an_unusable_worker_is_given_up_at_once() -> None:
    life, actions = history(*STARTED, (1, DeclaredUnusable("no such weights")), (1.1, Exited("exit status 4")))
    assert life.state == "given_up"
    assert actions == [Spawn(), Kill("no such weights"), GiveUp("no such weights")]


def test_an_unusable_worker_whose_exit_is_heard_first_is_given_up_too() -> None:
    life, actions = history(*STARTED, (1, Exited("exit status 4")), (1.1, DeclaredUnusable("no such weights")))
    assert life.state == "given_up"
    assert actions == [Spawn(), Retry(0.5, 1), GiveUp("no such weights")]


def test_a_ready_worker_that_turns_out_unusable_is_given_up_too() -> None:
    life, actions = history(*WARM, (4, DeclaredUnusable("--strict: not on its cpus")), (4.1, Exited("killed")))
    assert (life.state, actions[-1]) == ("given_up", GiveUp("--strict: not on its cpus"))


def test_while_draining_a_lost_worker_is_not_replaced() -> None:
    life, actions = history(*WARM, (5, DrainStarted()), (6, Exited("killed by SIGKILL")))
    assert (life.state, actions) == ("stopped", [Spawn()])


def test_draining_ends_a_back_off() -> None:
    life, _ = history(*STARTED, (1, Exited("crash")), (1.1, DrainStarted()))
    assert (life.state, life.deadline) == ("stopped", None)


def test_a_ready_worker_has_its_grace_to_finish() -> None:
    life, actions = history(*WARM, (10, StopAsked(5)))
    assert (life.state, actions) == ("draining", [Spawn()])
    finished, actions = step(life, Exited("exit status 0"), 12, POLICY)
    assert (finished.state, actions) == ("stopped", ())
    assert overdue(life, 14.9) is None
    event = overdue(life, 15)
    assert event == GraceOver()
    late, actions = step(life, event, 15, POLICY)
    assert (late.state, actions) == ("stopping", (Kill("did not finish in time"),))


def test_a_loading_worker_is_stopped_at_once() -> None:
    life, actions = history(*STARTED, (1, StopAsked(30)))
    assert (life.state, actions[-1]) == ("stopping", Kill("stopped before it was ready"))
    assert history(*STARTED, (1, StopAsked(30)), (1.1, Exited("killed by SIGKILL")))[0].state == "stopped"


def test_a_second_signal_kills_what_drains() -> None:
    life, actions = history(*WARM, (10, StopAsked(30)), (11, GraceOver()))
    assert (life.state, isinstance(actions[-1], Kill)) == ("stopping", True)


@st.composite
def histories(draw: st.DrawFn) -> tuple[RestartPolicy, list[tuple[float, Event]]]:
    """A policy and legal events at growing times; the pids are new each time."""
    policy = RestartPolicy(
        start_seconds=draw(st.floats(0.1, 50)),
        max_failures=draw(st.integers(1, 4)),
        backoff_seconds=draw(st.floats(0, 4)),
        backoff_limit_seconds=draw(st.floats(0, 8)),
        settled_seconds=draw(st.floats(0, 40)),
    )
    pids = itertools.count(100)
    life, now, events = Life(0), 0.0, []
    for _ in range(draw(st.integers(0, 60))):
        ending = draw(st.integers(0, 9)) == 0  # else most histories would end after a few steps
        legal = sorted(
            (kind for kind in TRANSITIONS[life.state] if kind not in DECIDED_INSIDE and (ending or kind not in ENDING)),
            key=lambda kind: kind.__name__,
        )
        if not legal:
            continue
        kind = draw(st.sampled_from(legal))
        now += draw(st.floats(0, 30))
        event = {
            Spawned: lambda: Spawned(next(pids)),
            StopAsked: lambda: StopAsked(5.0),
        }.get(kind, lambda kind=kind: kind("why") if kind.__match_args__ else kind())()
        life, _ = step(life, event, now, policy)
        events.append((now, event))
    return policy, events


@given(histories())
def test_every_history_keeps_the_invariants_and_its_actions_match_its_states(
    drawn: tuple[RestartPolicy, list[tuple[float, Event]]],
) -> None:
    policy, events = drawn
    life, spawned, retries = Life(0), 0, 0
    for now, event in events:
        before = life
        life, actions = step(life, event, now, policy)
        check(life, policy)
        assert life.since <= now
        for action in actions:
            if isinstance(action, Spawn):
                spawned += 1
                assert life.state == "starting"
                assert not life.draining
            elif isinstance(action, Kill):
                assert life.pid is not None
            elif isinstance(action, Retry):
                retries += 1
                assert 0 <= action.delay <= policy.backoff_limit_seconds
                assert life.deadline == now + action.delay
            else:
                assert life.state == "given_up"
        assert life.starts == spawned
        assert life.starts >= before.starts
        assert not (before.draining and not life.draining), "draining is for good"
    assert spawned <= retries + 1, "each worker after the first was announced"


@given(histories())
def test_whatever_happened_stopping_and_the_exit_end_every_life(
    drawn: tuple[RestartPolicy, list[tuple[float, Event]]],
) -> None:
    policy, events = drawn
    life, now = Life(0), 0.0
    for now, event in events:
        life, _ = step(life, event, now, policy)
    if life.state == "starting":
        life, _ = step(life, Spawned(1), now, policy)
    killed = life.state == "stopping"
    if accepts(life.state, GraceOver):
        life, actions = step(life, GraceOver(), now, policy)
        killed = any(isinstance(action, Kill) for action in actions)
    if life.pid is not None:
        assert killed, "a process that nobody kills would be waited for without end"
        life, actions = step(life, Exited("killed by SIGKILL"), now, policy)
        assert actions == ()
    assert life.state in FINAL


def test_the_diagram_shows_every_transition_of_the_table() -> None:
    lines = mermaid().splitlines()
    assert lines[0] == "stateDiagram-v2"
    assert "    [*] --> planned" in lines
    assert "    stopped --> [*]" in lines
    for state, row in TRANSITIONS.items():
        for event, target in row.items():
            prefix = f"    {state} --> {target}: "
            found = [line for line in lines if line.startswith(prefix)]
            assert len(found) == 1
            assert event.__name__ in found[0].removeprefix(prefix).split(", ")
