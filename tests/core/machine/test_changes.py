"""What a change of the machine means: what is different, whether the plan fits, when another plan is due."""

from __future__ import annotations

from dataclasses import replace

import pytest

from launcher.core.machine.changes import (
    Asked,
    Capacity,
    ChangeDetector,
    FrontMasks,
    Seen,
    Usage,
    affinity_limit,
    capacity_of,
    differences,
    fallbacks,
    shortfalls,
)
from tests.core.by_hand import machine

FOUR = (0, 1, 2, 3)
NOTHING, REPORT, REPLAN, BOTH = Seen(False, False), Seen(True, False), Seen(False, True), Seen(True, True)


def test_a_change_counts_after_two_equal_readings() -> None:
    detector = ChangeDetector(Capacity(FOUR))
    lower, other = Capacity((0, 1)), Capacity((0, 1), 1.5)
    assert [detector.observe(one, 0.0) for one in (Capacity(FOUR), lower, other, lower)] == [NOTHING] * 4
    assert detector.observe(lower, 1.0) == BOTH
    assert detector.observe(lower, 2.0) == REPLAN  # reported once, and due until it is accounted for
    detector.accounted(lower, 3.0, 10.0)
    assert detector.observe(lower, 4.0) == NOTHING


def test_a_change_that_is_undone_before_the_second_reading_never_counts() -> None:
    detector = ChangeDetector(Capacity(FOUR))
    readings = [Capacity(FOUR), Capacity((0,))] * 5
    assert {detector.observe(one, float(at)) for at, one in enumerate(readings)} == {NOTHING}


def test_the_next_plan_waits_for_the_interval_but_the_report_does_not() -> None:
    detector = ChangeDetector(Capacity(FOUR))
    detector.accounted(Capacity((0, 1)), 100.0, 10.0)
    assert detector.observe(Capacity(FOUR), 101.0) == NOTHING
    assert detector.observe(Capacity(FOUR), 102.0) == NOTHING  # that is the last state that was reported
    assert detector.observe(Capacity((3,)), 103.0) == NOTHING
    assert detector.observe(Capacity((3,)), 104.0) == REPORT
    assert detector.observe(Capacity((3,)), 109.9) == NOTHING
    assert detector.observe(Capacity((3,)), 110.0) == REPLAN


def test_a_failed_attempt_is_repeated_after_its_interval() -> None:
    detector = ChangeDetector(Capacity(FOUR))
    detector.observe(Capacity((0,)), 0.0)
    assert detector.observe(Capacity((0,)), 1.0) == BOTH
    detector.failed(2.0, 60.0)
    assert detector.observe(Capacity((0,)), 61.0) == NOTHING
    assert detector.observe(Capacity((0,)), 62.0) == REPLAN


@pytest.mark.parametrize(
    ("before", "now", "online", "part", "words"),
    [
        (Capacity(FOUR), Capacity((0, 1)), FOUR, "cpus", "cpus 0-3 -> 0-1"),
        (Capacity(FOUR), Capacity((0, 1, 2)), (0, 1, 2), "cpus", "cpus 0-3 -> 0-2 (offline: 3)"),
        (Capacity(FOUR), Capacity(()), FOUR, "cpus", "cpus 0-3 -> none"),
        (Capacity(FOUR), Capacity(FOUR, 1.5), FOUR, "cpu_quota", "cpu quota none -> 1.5 cpus"),
        (Capacity(FOUR, 2.0), Capacity(FOUR), FOUR, "cpu_quota", "cpu quota 2 cpus -> none"),
        (
            Capacity(FOUR, None, (0, 1)),
            Capacity(FOUR, None, (0,)),
            FOUR,
            "memory_nodes",
            "memory nodes 0-1 -> 0",
        ),
        (
            Capacity(FOUR, None, None, 4 << 30),
            Capacity(FOUR, None, None, 3 << 29),
            FOUR,
            "memory_limit",
            "memory limit 4.00 GiB -> 1.50 GiB",
        ),
    ],
)
def test_what_has_changed_in_words(
    before: Capacity, now: Capacity, online: tuple[int, ...], part: str, words: str
) -> None:
    assert differences(before, now, online) == {part: words}
    assert differences(now, now, online) == {}


