"""Assembling a machine: cores from consistent or contradictory sibling lists, kinds of cores, limits, and anomalies."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from launcher.core.machine.anomalies import NAMED, Anomalies
from launcher.core.machine.assemble import (
    Cpus,
    KindHints,
    RawCpu,
    RawMachine,
    build_machine,
    efficiency_cpus,
    group_cores,
)
from launcher.core.machine.topology import Limits, Node
from launcher.errors import MachineError

ALL = tuple(range(8))


def _reading(
    cpus: dict[int, RawCpu] | None = None,
    *,
    online: Cpus = ALL,
    isolated: Cpus = (),
    nodes: tuple[Node, ...] = (),
    cpuset: Cpus | None = None,
    affinity: Cpus | None = None,
) -> RawMachine:
    said = cpus if cpus is not None else {cpu: RawCpu((cpu % 4, cpu % 4 + 4), 0, ALL) for cpu in online}
    limits = Limits(affinity=affinity)
    return RawMachine("x86_64", None, None, (), ALL, online, isolated, said, nodes, KindHints(), cpuset, limits)


def _groups(sibling_lists: dict[int, Cpus | None]) -> tuple[tuple[Cpus, ...], tuple[str, ...]]:
    anomalies = Anomalies()
    readings = {cpu: RawCpu(siblings) for cpu, siblings in sibling_lists.items()}
    return group_cores(readings, tuple(sorted(sibling_lists)), anomalies), anomalies.sentences()


def test_consistent_sibling_lists_make_cores() -> None:
    assert _groups({0: (0, 2), 1: (1, 3), 2: (0, 2), 3: (1, 3)}) == (((0, 2), (1, 3)), ())


def test_a_sibling_list_may_omit_the_cpu_itself_and_contain_offline_cpus() -> None:
    assert _groups({0: (2, 9), 1: (), 2: (0, 2, 7)}) == (((0, 2), (1,)), ())


def test_a_cpu_without_a_list_joins_the_core_that_lists_it() -> None:
    assert _groups({0: (0, 1), 1: None, 2: None}) == (((0, 1), (2,)), ())


def test_a_contradicted_sibling_list_is_ignored_and_reported() -> None:
    groups, sentences = _groups({0: (0, 1, 2, 3), 1: (0, 1), 2: (2, 3), 3: (2, 3)})
    assert groups == ((0, 1), (2, 3))
    assert len(sentences) == 1
    assert "cpu 0 lists 2-3" in sentences[0]


@given(st.dictionaries(st.integers(0, 11), st.one_of(st.none(), st.lists(st.integers(0, 12)).map(tuple)), min_size=1))
def test_any_sibling_lists_give_a_partition_into_cores(sibling_lists: dict[int, Cpus | None]) -> None:
    groups, _ = _groups(sibling_lists)
    assert sorted(cpu for group in groups for cpu in group) == sorted(sibling_lists)
    assert list(groups) == sorted(groups)
    assert all(list(group) == sorted(group) for group in groups)


@given(st.lists(st.lists(st.integers(0, 40), min_size=1, max_size=4), max_size=10))
def test_cpus_that_list_each_other_are_always_one_core(parts: list[list[int]]) -> None:
    seen: set[int] = set()
    wanted = []
    for part in parts:
        fresh = tuple(sorted(set(part) - seen))
        seen.update(fresh)
        wanted.extend([fresh] if fresh else [])
    sibling_lists: dict[int, Cpus | None] = {cpu: group for group in wanted for cpu in group}
    assert _groups(sibling_lists) == (tuple(sorted(wanted)), ())


def test_more_siblings_than_any_core_has_are_reported() -> None:
    machine = build_machine(_reading({cpu: RawCpu(tuple(range(9))) for cpu in range(9)}, online=tuple(range(9))))
    assert any("more siblings" in warning and "cpus 0-8" in warning for warning in machine.warnings)


def test_usable_cpus_are_online_in_the_cpuset_in_the_mask_and_not_isolated() -> None:
    machine = build_machine(
        _reading(online=(0, 1, 2, 4, 5, 6), isolated=(1, 5), cpuset=(0, 1, 2, 3, 5), affinity=(0, 1, 3, 5, 7))
    )
    assert machine.allowed == (0, 1, 5)
    assert [core.cpus for core in machine.cores] == [(0,)]


def test_requested_isolated_cpus_must_be_in_the_cpuset_but_not_in_the_mask() -> None:
    reading = _reading(isolated=(2, 3, 6, 7), cpuset=(0, 1, 2, 4, 6), affinity=(0, 4))
    machine = build_machine(reading, isolated="use")
    assert machine.allowed == (0, 2, 4, 6)
    assert [core.cpus for core in machine.cores] == [(0, 4), (2, 6)]


def test_a_mask_or_cpuset_of_nothing_but_isolated_cpus_is_used_unless_they_are_to_be_avoided() -> None:
    by_mask = _reading(isolated=(2, 3, 6, 7), affinity=(2, 3))
    by_cpuset = _reading(isolated=(2, 3, 6, 7), cpuset=(2, 6))
    assert [core.cpus for core in build_machine(by_mask).cores] == [(2,), (3,)]
    assert [core.cpus for core in build_machine(by_cpuset).cores] == [(2, 6)]
    for reading in (by_mask, by_cpuset):
        with pytest.raises(MachineError, match="--isolated use"):
            build_machine(reading, isolated="avoid")
    mixed = _reading(isolated=(2, 3), affinity=(1, 2, 3))
    assert [core.cpus for core in build_machine(mixed).cores] == [(1,)]


def test_base_clocks_make_kinds_if_the_highest_clocks_are_equal() -> None:
    base = {cpu: 2_800_000 if cpu < 4 else 2_100_000 for cpu in ALL}
    equal, favoured = dict.fromkeys(ALL, 4_000_000), {cpu: 4_000_000 + 200_000 * (cpu == 0) for cpu in ALL}
    slow = frozenset(range(4, 8))
    assert efficiency_cpus(KindHints(max_khz=equal, base_khz=base), ALL) == slow
    assert efficiency_cpus(KindHints(base_khz=base), ALL) == slow
    assert efficiency_cpus(KindHints(max_khz=favoured, base_khz=base), ALL) == frozenset()
    assert efficiency_cpus(KindHints(max_khz=equal, base_khz=dict.fromkeys(ALL, 2_800_000)), ALL) == frozenset()


def test_a_core_keeps_its_allowed_cpus_in_ascending_order() -> None:
    machine = build_machine(_reading(affinity=(1, 4, 5, 7)))
    assert [(core.id, core.cpus) for core in machine.cores] == [(0, (1, 5)), (1, (4,)), (2, (7,))]


def test_if_no_cpu_is_usable_the_error_names_the_limits_and_a_remedy() -> None:
    with pytest.raises(MachineError, match=r"online 0-7; cpuset 0-3; affinity mask 4-7\. Widen"):
        build_machine(_reading(cpuset=(0, 1, 2, 3), affinity=(4, 5, 6, 7)))


def test_l3_groups_are_distinguished_by_their_cpus() -> None:
    said = {cpu: RawCpu((cpu,), 0, (0, 1, 2, 3) if cpu < 4 else (4, 5, 6, 7) if cpu < 7 else None) for cpu in ALL}
    machine = build_machine(_reading(said))
    assert [core.l3 for core in machine.cores] == [0, 0, 0, 0, 1, 1, 1, None]


@pytest.mark.parametrize(
    ("said", "nodes", "words"),
    [
        ({0: RawCpu((0, 1), 0), 1: RawCpu((0, 1), 1)}, (), ["different packages", "physical_package_id"]),
        ({0: RawCpu((0, 1)), 1: RawCpu((0, 1))}, ((0,), (1,)), ["different nodes", "node*/cpumap"]),
        ({0: RawCpu((0, 1), l3=(0, 1)), 1: RawCpu((0, 1))}, (), ["different L3 caches", "cache/index*"]),
        ({0: RawCpu((0,), l3=(0, 1)), 1: RawCpu((1,), l3=(1,))}, (), ["overlap", "0-1 and 1"]),
        ({0: RawCpu((0,), 0, (0, 1)), 1: RawCpu((1,), 1, (0, 1))}, (), ["span packages", "of packages 0-1"]),
        ({0: RawCpu((0,)), 1: RawCpu((1,))}, ((0, 1), (1,)), ["several nodes", "cpus 1 in nodes 0-1"]),
        ({0: RawCpu((0,)), 1: RawCpu((1,))}, ((0,), ()), ["in no node", "1"]),
        ({0: RawCpu((0,)), 1: RawCpu((1,))}, ((0, 1, 5), ()), ["list offline cpus", "node 0 cpus 5"]),
    ],
)
def test_each_contradiction_is_reported_once_with_cpus_and_files(
    said: dict[int, RawCpu], nodes: tuple[Cpus, ...], words: list[str]
) -> None:
    made = tuple(Node(index, cpus, None) for index, cpus in enumerate(nodes))
    machine = build_machine(_reading(said, online=(0, 1), nodes=made))
    assert len(machine.warnings) == 1
    assert all(word in machine.warnings[0] for word in words), machine.warnings


@pytest.mark.parametrize(
    ("kinds", "slow"),
    [
        (KindHints(), set()),
        (KindHints(efficiency_cpus=(2, 3)), {2, 3}),
        (KindHints(efficiency_cpus=(), capacity={0: 1024, 1: 500, 2: 500, 3: 500}), set()),
        (KindHints(capacity={0: 1024, 1: 1024, 2: 485, 3: 485}), {2, 3}),
        (KindHints(capacity={0: 1024, 1: 1024, 2: 485}), set()),  # not known for all cpus
        (KindHints(max_khz={0: 50, 1: 52, 2: 39, 3: 39}), {2, 3}),
        (KindHints(max_khz={0: 50, 1: 52, 2: 39, 3: 39}, base_khz={0: 19, 1: 19, 2: 14, 3: 14}), {2, 3}),
        (KindHints(max_khz={0: 50, 1: 50, 2: 39, 3: 39}, base_khz=dict.fromkeys(range(4), 20)), set()),
        (KindHints(max_khz=dict.fromkeys(range(4), 0)), set()),
    ],
)
def test_kinds_follow_the_best_evidence(kinds: KindHints, slow: set[int]) -> None:
    assert efficiency_cpus(kinds, (0, 1, 2, 3)) == slow


def test_many_of_a_kind_are_counted_after_the_first_few() -> None:
    anomalies = Anomalies()
    for index in range(NAMED + 5):
        anomalies.add("odd ones: {}", f"cpu {index}")
    anomalies.add("another kind: {}", "braces {} stay")
    assert anomalies.sentences() == (
        "odd ones: cpu 0, cpu 1, cpu 2, cpu 3, cpu 4, cpu 5 and 5 more",
        "another kind: braces {} stay",
    )
