"""The course of a run: what starts, what is told to end, and which status comes out, for every policy."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from launcher.core.lifecycle.program import (
    FINAL,
    Action,
    Course,
    CoursePolicy,
    Kill,
    OnFailure,
    Restart,
    Signal,
    Start,
    Stop,
    check,
    exit_code,
)
from launcher.core.lifecycle.worker import RestartPolicy

RESTART = RestartPolicy(max_failures=3, backoff_seconds=0.5, backoff_limit_seconds=30.0, settled_seconds=60.0)


def course(on_failure: OnFailure, instances: int = 3) -> Course:
    made = Course(range(instances), CoursePolicy(on_failure, 10.0, RESTART))
    assert made.begin(0.0) == [Start(instance, 1) for instance in range(instances)]
    return made


def states(one: Course) -> list[str]:
    return [progress.state for progress in one.progress()]


def test_when_all_end_with_0_so_does_the_run() -> None:
    run = course("stop")
    for instance in range(3):
        assert not run.over
        assert run.ended(instance, 0, 1.0) == []
    assert run.over
    assert run.exit_status == 0
    assert run.next_deadline() is None


def test_stop_tells_the_others_to_end_and_kills_them_after_the_grace() -> None:
    run = course("stop")
    assert run.ended(1, 4, 2.0) == [Stop(1), Signal(0, 15), Signal(2, 15)]
    assert run.next_deadline() == 12.0
    assert run.tick(11.9) == []
    assert run.ended(0, -15, 3.0) == []
    assert run.tick(12.0) == [Kill(2)]
    assert run.ended(2, -9, 12.1) == []
    assert run.over
    assert run.exit_status == 4, "that of the first failure, not of those that were told to end"


def test_the_last_one_to_fail_has_nobody_to_stop() -> None:
    run = course("stop", 2)
    assert run.ended(0, 0, 1.0) == []
    assert run.ended(1, 7, 2.0) == []
    assert run.exit_status == 7


def test_continue_lets_the_others_finish_and_keeps_the_first_failure() -> None:
    run = course("continue")
    assert run.ended(2, -11, 1.0) == []
    assert run.ended(0, 5, 2.0) == []
    assert not run.over
    assert run.ended(1, 0, 3.0) == []
    assert (run.over, run.exit_status) == (True, 139)


def test_restart_starts_again_with_growing_delays_up_to_the_limit() -> None:
    run = course("restart", 2)
    assert run.ended(0, 1, 1.0) == [Restart(0, 0.5, 1)]
    assert run.next_deadline() == 1.5
    assert run.tick(1.4) == []
    assert run.tick(1.5) == [Start(0, 2)]
    assert run.ended(0, 1, 2.0) == [Restart(0, 1.0, 2)]
    assert run.tick(3.0) == [Start(0, 3)]
    assert run.ended(0, 9, 4.0) == [], "three in a row are the limit"
    assert states(run) == ["failed", "running"]
    assert run.ended(1, 0, 5.0) == []
    assert run.exit_status == 9


def test_a_program_that_succeeds_after_a_restart_has_not_failed() -> None:
    run = course("restart", 1)
    run.ended(0, 1, 1.0)
    run.tick(1.5)
    assert run.ended(0, 0, 2.0) == []
    assert (run.over, run.exit_status) == (True, 0)


def test_a_program_that_ran_for_long_begins_a_new_row_of_failures() -> None:
    run = course("restart", 1)
    for start in (0.0, 100.0, 200.0, 300.0):
        (again,) = run.ended(0, 1, start + 61.0)
        assert again == Restart(0, 0.5, 1)
        run.tick(start + 100.0)
    assert states(run) == ["running"]


def test_a_signal_is_passed_on_as_it_is_and_nothing_starts_any_more() -> None:
    run = course("restart")
    assert run.ended(0, 3, 1.0) == [Restart(0, 0.5, 1)]
    assert run.signalled(2, 1.2) == [Signal(1, 2), Signal(2, 2)]
    assert states(run) == ["ended", "ending", "ending"]
    assert run.exit_status == 3, "the one that waited for another start has failed"
    assert run.tick(5.0) == []
    assert run.ended(1, 0, 5.0) == run.ended(2, -2, 5.0) == []
    assert run.over


def test_programs_that_end_well_when_told_leave_status_0() -> None:
    run = course("stop", 2)
    run.signalled(15, 1.0)
    run.ended(0, 0, 1.1)
    run.ended(1, 0, 1.2)
    assert (run.over, run.exit_status) == (True, 0)


def test_a_second_signal_kills_and_so_does_the_end_of_the_grace() -> None:
    run = course("continue", 2)
    run.signalled(2, 1.0)
    run.ended(0, -2, 1.1)
    assert run.signalled(2, 1.2) == [Kill(1)]
    run.ended(1, -9, 1.3)
    assert run.exit_status == 130, "that of the first"


def test_a_failure_after_the_signal_stops_nobody_again() -> None:
    run = course("stop", 2)
    run.signalled(15, 1.0)
    assert run.ended(0, 1, 1.1) == []
    assert run.exit_status == 1


def test_a_program_that_must_not_go_on_is_killed_and_counts_as_refused_by_the_machine() -> None:
    run = course("restart", 2)
    assert run.refused(0, "its mask was missed", 1.0) == [Kill(0)]
    assert run.refused(0, "again", 1.1) == []
    assert run.ended(0, -9, 1.2) == [], "another start would not help"
    assert states(run) == ["failed", "running"]
    assert run.progress()[0].reason == "its mask was missed"
    run.ended(1, 0, 2.0)
    assert run.exit_status == 3


def test_a_program_that_cannot_be_started_fails_like_any_other() -> None:
    run = course("stop", 2)
    assert run.not_started(0, "no process", 0.1) == [Stop(0), Signal(1, 15)]
    run.ended(1, -15, 0.2)
    assert run.exit_status == 1


def test_an_end_that_cannot_be_is_refused_and_changes_nothing() -> None:
    run = course("stop", 1)
    run.ended(0, 0, 1.0)
    with pytest.raises(ValueError, match="Ended cannot happen to instance 0, done"):
        run.ended(0, 1, 2.0)
    assert run.exit_status == 0


@pytest.mark.parametrize(("status", "code"), [(0, 0), (7, 7), (-15, 143), (-9, 137), (-2, 130)])
def test_codes_are_those_of_a_shell(status: int, code: int) -> None:
    assert exit_code(status) == code


class Processes:
    """What a shell would have: carries the actions out, and looks at the course after each."""

    def __init__(self, run: Course, policy: CoursePolicy) -> None:
        self.run, self.policy = run, policy
        self.alive: set[int] = set()
        self.killed: set[int] = set()

    def do(self, actions: list[Action]) -> None:
        for action in actions:
            if isinstance(action, Start):
                assert action.instance not in self.alive, "never two programs of one instance"
                self.alive.add(action.instance)
            elif isinstance(action, Signal | Kill):
                assert action.instance in self.alive, "only what runs can be told anything"
                self.killed.update([action.instance] if isinstance(action, Kill) else [])
        check(self.run, self.policy)

    def end(self, instance: int, status: int, now: float) -> None:
        self.alive.discard(instance)
        self.do(self.run.ended(instance, -9 if instance in self.killed else status, now))
        self.killed.discard(instance)


@settings(max_examples=100, deadline=None)
@given(st.data())
def test_any_history_ends_with_every_program_accounted_for(data: st.DataObject) -> None:
    policy = CoursePolicy(data.draw(st.sampled_from(["stop", "continue", "restart"])), 5.0, RESTART)
    run = Course(range(data.draw(st.integers(1, 4))), policy)
    processes, now = Processes(run, policy), 0.0
    processes.do(run.begin(now))
    for _ in range(60):
        now += data.draw(st.sampled_from([0.0, 0.3, 4.0, 70.0]))
        processes.do(run.tick(now))
        what = data.draw(st.sampled_from(["end", "end", "end", "signal", "refuse", "kill"]))
        if what == "signal":
            processes.do(run.signalled(15, now))
        elif what == "kill":
            processes.do(run.kill_all(now))
        elif processes.alive:
            instance = data.draw(st.sampled_from(sorted(processes.alive)))
            if what == "refuse":
                processes.do(run.refused(instance, "missed", now))
            else:
                processes.end(instance, data.draw(st.sampled_from([0, 0, 1, -11])), now)
    processes.do(run.kill_all(now))
    for instance in sorted(processes.alive):
        processes.end(instance, -9, now)
    assert run.over
    assert all(one.state in FINAL for one in run.progress())
    clean = all(one.state != "failed" and not one.status for one in run.progress())
    assert (run.exit_status == 0) == clean
