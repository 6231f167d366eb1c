"""The lifecycle of the copies of ``launch run``: starts, stops and the exit status, for every policy."""

from __future__ import annotations

import itertools
from typing import get_args

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from launcher.core.lifecycle.process_events import Spawned
from launcher.core.lifecycle.program import (
    FINAL,
    TRANSITIONS,
    Action,
    AnnounceRestart,
    AnnounceStop,
    Event,
    Exited,
    Guard,
    Job,
    Kill,
    Policy,
    ProgramStatus,
    Signal,
    Spawn,
    State,
    StopRequested,
    check,
    exit_code,
    step,
)
from launcher.core.lifecycle.transitions import IllegalTransition
from launcher.options import OnFailure, SuperviseOptions
from tests.core.lifecycle.tables import check_table

RESTART = SuperviseOptions(max_failures=3, backoff_seconds=0.5, backoff_limit_seconds=30.0, settled_seconds=60.0)
STATES: tuple[State, ...] = get_args(State)
EVENTS: tuple[type[Event], ...] = get_args(Event)


def policy_of(on_failure: OnFailure, grace_seconds: float = 10.0) -> Policy:
    return Policy(on_failure == "stop", RESTART if on_failure == "restart" else None, grace_seconds)


def started(on_failure: OnFailure, instances: int = 3) -> Job:
    """A job whose programs are all running; the pid of instance N is 100 + N."""
    job = Job(range(instances), policy_of(on_failure))
    for instance in range(instances):
        assert job.start(instance, 0.0) == [Spawn(instance)]
        assert job.spawned(instance, 100 + instance, 0.0) == []
    return job


def restart(job: Job, instance: int, now: float) -> None:
    """The back-off of the instance is over; its program starts again."""
    assert job.tick(now) == [Spawn(instance)]
    assert job.spawned(instance, 200 + instance, now) == []


def states(job: Job) -> list[str]:
    return [program.state for program in job.programs()]


def test_the_table_is_complete() -> None:
    check_table(TRANSITIONS, STATES, EVENTS, get_args(Guard))


def make(event: type[Event]) -> Event:
    """An event of this type with some contents."""
    contents = {Spawned: Spawned(100), StopRequested: StopRequested(15, 5.0), Exited: Exited(1)}
    return contents.get(event) or (event("why") if event.__match_args__ else event())


@pytest.mark.parametrize(("state", "event"), list(itertools.product(STATES, EVENTS)))
def test_a_step_follows_the_table_or_raises_with_what_is_possible(state: State, event: type[Event]) -> None:
    status = ProgramStatus(0, state=state, shutting_down=state in ("stopping", "killing"))
    if TRANSITIONS.accepts(state, event):
        after, _ = step(status, make(event), 1.0, policy_of("restart"))
        assert after.state in {target for _, target in TRANSITIONS.targets(state, event)}
    else:
        with pytest.raises(IllegalTransition, match=f"^{event.__name__} is not possible .* state {state};") as caught:
            step(status, make(event), 1.0, policy_of("restart"))
        for legal in TRANSITIONS.rows[state]:
            assert legal.__name__ in str(caught.value)


def test_when_all_succeed_the_exit_status_is_0() -> None:
    run = started("stop")
    for instance in range(3):
        assert not run.finished
        assert run.exited(instance, 0, 1.0) == []
    assert run.finished
    assert run.exit_status == 0
    assert run.next_deadline() is None


def test_stop_signals_the_others_and_kills_them_after_the_grace_period() -> None:
    run = started("stop")
    assert run.exited(1, 4, 2.0) == [AnnounceStop(1), Signal(0, 15), Signal(2, 15)]
    assert run.next_deadline() == 12.0
    assert run.tick(11.9) == []
    assert run.exited(0, -15, 3.0) == []
    assert run.tick(12.0) == [Kill(2)]
    assert run.exited(2, -9, 12.1) == []
    assert run.finished
    assert run.exit_status == 4, "that of the first failure, not of programs that were told to stop"


def test_the_last_one_to_fail_has_no_others_to_stop() -> None:
    run = started("stop", 2)
    assert run.exited(0, 0, 1.0) == []
    assert run.exited(1, 7, 2.0) == []
    assert run.exit_status == 7


def test_continue_lets_the_others_finish_and_keeps_the_first_failure() -> None:
    run = started("continue")
    assert run.exited(2, -11, 1.0) == []
    assert run.exited(0, 5, 2.0) == []
    assert not run.finished
    assert run.exited(1, 0, 3.0) == []
    assert (run.finished, run.exit_status) == (True, 139)


