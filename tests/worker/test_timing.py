"""Options are kept if they are not slower, by real measurements of runs whose cost differs a hundredfold."""

from __future__ import annotations

import time

from launcher.worker.timing import TOLERANCE, keep_if_not_slower, shortest_time


class Work:
    """Counts to a number that depends on an option."""

    def __init__(self, without: int, with_option: int) -> None:
        self._steps = {False: without, True: with_option}
        self.option = False
        self.changes: list[bool] = []

    def set_option(self, on: bool) -> None:
        self.option = on
        self.changes.append(on)

    def run(self) -> int:
        return sum(range(self._steps[self.option]))


def test_an_option_that_is_faster_stays_on() -> None:
    work = Work(without=1_000_000, with_option=10_000)

    assert keep_if_not_slower(work.run, work.set_option) is None
    assert work.option


def test_an_option_that_is_slower_is_turned_off_and_its_slowdown_returned() -> None:
    work = Work(without=10_000, with_option=1_000_000)
    slowdown = keep_if_not_slower(work.run, work.set_option)

    assert slowdown is not None
    assert slowdown > 10 * TOLERANCE
    assert not work.option


def test_a_slow_option_gets_as_many_attempts_as_allowed() -> None:
    work = Work(without=10_000, with_option=1_000_000)
    keep_if_not_slower(work.run, work.set_option, attempts=2)

    assert work.changes == [False, True, False, True, False]


def test_the_shortest_of_several_runs_counts_after_one_that_does_not() -> None:
    runs: list[float] = []

    def run() -> None:
        start = time.perf_counter()
        sum(range((1_000, 1_000_000, 1_000_000, 500_000)[len(runs)]))
        runs.append(time.perf_counter() - start)

    seconds = shortest_time(run)

    assert len(runs) == 4
    assert min(runs) == runs[0]
    assert runs[0] < min(runs[1:]) <= seconds
    assert seconds <= max(runs[1:])
