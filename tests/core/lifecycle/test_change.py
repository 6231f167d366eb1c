"""The order of a rolling change: who stops before whom starts, and under which ids."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from launcher.core.lifecycle.change import CHANGE_TRANSITIONS, Step, replace_steps, restart_steps
from launcher.core.planning.length_classes import LengthClass

SHORT, LONG = LengthClass(1, 32), LengthClass(33, None)


def present(ids: set[int], steps: tuple[Step, ...]) -> list[set[int]]:
    """The ids of the instances after each stop and start; fails if an id is taken twice."""
    history, now = [], set(ids)
    for step in steps:
        assert set(step.first) <= now
        now -= set(step.first)
        history.append(set(now))
        assert not now & set(step.start.values()), "an id is used twice"
        now |= set(step.start.values())
        assert set(step.last) <= now
        now -= set(step.last)
        history.append(set(now))
    return history


def test_a_restart_replaces_one_instance_after_another_under_the_same_ids() -> None:
    steps = restart_steps([(0, None), (1, None), (2, None)], beside=True)
    assert steps == (Step((0,), {0: 0}), Step((1,), {1: 1}), Step((2,), {2: 2}))


def test_the_only_instance_of_its_class_is_started_first_if_memory_allows() -> None:
    instances = [(0, SHORT), (1, SHORT), (2, LONG)]
    assert restart_steps(instances, beside=True)[2] == Step((), {2: 3}, (2,))
    assert restart_steps(instances, beside=False)[2] == Step((2,), {2: 2})


def test_a_new_plan_starts_beside_the_old_one_or_in_its_place() -> None:
    assert replace_steps([0, 1], 1, beside=True) == (Step((), {0: 2}, (0, 1)),)
    assert replace_steps([0, 1], 1, beside=False) == (Step((0,), {0: 0}), Step((1,), {}))
    assert replace_steps([3], 2, beside=False) == (Step((3,), {0: 0}), Step((), {1: 1}))
    assert replace_steps([], 1, beside=False) == (Step((), {0: 0}),)


@given(st.sets(st.integers(0, 9)), st.integers(1, 8), st.booleans())
def test_a_new_plan_replaces_every_instance_once(old: set[int], new: int, beside: bool) -> None:
    steps = replace_steps(sorted(old), new, beside=beside)
    history = present(old, steps)
    assert len(history[-1]) == new
    assert sorted(position for step in steps for position in step.start) == list(range(new))
    assert sorted(id for step in steps for id in (*step.first, *step.last)) == sorted(old)
    if beside or len(old) > 1:
        assert all(history) or not old, "all instances are down at once"
    if not beside:
        assert max(map(len, history)) <= max(len(old), new), "more instances than one of the plans has"


@given(st.dictionaries(st.integers(0, 9), st.sampled_from([None, SHORT, LONG]), min_size=1), st.booleans())
def test_a_restart_replaces_every_instance_once(old: dict[int, LengthClass | None], beside: bool) -> None:
    history = present(set(old), restart_steps(sorted(old.items()), beside=beside))
    assert len(history[-1]) == len(old)
    assert all(history) or (len(old) == 1 and not beside)


def test_a_change_ends_in_the_new_state_or_in_the_old_one() -> None:
    assert CHANGE_TRANSITIONS.final == {"new", "old"}