def test_restart_starts_again_with_growing_delays_up_to_the_limit() -> None:
    run = started("restart", 2)
    assert run.exited(0, 1, 1.0) == [AnnounceRestart(0, 0.5, 1)]
    assert run.next_deadline() == 1.5
    assert run.tick(1.4) == []
    restart(run, 0, 1.5)
    assert run.exited(0, 1, 2.0) == [AnnounceRestart(0, 1.0, 2)]
    restart(run, 0, 3.0)
    assert run.exited(0, 9, 4.0) == [], "three consecutive failures are the limit"
    assert states(run) == ["failed", "running"]
    assert run.exited(1, 0, 5.0) == []
    assert run.exit_status == 9


def test_a_program_that_succeeds_after_a_restart_has_not_failed() -> None:
    run = started("restart", 1)
    run.exited(0, 1, 1.0)
    restart(run, 0, 1.5)
    assert run.exited(0, 0, 2.0) == []
    assert (run.finished, run.exit_status) == (True, 0)


def test_a_program_that_ran_for_a_while_starts_a_new_series_of_failures() -> None:
    run = started("restart", 1)
    for start in (0.0, 100.0, 200.0, 300.0):
        (again,) = run.exited(0, 1, start + 61.0)
        assert again == AnnounceRestart(0, 0.5, 1)
        restart(run, 0, start + 100.0)
    assert states(run) == ["running"]


def test_a_signal_is_forwarded_and_nothing_more_is_started() -> None:
    run = started("restart")
    assert run.exited(0, 3, 1.0) == [AnnounceRestart(0, 0.5, 1)]
    assert run.stop(2, 1.2) == [Signal(1, 2), Signal(2, 2)]
    assert states(run) == ["stopped", "stopping", "stopping"]
    assert run.exit_status == 3, "the one in back-off has failed"
    assert run.tick(5.0) == []
    assert run.exited(1, 0, 5.0) == run.exited(2, -2, 5.0) == []
    assert run.finished


def test_programs_that_exit_with_0_when_told_to_stop_leave_status_0() -> None:
    run = started("stop", 2)
    run.stop(15, 1.0)
    run.exited(0, 0, 1.1)
    run.exited(1, 0, 1.2)
    assert (run.finished, run.exit_status) == (True, 0)


def test_a_second_signal_kills_and_the_first_exit_status_counts() -> None:
    run = started("continue", 2)
    run.stop(2, 1.0)
    run.exited(0, -2, 1.1)
    assert run.stop(2, 1.2) == [Kill(1)]
    run.exited(1, -9, 1.3)
    assert run.exit_status == 130, "that of the first"


def test_a_failure_after_the_signal_stops_no_others_again() -> None:
    run = started("stop", 2)
    run.stop(15, 1.0)
    assert run.exited(0, 1, 1.1) == []
    assert run.exit_status == 1


def test_a_permanent_failure_is_killed_and_gives_the_status_of_a_machine_error() -> None:
    run = started("restart", 2)
    assert run.fail(0, "its mask was missed", 1.0) == [Kill(0)]
    assert run.fail(0, "again", 1.1) == []
    assert run.exited(0, -9, 1.2) == [], "a restart would not help"
    assert states(run) == ["failed", "running"]
    assert run.programs()[0].reason == "its mask was missed"
    run.exited(1, 0, 2.0)
    assert run.exit_status == 3


def test_a_program_for_which_the_system_lacks_a_resource_is_started_again_if_programs_are_restarted() -> None:
    run = Job(range(1), policy_of("restart"))
    run.start(0, 0.0)
    (announced,) = run.spawn_failed(0, "no memory", 0.0, transient=True)
    assert isinstance(announced, AnnounceRestart)
    assert (announced.failures, states(run)) == (0, ["backoff"])
    assert run.tick(announced.delay) == [Spawn(0)]
    assert run.spawn_failed(0, "no such file", 1.0) == []
    assert (states(run), run.exit_status) == (["failed"], 1)


