"""The planner on every recorded machine, with a grid of requests, checked against ``plan_rules``."""

from __future__ import annotations

import functools
import itertools

import pytest

from launcher.core.machine.topology import Machine
from launcher.core.planning.length_classes import ClassSpec, parse_classes
from launcher.core.planning.plan import PlanRequest, make_plan
from launcher.errors import MachineError
from launcher.host.machine.sysfs import read_machine
from tests.core.plan_rules import check_plan
from tests.machines import each_recorded, recorded


@functools.cache
def read(name: str) -> Machine:
    return read_machine(recorded(name))


@each_recorded()
def test_any_number_of_instances_keeps_the_rules(name: str) -> None:
    machine = read(name)
    cores = len(machine.cores)
    counts = {None, 1, 2, 3, 4, 7, 8, max(1, len(machine.nodes)), cores, cores + 1}
    for count, reserve in itertools.product(sorted(counts, key=lambda count: count or 0), (None, 0, 1)):
        request = PlanRequest(instances=count, reserve_cores=reserve)
        least = (count or 1) + (reserve or 0)
        if least > cores:
            with pytest.raises(MachineError, match=str(cores)):
                make_plan(machine, request)
        else:
            check_plan(machine, request, make_plan(machine, request))


@each_recorded()
def test_more_instances_than_cores_share_them_on_request(name: str) -> None:
    machine = read(name)
    request = PlanRequest(instances=2 * len(machine.cores) + 1, oversubscribe=True)
    plan = make_plan(machine, request)
    check_plan(machine, request, plan)
    assert {one.threads for one in plan.instances} == {1}
    assert any("share" in warning for warning in plan.warnings)


@each_recorded()
def test_classes_get_their_cores_or_a_reason(name: str) -> None:
    machine = read(name)
    cores = len(machine.cores)
    lists = [
        parse_classes("32:1,max:1"),
        parse_classes("32:8,384:16,max:24"),
        (ClassSpec(32, max(1, cores // 4)), ClassSpec(None, max(1, cores // 2))),
        (ClassSpec(32, max(1, cores - cores // 2)), ClassSpec(None, max(1, cores // 2))),
        (ClassSpec(None, cores),),
    ]
    for classes, reserve in itertools.product(lists, (None, 0, 1)):
        request = PlanRequest(classes=classes, reserve_cores=reserve, length_limit=512)
        if sum(spec.cores for spec in classes) + (reserve or 0) > cores:
            with pytest.raises(MachineError, match=str(cores)):
                make_plan(machine, request)
            continue
        try:
            plan = make_plan(machine, request)
        except MachineError as error:
            if "are not mixed" in str(error) and len({core.kind for core in machine.cores}) > 1:
                continue
            raise
        check_plan(machine, request, plan)
        first, last = plan.instances[0].length_class, plan.instances[-1].length_class
        assert first is not None
        assert last is not None
        assert (first.min_length, last.max_length) == (1, 512)


@each_recorded()
def test_any_instance_size_up_to_the_largest_kind_is_planned(name: str) -> None:
    machine = read(name)
    kinds = {core.kind for core in machine.cores}
    largest = max(sum(core.kind == kind for core in machine.cores) for kind in kinds)
    for size in {1, 2, 5, largest // 2, largest} - {0}:
        request = PlanRequest(cores_per_instance=size)
        if size > largest:
            with pytest.raises(MachineError, match=f"--cores-per-instance {size}"):
                make_plan(machine, request)
        else:
            check_plan(machine, request, make_plan(machine, request))


@each_recorded()
def test_default_instances_never_span_nodes(name: str) -> None:
    machine = read(name)
    plan = make_plan(machine, PlanRequest())
    nodes = {core.id: core.node for core in machine.cores}
    assert all(len({nodes[core] for core in one.cores}) == 1 for one in plan.instances)
