"""The invariants of every plan, whatever the machine and the request; written from the specification, not from the
planner's code. A failure names the rule and the instance that breaks it.
"""

from __future__ import annotations

import msgspec

from launcher.core.machine.topology import Core, Machine, Node
from launcher.core.planning.plan import InstancePlan, Plan, PlanRequest, front_cpus, make_plan


def check_plan(machine: Machine, request: PlanRequest, plan: Plan) -> None:
    """Raises ``AssertionError`` for the first rule that ``plan`` breaks."""
    check_cores(machine, request, plan)
    check_memory(machine, plan)
    check_words(machine, request, plan)
    if not request.mix_kinds:
        for one in plan.instances:
            assert len({core.kind for core in cores_of(machine, one)}) == 1, f"kinds are mixed: {one}"
    if request.instances is not None and request.cores_per_instance is None and not is_shared(plan):
        check_equal(machine, request, plan)
    if request.cores_per_instance is not None:
        assert {one.threads for one in plan.instances} == {request.cores_per_instance}
    if request.classes:
        assert [one.threads for one in plan.instances] == [spec.cores for spec in request.classes]
    assert make_plan(machine, request) == plan, "planning is not deterministic"
    document = msgspec.json.decode(msgspec.json.encode(plan.to_json()))
    assert Plan.from_json(document, machine, plan.warnings) == plan


def cores_of(machine: Machine, instance: InstancePlan) -> list[Core]:
    by_id = {core.id: core for core in machine.cores}
    return [by_id[core] for core in instance.cores]


def is_shared(plan: Plan) -> bool:
    cpus = [cpu for one in plan.instances for cpu in one.cpus]
    return len(cpus) != len(set(cpus))


def check_cores(machine: Machine, request: PlanRequest, plan: Plan) -> None:
    assert [one.id for one in plan.instances] == list(range(len(plan.instances)))
    owner = {cpu: core.id for core in machine.cores for cpu in core.cpus}
    used = [cpu for one in plan.instances for cpu in one.cpus]
    if not request.oversubscribe:
        assert len(used) == len(set(used)), "a core has two instances"
    groups = [set(used), set(plan.reserved_cpus), set(plan.unused_cpus)]
    assert len(plan.reserved_cpus) == len(groups[1])
    assert len(plan.unused_cpus) == len(groups[2])
    assert sum(map(len, groups)) == len(set().union(*groups)), "a core is exactly one of used, reserved and unused"
    assert set().union(*groups) == {core.cpus[0] for core in machine.cores}, "a core is missing"
    assert set().union(*groups) <= set(machine.allowed)
    for one in plan.instances:
        assert one.cpus == tuple(sorted(one.cpus))
        assert one.cpus == tuple(core.cpus[0] for core in cores_of(machine, one))
        assert one.threads == len(one.cpus) == len({owner[cpu] for cpu in one.cpus}) >= 1
    quota = machine.limits.cpu_quota
    if quota is not None:
        assert len(set(used)) + len(plan.reserved_cpus) <= max(1, int(quota))
        running = set(used) | set(front_cpus(machine, plan) or owner)
        assert len(running) <= max(1, int(quota + 0.5)), "instances and front together can use more than the quota"
    front = set(front_cpus(machine, plan))
    assert front <= set(owner)
    if plan.reserved_cpus:
        assert front
        assert front <= {cpu for cpu in owner if owner[cpu] in {owner[first] for first in plan.reserved_cpus}}
    if request.reserve_cores is not None:
        assert len(plan.reserved_cpus) == request.reserve_cores


def check_memory(machine: Machine, plan: Plan) -> None:
    allowed = machine.limits.memory_nodes
    usable = {
        node.id: node for node in machine.nodes if node.memory_bytes != 0 and (allowed is None or node.id in allowed)
    }
    for one in plan.instances:
        own = {core.node for core in cores_of(machine, one)} - {None}
        expected = "local" if not one.nodes else "bind" if len(one.nodes) == 1 else "interleave"
        assert one.memory == expected
        assert set(one.nodes) <= set(usable)
        if not usable or not own:
            assert one.nodes == ()
            continue
        assert own & set(usable) <= set(one.nodes), "the memory of one of its own nodes is not used"
        nearest = {node: nearest_distance(machine, node, usable) for node in own}
        for node in own - set(usable):
            assert any(machine.node(node).distance(other) == nearest[node] for other in one.nodes)  # type: ignore[union-attr, arg-type]
        assert len(one.nodes) <= len(own)