def test_a_program_that_cannot_be_started_stops_the_others() -> None:
    run = Job(range(3), policy_of("stop"))
    run.start(0, 0.0)
    run.spawned(0, 100, 0.0)
    assert run.start(1, 0.1) == [Spawn(1)]
    assert run.spawn_failed(1, "no process", 0.1) == [AnnounceStop(1), Signal(0, 15)]
    assert run.start(2, 0.1) == [], "it was told to stop before its turn"
    assert states(run) == ["stopping", "failed", "stopped"]
    run.exited(0, -15, 0.2)
    assert (run.finished, run.exit_status) == (True, 1)


def test_an_impossible_exit_is_refused_and_changes_nothing() -> None:
    run = started("stop", 1)
    run.exited(0, 0, 1.0)
    before = run.programs()
    with pytest.raises(IllegalTransition, match="Exited is not possible for a program in state succeeded"):
        run.exited(0, 1, 2.0)
    assert (run.programs(), run.exit_status) == (before, 0)


def test_an_event_that_is_illegal_for_one_program_changes_none() -> None:
    run = Job(range(2), policy_of("stop"))
    run.start(0, 0.0)
    run.spawned(0, 100, 0.0)
    run.start(1, 0.0)
    before = run.programs()
    with pytest.raises(IllegalTransition, match="StopRequested is not possible for a program in state starting"):
        run.stop(15, 1.0)
    assert (run.programs(), run.stopping) == (before, False)


@pytest.mark.parametrize(("status", "code"), [(0, 0), (7, 7), (-15, 143), (-9, 137), (-2, 130)])
def test_codes_are_those_of_a_shell(status: int, code: int) -> None:
    assert exit_code(status) == code


class Processes:
    """Carries out the actions as the runner does, and checks the job after each event."""

    def __init__(self, job: Job, policy: Policy) -> None:
        self.job, self.policy = job, policy
        self.alive: set[int] = set()
        self.killed: set[int] = set()
        self.refuse_spawns = False
        self._pids = itertools.count(100)

    def do(self, actions: list[Action], now: float) -> None:
        check(self.job, self.policy)
        left = list(actions)
        while left:
            action = left.pop(0)
            if isinstance(action, Spawn):
                left += self._spawn(action.instance, now)
                check(self.job, self.policy)
            elif isinstance(action, Signal | Kill):
                assert action.instance in self.alive, "only a process can be signalled"
                self.killed.update([action.instance] if isinstance(action, Kill) else [])
        assert self.alive == {program.instance for program in self.job.programs() if program.pid is not None}

    def _spawn(self, instance: int, now: float) -> list[Action]:
        assert instance not in self.alive, "never two programs of one instance"
        assert not self.job.stopping, "nothing more is started"
        if self.refuse_spawns:
            return self.job.spawn_failed(instance, "no process", now)
        self.alive.add(instance)
        return self.job.spawned(instance, next(self._pids), now)

    def exit(self, instance: int, status: int, now: float) -> None:
        self.alive.discard(instance)
        self.do(self.job.exited(instance, -9 if instance in self.killed else status, now), now)
        self.killed.discard(instance)


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_every_history_keeps_the_invariants_and_accounts_for_every_program(data: st.DataObject) -> None:
    policy = policy_of(data.draw(st.sampled_from(["stop", "continue", "restart"])), 5.0)
    job = Job(range(data.draw(st.integers(1, 4))), policy)
    processes, now = Processes(job, policy), 0.0
    for program in job.programs():
        processes.refuse_spawns = data.draw(st.integers(0, 9)) == 0
        processes.do(job.start(program.instance, now), now)
    for _ in range(60):
        now += data.draw(st.sampled_from([0.0, 0.3, 4.0, 70.0]))
        processes.refuse_spawns = data.draw(st.integers(0, 9)) == 0
        processes.do(job.tick(now), now)
        what = data.draw(st.sampled_from([*["exit"] * 9, "stop", "fail", "kill"]))
        if what == "stop":
            processes.do(job.stop(15, now), now)
        elif what == "kill":
            processes.do(job.kill(now), now)
        elif processes.alive:
            instance = data.draw(st.sampled_from(sorted(processes.alive)))
            if what == "fail":
                processes.do(job.fail(instance, "missed", now), now)
            else:
                processes.exit(instance, data.draw(st.sampled_from([0, 0, 1, -11])), now)
    processes.do(job.kill(now), now)
    for instance in sorted(processes.alive):
        processes.exit(instance, -9, now)
    assert job.finished
    assert all(program.state in FINAL for program in job.programs())
    clean = all(program.state != "failed" and not program.exit_status for program in job.programs())
    assert (job.exit_status == 0) == clean