@pytest.mark.parametrize(
    ("now", "words"),
    [
        (Capacity(FOUR, 4.0, (0,), 4 << 30), ()),
        (Capacity(FOUR, 4.7), ()),
        (Capacity((0, 1)), ("uses cpus 2-3, which are no longer available",)),
        (Capacity(FOUR, 3.9), ("uses 4 cpus, and the cpu quota allows 3.9",)),
        (Capacity(FOUR, None, (1,)), ("uses memory of node 0",)),
        (Capacity(FOUR, None, None, 1 << 30), ("need 2.00 GiB, and the memory limit is 1.00 GiB",)),
        (Capacity((0,), 1.0), ("uses cpus 1-3", "uses 4 cpus")),
    ],
)
def test_why_a_plan_does_not_fit(now: Capacity, words: tuple[str, ...]) -> None:
    found = shortfalls(Usage(FOUR, (0,), 2 << 30), now)
    assert len(found) == len(words)
    assert all(word in sentence for word, sentence in zip(words, found, strict=True))


def test_one_cpu_fits_a_quota_of_less_than_one() -> None:
    assert shortfalls(Usage((0,)), Capacity(FOUR, 0.5)) == ()


@pytest.mark.parametrize(
    ("masks", "before", "limit"),
    [
        # A front that has not bound itself: its mask is the limit, unless it has everything.
        (FrontMasks(FOUR, None, FOUR), None, None),
        (FrontMasks((1,), None, FOUR), None, (1,)),
        (FrontMasks(FOUR, None, FOUR), (1,), None),
        (FrontMasks((0, 1), None, (0, 1)), None, None),  # the cpuset has shrunk
        # One that has bound itself to cpu 0: its own mask says nothing.
        (FrontMasks((0,), (0,), FOUR), None, None),
        (FrontMasks((0,), (0,), FOUR), (0, 1), (0, 1)),
        (FrontMasks((0,), (0, 9), FOUR), None, None),  # the cpuset has taken cpu 9
        (FrontMasks((2, 3), (0,), FOUR), None, (2, 3)),  # taskset -p
        (FrontMasks(FOUR, (0,), FOUR), (2, 3), None),  # lifted again
        (FrontMasks((2, 3), (0,), (2, 3)), None, None),  # the kernel: none of its cpus is left in the cpuset
    ],
)
def test_the_mask_of_the_front_is_a_limit_if_somebody_has_set_it(
    masks: FrontMasks, before: tuple[int, ...] | None, limit: tuple[int, ...] | None
) -> None:
    assert affinity_limit(masks, before, ()) == limit


def test_isolated_cpus_missing_from_the_mask_are_no_limit() -> None:
    assert affinity_limit(FrontMasks((0, 1), None, FOUR), None, (2, 3)) is None


def _tries(asked: Asked, cores: int) -> list[dict[str, object]]:
    return [dict(one) for one in fallbacks(asked, cores)]


def test_options_that_do_not_fit_get_as_many_instances_as_possible() -> None:
    last = {"instances": 1, "reserve_cores": 0}
    assert _tries(Asked(instances=4), 2) == [{}, {"instances": 2}, {"instances": 1}, last]
    assert _tries(Asked(instances=4, reserve_cores=1), 4)[:2] == [{}, {"instances": 3}]
    assert _tries(Asked(instances=3, cores_per_instance=2), 5)[1] == {"instances": 2, "cores_per_instance": 2}
    assert _tries(Asked(cores_per_instance=8), 4)[1] == {"instances": 1}
    assert _tries(Asked(classes="32:2,max:2"), 3)[1] == {"instances": 2}
    assert _tries(Asked(reserve_cores=4), 1)[-1] == last


@pytest.mark.parametrize("cores", [1, 2, 7, 64])
@pytest.mark.parametrize("asked", [Asked(), Asked(64), Asked(None, 4), Asked(None, None, "8:1,max:4"), Asked(2, 3)])
def test_the_options_as_they_are_come_first_and_the_least_demanding_last(asked: Asked, cores: int) -> None:
    tries = _tries(asked, cores)
    assert tries[0] == {}
    assert tries[-1] == {"instances": 1, "reserve_cores": 0}
    counts = [one["instances"] for one in tries[1:]]
    assert counts == sorted(counts, key=lambda count: -int(str(count)))
    assert all(1 <= int(str(count)) <= cores for count in counts)


def test_the_capacity_of_a_machine_has_no_isolated_cpus_unless_they_are_used() -> None:
    one = replace(machine(((4,),)), isolated=(2, 3))
    allowed = one.allowed
    assert set(allowed) > {2, 3}
    assert capacity_of(one, "auto").cpus == tuple(cpu for cpu in allowed if cpu not in (2, 3))
    assert capacity_of(one, "use").cpus == allowed
    assert capacity_of(replace(one, allowed=(2, 3)), "auto").cpus == (2, 3)  # a cpuset with nothing else