def nearest_distance(machine: Machine, node: int | None, usable: dict[int, Node]) -> int:
    found = machine.node(node) if node is not None else None
    assert found is not None
    return min(found.distance(other) for other in usable)


def check_words(machine: Machine, request: PlanRequest, plan: Plan) -> None:
    for one in plan.instances:
        assert one.why.endswith(".")
        assert one.why[0].isupper() or one.why.startswith("--")
    for warning in plan.warnings:
        assert warning.endswith(".")
        assert warning[0].isupper() or warning[0].isdigit()
    said = any("front shares" in warning for warning in plan.warnings)
    owner = {cpu: core.id for core in machine.cores for cpu in core.cpus}
    front = {owner[cpu] for cpu in front_cpus(machine, plan) or owner}
    shares = bool(front & {owner[cpu] for one in plan.instances for cpu in one.cpus})
    assert said == (shares and request.reserve_cores != 0), "the warning about sharing with the front is wrong"


def check_equal(machine: Machine, request: PlanRequest, plan: Plan) -> None:
    """Rules for ``--instances N`` alone."""
    assert len(plan.instances) == request.instances
    sizes = [one.threads for one in plan.instances]
    assert max(sizes) - min(sizes) <= 1, f"sizes differ: {sizes}"
    taken = {cpu for one in plan.instances for cpu in one.cpus}
    front = set(plan.reserved_cpus)
    rooms: dict[tuple[str, int | None], list[Core]] = {}
    for core in machine.cores:
        if core.cpus[0] not in front and core.cpus[0] not in over_quota(machine, plan):
            rooms.setdefault((core.kind, core.node), []).append(core)
    for one in plan.instances:
        cores = cores_of(machine, one)
        if len({core.node for core in cores}) > 1:
            largest = max(len(room) for (kind, _), room in rooms.items() if kind == cores[0].kind)
            assert one.threads > largest, f"fits in one node but spans several: {one}"
    for room in rooms.values():
        check_filled_in_order(room, plan, taken)
    if len(rooms) == 1:
        assert not (set(plan.unused_cpus) - over_quota(machine, plan)), "cores of the only node are unused"
    if len({kind for kind, _ in rooms}) == 1 and not spanning(machine, plan):
        check_proportional(machine, plan, {node: len(room) for (_, node), room in rooms.items()})


def over_quota(machine: Machine, plan: Plan) -> set[int]:
    """The cores that a quota may forbid: with a quota, any unused core."""
    quota = machine.limits.cpu_quota
    return set(plan.unused_cpus) if quota is not None and int(quota) < len(machine.cores) else set()


def spanning(machine: Machine, plan: Plan) -> bool:
    return any(len({core.node for core in cores_of(machine, one)}) > 1 for one in plan.instances)


def check_filled_in_order(room: list[Core], plan: Plan, taken: set[int]) -> None:
    """In a node, the cores of an L3 group are used only if the group before it is full."""
    groups: dict[int | None, list[bool]] = {}
    for core in sorted(room, key=lambda core: core.cpus[0]):
        groups.setdefault(core.l3 if core.l3 is not None else core.package, []).append(core.cpus[0] in taken)
    states = ["full" if all(used) else "partial" if any(used) else "empty" for used in groups.values()]
    assert states.count("partial") <= 1, f"several L3 groups are partly used: {states}"
    assert states == sorted(states, key=["full", "partial", "empty"].index), f"a gap between L3 groups: {states}"


def check_proportional(machine: Machine, plan: Plan, rooms: dict[int | None, int]) -> None:
    counts = dict.fromkeys(rooms, 0)
    for one in plan.instances:
        counts[cores_of(machine, one)[0].node] += 1
    total = sum(rooms.values())
    for node, count in counts.items():
        fair = len(plan.instances) * rooms[node] / total
        # The front's cores may be taken from either side of the division.
        assert abs(count - fair) < 1.0 + len(plan.reserved_cpus), f"node {node}: {count} instances, {fair:.2f} fair"
