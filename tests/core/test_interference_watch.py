"""When a server warns about other programs on its planned cpus, and how often."""

from __future__ import annotations

import pytest

from launcher.core.diagnosis.facts import Program
from launcher.core.diagnosis.interference_watch import CpuTime, InterferenceWarnings, foreign_cpus, is_noticeable

PLANNED = (0, 1)


def program(pid: int, share: float = 1.0, cpus: tuple[int, ...] = (0,), name: str = "yes") -> Program:
    return Program(pid, name, cpus, share)


def pids(warnings: InterferenceWarnings, programs: list[Program], at: float) -> list[int | None]:
    return [None if one is None else one.pid for one, _ in warnings.about(programs, PLANNED, at)]


def test_foreign_cpu_time_is_what_the_own_processes_do_not_explain() -> None:
    assert foreign_cpus(CpuTime(5.0, 3.0, 10.0), CpuTime(20.0, 8.0, 20.0)) == 1.0
    assert foreign_cpus(CpuTime(5.0, 3.0, 10.0), CpuTime(10.0, 9.0, 20.0)) == 0.0  # the front ran elsewhere


@pytest.mark.parametrize(("foreign", "planned", "noticed"), [(0.1, 2, False), (0.5, 2, True), (1.0, 64, False)])
def test_usual_background_activity_is_not_noticed(foreign: float, planned: int, noticed: bool) -> None:
    assert is_noticeable(foreign, planned) is noticed


def test_each_program_is_named_at_most_once_a_minute_and_less_often_if_it_stays() -> None:
    warnings = InterferenceWarnings()
    times = [at for at in range(0, 2000, 10) if pids(warnings, [program(7)], float(at))]
    assert times[:5] == [0, 60, 180, 420, 900]
    assert pids(warnings, [program(8), program(7)], 2000.0) == [8, 7] or pids(warnings, [program(8)], 2000.0) == []


def test_idle_programs_and_those_elsewhere_are_not_named_and_few_of_many_are() -> None:
    warnings = InterferenceWarnings()
    idle, elsewhere, pinned = program(1, 0.1, (0, 5)), program(2, 1.0, (5, 6)), program(3, 0.1)
    busy = [program(10 + number, 0.3 + number / 100, (0, 5)) for number in range(9)]
    assert pids(warnings, [idle, elsewhere, *busy, pinned], 0.0) == [3, 18, 17, 16]


def test_load_without_a_visible_program_is_said_too() -> None:
    ((found, sentence),) = InterferenceWarnings().about([], PLANNED, 0.0)
    assert found is None
    assert "another container" in sentence


def test_the_name_of_a_program_cannot_forge_a_line() -> None:
    ((_, sentence),) = InterferenceWarnings().about([program(7, name="evil\nERROR")], PLANNED, 0.0)
    assert "\n" not in sentence
    assert "pid 7, evil\\nERROR, affinity 0" in sentence
