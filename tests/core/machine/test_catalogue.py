"""The catalogue of known machines: every entry is consistent, planned by the rules, and has the published shape."""

from __future__ import annotations

import pytest

from launcher.core.machine.catalogue import (
    CATALOGUE,
    GIB,
    KnownMachine,
    catalogue_text,
    find,
    machine_of,
    nearest_names,
)
from launcher.core.machine.cpuset import format_cpu_list
from launcher.core.machine.topology import Machine
from launcher.core.planning.plan import PlanRequest, make_plan
from tests.core.plan_rules import check_plan

each_entry = pytest.mark.parametrize("known", CATALOGUE, ids=lambda known: known.name)


def machine(name: str) -> Machine:
    known = find(name)
    assert known is not None
    return machine_of(known)


def test_names_are_unique_and_no_entry_lacks_its_source() -> None:
    names = [known.name.lower() for known in CATALOGUE]
    assert len(set(names)) == len(names) >= 20
    assert all(known.source and known.summary for known in CATALOGUE)
    assert "list" not in names


@each_entry
def test_every_entry_is_consistent(known: KnownMachine) -> None:
    processor = known.processor
    assert sum(processor.l3) in (0, processor.cores)
    assert not known.distances or len(known.distances) == len(processor.nodes) * known.packages
    found = machine_of(known)
    # The only warning is the one about typical values: the entry is consistent by the rules for `/sys`.
    assert len(found.warnings) == (1 if known.typical else 0)
    assert all(known.name in warning for warning in found.warnings)
    assert len(found.cores) == processor.cores * known.packages
    assert f"{len(found.cores)} cores" in known.summary or processor.efficiency_cores
    assert {core.package for core in found.cores} == set(range(known.packages))
    assert len({core.l3 for core in found.cores} - {None}) == len(processor.l3) * known.packages
    assert found.memory_bytes == sum(node.memory_bytes or 0 for node in found.nodes)


@each_entry
def test_distances_are_symmetric_unless_published_otherwise_and_smallest_to_the_node_itself(
    known: KnownMachine,
) -> None:
    nodes = machine_of(known).nodes
    for node in nodes:
        assert len(node.distances) == len(nodes)
        assert node.distance(node.id) == 10 == min(distance for _, distance in node.distances)
        assert known.distances or all(node.distance(other.id) == other.distance(node.id) for other in nodes)


@each_entry
@pytest.mark.parametrize("instances", [None, 1, 2, 4, 5, 16])
def test_plans_of_known_machines_keep_the_rules(known: KnownMachine, instances: int | None) -> None:
    found = machine_of(known)
    request = PlanRequest(instances=instances)
    check_plan(found, request, make_plan(found, request))


@each_entry
def test_a_known_machine_survives_json(known: KnownMachine) -> None:
    found = machine_of(known)
    assert Machine.from_json(found.to_json()).to_json() == found.to_json()


@each_entry
def test_no_default_instance_crosses_a_node(known: KnownMachine) -> None:
    found = machine_of(known)
    node_of = {core.id: core.node for core in found.cores}
    assert all(len({node_of[core] for core in one.cores}) == 1 for one in make_plan(found, PlanRequest()).instances)


def plan_of(name: str, instances: int) -> list[tuple[str, int, tuple[int, ...]]]:
    """Cpus, threads and nodes of each instance, without a core for the front."""
    plan = make_plan(machine(name), PlanRequest(instances=instances, reserve_cores=0))
    return [(format_cpu_list(one.cpus), one.threads, one.nodes) for one in plan.instances]


def test_four_instances_on_the_machine_of_the_article_are_two_per_socket() -> None:
    assert plan_of("c5.metal", 4) == [
        ("0-11", 12, (0,)),
        ("12-23", 12, (0,)),
        ("24-35", 12, (1,)),
        ("36-47", 12, (1,)),
    ]


def test_three_instances_per_granite_rapids_socket_get_one_cluster_each() -> None:
    assert sorted(plan_of("xeon-6980p-2s-snc3", 6), key=lambda one: one[2]) == [
        ("0-42", 43, (0,)),
        ("43-85", 43, (1,)),
        ("86-127", 42, (2,)),
        ("128-170", 43, (3,)),
        ("171-213", 43, (4,)),
        ("214-255", 42, (5,)),
    ]


def test_instances_on_rome_take_whole_l3_groups() -> None:
    found = machine("epyc-7742-2s")
    plan = make_plan(found, PlanRequest(instances=32, reserve_cores=0))
    l3_of = {core.id: core.l3 for core in found.cores}
    assert [len({l3_of[core] for core in one.cores}) for one in plan.instances] == [1] * 32
    assert {one.threads for one in plan.instances} == {4}


def test_kinds_of_cores_of_a_desktop_are_kept_apart() -> None:
    found = machine("core-i9-12900k")
    assert [core.cpus for core in found.cores[:2]] == [(0, 1), (2, 3)]
    assert [core.cpus for core in found.cores[8:10]] == [(16,), (17,)]
    assert [core.kind for core in found.cores] == ["performance"] * 8 + ["efficiency"] * 8


@pytest.mark.parametrize(
    ("name", "node", "cpus"),
    [
        ("c5.metal", 0, "0-23,48-71"),
        ("c3-standard-176", 1, "22-43,110-131"),
        ("HB176rs_v4", 3, "132-175"),
        ("xeon-8480-2s-snc4", 1, "14-27,126-139"),
        ("epyc-7763-2s-nps4", 7, "112-127,240-255"),
        ("c8g.metal-48xl", 1, "96-191"),
        ("grace-superchip", 1, "72-143"),
    ],
)
def test_cpus_are_numbered_as_lscpu_prints_them(name: str, node: int, cpus: str) -> None:
    """The expected lists are from published output of `lscpu` and `numactl -H`."""
    found = machine(name).node(node)
    assert found is not None
    assert format_cpu_list(found.cpus) == cpus


def test_l3_groups_of_the_azure_machine_are_those_that_its_host_leaves() -> None:
    found = machine("HB176rs_v4")
    groups = [sum(core.l3 == group for core in found.cores) for group in range(24)]
    assert groups == [6, 8, 8] * 8
    assert [node.memory_bytes for node in found.nodes] == [176 * GIB] * 4


def test_the_listing_has_a_line_for_each_entry() -> None:
    lines = catalogue_text().splitlines()
    assert [line.split()[0] for line in lines] == [known.name for known in CATALOGUE]
    assert max(map(len, lines)) <= 120


def test_similar_names_are_found() -> None:
    assert nearest_names("c6g.meta")[0] == "c6g.metal"
    assert "epyc-9654-2s" in nearest_names("EPYC-9654")
    assert nearest_names("zzzzzz") == ()
