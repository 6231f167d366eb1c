"""The plan: which cores and which memory each instance gets, with the reason for each decision.

A pure function of machine and request; frozen values, to and from JSON. ``allocation`` decides about cores and
``memory`` about memory; this module combines them, and writes the reasons and warnings.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from math import inf
from typing import Any, Literal

from launcher.core.machine.cpuset import format_cpu_list
from launcher.core.machine.topology import Core, Machine
from launcher.core.planning import partition
from launcher.core.planning.allocation import (
    Allocation,
    count_cores,
    count_using_all_cores,
    default_candidates,
    equal,
    exact,
    in_node_order,
    kind_text,
    max_count_of_size,
    oversubscribed,
)
from launcher.core.planning.length_classes import ClassSpec, LengthClass, resolve_classes
from launcher.core.planning.memory_check import MemoryDemand, MemoryNodes, check_memory, fits_memory
from launcher.core.planning.placement import Distances, KindCores, closest_cores, count_packages, group_by_kind
from launcher.errors import MachineError, UsageError

MemoryPolicy = Literal["bind", "interleave", "local"]

# With fewer cores, reserving one for the front would cost the instances more than sharing does.
RESERVE_MIN_CORES = 8
# The event loop is one thread and needs one core; from this many cores on, tokenizing keeps a second one busy.
RESERVE_TWO_MIN_CORES = 64
# The cpu time that a front needs, in cpus: a minimum, and an amount per core of the instances. Measured next to the
# fastest worker, with a margin (docs/decisions/0006-front-under-a-quota.md). A quota that leaves this much has room for
# the front.
FRONT_MIN_CPUS, FRONT_CPUS_PER_CORE = 1 / 2, 1 / 3


@dataclass(frozen=True, slots=True)
class PlanRequest:
    """What the user asked for. ``None`` means automatic.

    ``classes`` excludes ``instances`` and ``cores_per_instance``. ``length_limit`` is the longest sequence that the
    model accepts, in tokens; ``instance_bytes`` is the memory that one instance is expected to need.
    """

    instances: int | None = None
    cores_per_instance: int | None = None
    classes: tuple[ClassSpec, ...] = ()
    reserve_cores: int | None = None
    oversubscribe: bool = False
    mix_kinds: bool = False
    length_limit: int | None = None
    instance_bytes: int | None = None


@dataclass(frozen=True, slots=True)
class InstancePlan:
    """One instance: ``cpus`` holds the first allowed cpu of each of its ``cores``, with one thread on each.

    ``memory`` is ``bind``, or ``interleave`` over several nodes, or ``local`` if the machine has no nodes.
    """

    id: int
    cores: tuple[int, ...]
    cpus: tuple[int, ...]
    threads: int
    nodes: tuple[int, ...]
    memory: MemoryPolicy
    length_class: LengthClass | None
    why: str

    def to_json(self) -> dict[str, Any]:
        """One entry of ``plan.instances`` in the topology report, without command and environment."""
        return {
            "id": self.id,
            "cpus": list(self.cpus),
            "threads": self.threads,
            "nodes": list(self.nodes),
            "memory": self.memory,
            "class": self.length_class and self.length_class.to_json(),
            "why": self.why,
        }


@dataclass(frozen=True, slots=True)
class Plan:
    """All instances, and the remaining cores. Every usable core is in an instance, reserved, or unused.

    Like ``InstancePlan.cpus``, ``reserved_cpus`` and ``unused_cpus`` hold the first allowed cpu of each core.
    """

    instances: tuple[InstancePlan, ...]
    reserved_cpus: tuple[int, ...]
    unused_cpus: tuple[int, ...]
    warnings: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """The ``plan`` object of the topology report, schema 1; the report adds commands and environments."""
        return {
            "instances": [instance.to_json() for instance in self.instances],
            "reserved_cpus": list(self.reserved_cpus),
            "unused_cpus": list(self.unused_cpus),
        }

    @classmethod
    def from_json(cls, document: dict[str, Any], machine: Machine, warnings: Sequence[str] = ()) -> Plan:
        """The plan that ``to_json`` wrote for ``machine``. Raises ``UsageError`` if it does not fit the machine.

        ``warnings`` are not part of the ``plan`` object of a report and are passed in.
        """
        core_of = {core.cpus[0]: core.id for core in machine.cores}
        try:
            return cls(
                instances=tuple(_instance_from_json(entry, core_of) for entry in document["instances"]),
                reserved_cpus=tuple(document["reserved_cpus"]),
                unused_cpus=tuple(document["unused_cpus"]),
                warnings=tuple(warnings),
            )
        except (KeyError, TypeError, AttributeError) as error:
            raise UsageError(
                f"this is not a plan for a machine with the cpus {format_cpu_list(core_of)}: {error!r}; "
                "make one with launch topology --json on that machine"
            ) from error


def _instance_from_json(entry: dict[str, Any], core_of: dict[int, int]) -> InstancePlan:
    length_class = entry["class"]
    return InstancePlan(
        id=entry["id"],
        cores=tuple(core_of[cpu] for cpu in entry["cpus"]),
        cpus=tuple(entry["cpus"]),
        threads=entry["threads"],
        nodes=tuple(entry["nodes"]),
        memory=entry["memory"],
        length_class=None if length_class is None else LengthClass.from_json(length_class),
        why=entry["why"],
    )


def front_cpus(machine: Machine, plan: Plan) -> tuple[int, ...]:
    """The cpus that the front is bound to; empty: any cpu that this process may use.

    These are all hardware threads of the reserved cores. Under a cpu quota, front and instances together get no more
    cpus than they can use without being throttled: the front gets cpus of its own as far as the quota has room for
    them, and otherwise shares those of the instances.
    """
    reserved = [core for core in machine.cores if core.cpus[0] in set(plan.reserved_cpus)]
    quota = _bounding_quota(machine)
    if quota is None:
        return tuple(sorted(cpu for core in reserved for cpu in core.cpus))
    taken = {cpu for instance in plan.instances for cpu in instance.cpus}
    unused = [core for core in machine.cores if core.cpus[0] in set(plan.unused_cpus)]
    firsts = [core.cpus[0] for core in reserved or unused]
    siblings = [cpu for core in reserved or machine.cores for cpu in core.cpus[1:]]
    own = [*firsts, *siblings][: _room_for_front(quota, len(taken))]
    return tuple(sorted(own or taken))


def _bounding_quota(machine: Machine) -> float | None:
    """The cpu quota; None if there is none, or if all cpus together cannot exceed it."""
    quota = machine.limits.cpu_quota
    return quota if quota is not None and int(quota) < sum(len(core.cpus) for core in machine.cores) else None


def _room_for_front(quota: float, used: int) -> int:
    """How many cpus a quota leaves for the front when the instances use ``used``: whole cpus, or one for a
    sufficient fraction."""
    left = quota - used
    return max(int(left), int(left >= max(FRONT_MIN_CPUS, FRONT_CPUS_PER_CORE * used)))


def make_plan(machine: Machine, request: PlanRequest) -> Plan:
    """The plan for this machine and this request; deterministic.

    Raises ``UsageError`` for a contradictory request and ``MachineError`` for one that this machine cannot satisfy.
    """
    _check_request(request)
    if not machine.cores:
        raise MachineError(
            "a plan needs at least 1 core, but this process may not use any core of this machine; "
            "check the cpuset, the affinity mask and isolated cpus"
        )
    return _Planner(machine, request).plan()


def _check_request(request: PlanRequest) -> None:
    for name, value, least in (
        ("--instances", request.instances, 1),
        ("--cores-per-instance", request.cores_per_instance, 1),
        ("--reserve-cores", request.reserve_cores, 0),
    ):
        if value is not None and value < least:
            raise UsageError(f"{name} {value}: must be at least {least}")
    if request.classes and (request.instances is not None or request.cores_per_instance is not None):
        raise UsageError(
            "--classes sets the number of instances and their cores; omit --instances and --cores-per-instance"
        )
    if request.oversubscribe and (request.classes or (request.cores_per_instance or 1) > 1):
        raise UsageError(
            "--oversubscribe gives each instance one thread on a shared core; "
            "combine it with --instances only, not with --classes or --cores-per-instance"
        )


class _Planner:
    """The facts that the steps of one ``make_plan`` call share, and the warnings that they collect."""

    def __init__(self, machine: Machine, request: PlanRequest) -> None:
        self.machine = machine
        self.request = request
        self.distances = Distances(machine)
        self.memory = MemoryNodes(machine, self.distances)
        self.warnings: list[str] = []
        self.has_kinds = len({core.kind for core in machine.cores}) > 1
        self.kinds = self.group(self.cores_within_quota())
        self.total = count_cores(self.kinds)

    def plan(self) -> Plan:
        allocation = self.allocate()
        reasons, classes = self.reasons(allocation), self.classes(len(allocation.instances))
        instances = tuple(
            self.instance(index, cores, reason, length_class)
            for index, (cores, reason, length_class) in enumerate(
                zip(allocation.instances, reasons, classes, strict=True)
            )
        )
        self.check_memory(allocation)
        self.warn_about_front(allocation)
        self.warn_about_unused(allocation)
        self.warn_about_nodes(allocation)
        used = {core.id for cores in (*allocation.instances, allocation.front) for core in cores}
        return Plan(
            instances=instances,
            reserved_cpus=tuple(sorted(core.cpus[0] for core in allocation.front)),
            unused_cpus=tuple(sorted(core.cpus[0] for core in self.machine.cores if core.id not in used)),
            warnings=tuple(self.warnings),
        )

    @property
    def bounding_quota(self) -> float | None:
        return _bounding_quota(self.machine)

    def group(self, cores: Iterable[Core]) -> tuple[KindCores, ...]:
        return group_by_kind(cores, self.distances, mix_kinds=self.request.mix_kinds)

    def cores_within_quota(self) -> tuple[Core, ...]:
        """The cores to plan with: as many as the cpu quota allows."""
        quota = self.machine.limits.cpu_quota
        usable = self.machine.cores
        if quota is None or int(quota) >= len(usable):
            return usable
        count = max(1, int(quota))
        if quota < 1:
            self.warnings.append(
                f"The cpu quota allows {quota:g} cpus, less than one core. The plan uses one of {len(usable)} cores; "
                "under load the kernel throttles it in every period. Raise the quota to avoid that."
            )
        else:
            self.warnings.append(
                f"The cpu quota allows {quota:g} cpus, so the plan uses {count} of {len(usable)} cores; "
                "the kernel would throttle more threads than that in every period."
            )
        return closest_cores(self.machine, self.distances, count)

    # -- which cores for which instance -------------------------------------------------------------------------

    def allocate(self) -> Allocation:
        request = self.request
        asked = request.reserve_cores or 0
        if asked >= self.total:
            raise MachineError(
                f"--reserve-cores {asked}: the machine has {self.available_text()}, and an instance needs at least 1; "
                f"use at most {self.total - 1}"
            )
        if request.classes:
            return self.allocate_exact([spec.cores for spec in request.classes])
        if request.cores_per_instance is not None:
            return self.allocate_sized(request.cores_per_instance)
        if request.instances is None:
            return self.allocate_default()
        if request.instances <= self.total - asked:
            return equal(self.kinds, request.instances, self.reserve(request.instances))
        if request.oversubscribe:
            return oversubscribed(self.kinds, request.instances, asked)
        raise MachineError(self.too_many_instances(request.instances, self.total - asked))

    def reserve(self, needed: int) -> int:
        """How many cores the front gets if the instances need at least ``needed``."""
        if self.request.reserve_cores is not None:
            return self.request.reserve_cores
        wanted = 2 if self.total >= RESERVE_TWO_MIN_CORES else 1 if self.total >= RESERVE_MIN_CORES else 0
        return min(wanted, self.total - needed)

    def allocate_sized(self, size: int) -> Allocation:
        largest = max(sum(one.size for one in kind) for kind in self.kinds)
        if size > largest:
            raise MachineError(
                f"--cores-per-instance {size}: the machine has {self.available_text()}; "
                f"the largest possible instance has {_number(largest, 'core')}"
            )
        reserve = self.request.reserve_cores or 0
        count = self.request.instances or max_count_of_size(self.kinds, size, reserve)
        return self.allocate_exact([size] * count)

    def allocate_exact(self, wanted: list[int]) -> Allocation:
        room = self.total - (self.request.reserve_cores or 0)
        if sum(wanted) > room:
            raise MachineError(self.too_many_cores(wanted, room))
        found = exact(self.kinds, wanted, self.reserve(sum(wanted)), self.distances, self.longest_first(wanted))
        return in_node_order(found, self.request.classes or [None] * len(wanted))

    def longest_first(self, wanted: Sequence[int]) -> list[int]:
        """The order in which instances choose their kind of cores: long texts gain most from performance cores."""
        limits = [spec.max_length or inf for spec in self.request.classes] or [inf] * len(wanted)
        return sorted(range(len(wanted)), key=lambda index: (-limits[index], -wanted[index], index))

    def allocate_default(self) -> Allocation:
        """The best allocation that fits in memory; if none fits, the one that needs least, which the memory check then
        rejects with the reason."""
        candidates = default_candidates(self.kinds, self.reserve(1))
        best = chosen = next(candidates)
        while not self.memory_fits(chosen) and (following := next(candidates, None)):
            chosen = following
        if len(chosen.instances) != len(best.instances):
            self.warnings.append(
                f"Memory allows {_number(len(chosen.instances), 'instance')} of this model; "
                f"the cores alone would allow {len(best.instances)}."
            )
        return chosen

    def memory_fits(self, allocation: Allocation) -> bool:
        return self.request.instance_bytes is None or fits_memory(self.machine, self.demand(allocation))

    # -- memory -------------------------------------------------------------------------------------------------

    def check_memory(self, allocation: Allocation) -> None:
        if self.request.instance_bytes is not None:
            check_memory(self.machine, self.demand(allocation), self.fewer_that_fit)

    def demand(self, allocation: Allocation) -> MemoryDemand:
        nodes = tuple(self.memory.nodes_for(core.node for core in cores) for cores in allocation.instances)
        return MemoryDemand(nodes, self.request.instance_bytes or 0)

    def fewer_that_fit(self, count: int) -> int | None:
        """The largest number of instances up to ``count`` that fits in memory; None if the request has classes, whose
        number follows from them. The nodes of the instances depend on their number, so each number is tried."""
        if self.request.classes:
            return None
        size = self.request.cores_per_instance
        for fewer in range(count, 0, -1):
            allocation = self.allocate_exact([size] * fewer) if size else equal(self.kinds, fewer, self.reserve(fewer))
            if fits_memory(self.machine, self.demand(allocation)):
                return fewer
        return 0

    def instance(
        self, index: int, share: Sequence[Core], reason: str, length_class: LengthClass | None
    ) -> InstancePlan:
        cores = sorted(share, key=lambda core: core.cpus[0])
        own = {core.node for core in cores}
        nodes = self.memory.nodes_for(own)
        policy: MemoryPolicy = "local" if not nodes else "bind" if len(nodes) == 1 else "interleave"
        return InstancePlan(
            id=index,
            cores=tuple(core.id for core in cores),
            cpus=tuple(core.cpus[0] for core in cores),
            threads=len(cores),
            nodes=nodes,
            memory=policy,
            length_class=length_class,
            why=f"{reason}: {self.where(cores)}, {_memory_reason(nodes, own)}.",
        )

    def classes(self, count: int) -> Sequence[LengthClass | None]:
        request = self.request
        return resolve_classes(request.classes, request.length_limit) if request.classes else [None] * count

    # -- reasons ------------------------------------------------------------------------------------------------

    def reasons(self, allocation: Allocation) -> list[str]:
        """Why each instance exists and has this size."""
        request = self.request
        if request.classes:
            classes = resolve_classes(request.classes, request.length_limit)
            asked = (f"--classes requests {_number(spec.cores, 'core')}" for spec in request.classes)
            return [
                f"{text} for {_range_text(length_class)}" for text, length_class in zip(asked, classes, strict=True)
            ]
        if request.cores_per_instance is not None:
            return [f"--cores-per-instance requests {_number(len(cores), 'core')}" for cores in allocation.instances]
        count = len(allocation.instances)
        if count > self.total - len(allocation.front):
            return _shared_reasons(allocation)
        here = Counter(_node_of(cores) for cores in allocation.instances)
        return [_equal_reason(count, here[_node_of(cores)], _node_of(cores)) for cores in allocation.instances]

    def where(self, cores: Sequence[Core]) -> str:
        """The location of these cores in words, with their kind if the machine has several."""
        kind = f"{cores[0].kind} " if self.has_kinds and len({core.kind for core in cores}) == 1 else ""
        parts = [_number(len(cores), f"{kind}core")]
        groups = {core.l3 for core in cores}
        if None not in groups:
            parts.append("in one L3 group" if len(groups) == 1 else f"in {len(groups)} L3 groups")
        nodes = {core.node for core in cores}
        if len(nodes) > 1:
            parts.append(f"of {_nodes_text(nodes)}")
        return " ".join(parts)

    def available_text(self) -> str:
        """The available cores, in words: ``48 usable cores in 2 nodes``."""
        text = _number(self.total, "usable core")
        nodes = {one.node for kind in self.kinds for one in kind}
        if len(nodes) > 1:
            text += f" in {len(nodes)} nodes"
        if len(self.kinds) > 1:
            text += f" ({' and '.join(map(kind_text, self.kinds))})"
        if self.total < len(self.machine.cores):
            text += f" within the cpu quota of {self.machine.limits.cpu_quota:g}"
        if reserved := self.request.reserve_cores:
            text += f", {reserved} of them reserved (--reserve-cores)"
        return text

    def too_many_instances(self, count: int, room: int) -> str:
        remedy = f"use --instances {room}, or --oversubscribe to let instances share cores"
        return f"--instances {count} needs one core each, but the machine has {self.available_text()}; {remedy}"

    def too_many_cores(self, wanted: Sequence[int], room: int) -> str:
        asked = sum(wanted)
        missing = f"but the machine has {self.available_text()}: {asked - room} too few"
        if self.request.classes:
            remedy = _fitting_classes(self.request.classes, room)
            return f"--classes requests {_number(asked, 'core')}, {missing}; {remedy}"
        size = wanted[0]
        remedy = f"use --instances {room // size}" if room >= size else f"use --cores-per-instance {room} or less"
        return f"{len(wanted)} instances of {_number(size, 'core')} need {asked}, {missing}; {remedy}"

    # -- warnings -----------------------------------------------------------------------------------------------

    def warn_about_front(self, allocation: Allocation) -> None:
        count = len(allocation.instances)
        if count > self.total - len(allocation.front):
            room = self.total - len(allocation.front)
            self.warnings.append(
                f"{count} instances share {_number(room, 'core')}, with one thread each (--oversubscribe), and slow "
                f"each other down; --instances {room} gives each its own core."
            )
        used = self.total - len(allocation.unused)
        if allocation.front or self.request.reserve_cores == 0 or self.front_has_own_cpus(used):
            return
        if self.total == 1:
            reason = "there is only one core"
        elif self.total >= RESERVE_MIN_CORES:
            reason = "the requested instances use all of them; fewer or smaller instances would leave it its own core"
        else:
            fewer = "fewer instances and " if (self.request.instances or 0) >= self.total else ""
            reason = (
                f"with fewer than {RESERVE_MIN_CORES} cores ({self.total} here), reserving one costs the instances "
                f"more than sharing; to reserve one anyway, use {fewer}--reserve-cores 1"
            )
        self.warnings.append(f"The front shares the cores of the instances: {reason}.")
        self.warn_about_bound_front(used)

    def front_has_own_cpus(self, used: int) -> bool:
        """Whether ``front_cpus`` puts the front on cores that no instance has, although none is reserved."""
        quota = self.bounding_quota
        return quota is not None and _room_for_front(quota, used) > 0 and used < len(self.machine.cores)

    def warn_about_bound_front(self, used: int) -> None:
        """Warn that ``front_cpus`` gives the front no cpu of its own, because of the quota."""
        quota = self.bounding_quota
        if quota is None or _room_for_front(quota, used):
            return
        effect = ", so that together they cannot exceed the quota" if quota >= 1 else ""
        self.warnings.append(
            f"The cpu quota of {quota:g} has no room for the front, which is bound to the cpus of the "
            f"instances{effect}."
        )

    def warn_about_unused(self, allocation: Allocation) -> None:
        if not allocation.unused:
            return
        verb = "is" if len(allocation.unused) == 1 else "are"
        unused = f"{len(allocation.unused)} of {_number(self.total, 'core')} {verb} unused, because "
        if self.request.classes or self.request.cores_per_instance is not None:
            self.warnings.append(f"{unused}no more were requested.")
            return
        count = len(allocation.instances)
        better = count_using_all_cores(self.kinds, count)
        limit = "mixing kinds of cores" if len(self.kinds) > 1 else "spanning nodes"
        self.warnings.append(
            f"{unused}{_number(count, 'instance')} of equal size cannot use more without {limit}; "
            f"{f'--instances {better} would use all cores, and ' if better else ''}--classes allows instances of "
            "different sizes."
        )

    def warn_about_nodes(self, allocation: Allocation) -> None:
        owns = [{core.node for core in cores} for cores in allocation.instances]
        across = [count_packages(cores) > 1 for cores in allocation.instances]
        for sockets in (True, False):
            spanning = [index for index, own in enumerate(owns) if len(own) > 1 and across[index] == sockets]
            if spanning:
                where = _nodes_text({node for index in spanning for node in owns[index]})
                self.warnings.append(
                    f"No node has room for {_instances_text(spanning)}: cores and memory span {where}"
                    f"{_socket_penalty() if sockets else ', in one package.'}"
                )
        foreign: dict[tuple[tuple[int, ...], bool], tuple[list[int], set[int]]] = {}
        for index, own in enumerate(owns):
            nodes = self.memory.nodes_for(own)
            missing = {node for node in own if node is not None} - set(self.memory.usable)
            if nodes and missing:
                denied = bool(missing & self.memory.with_memory)
                who, lacking = foreign.setdefault((nodes, denied), ([], set()))
                who.append(index)
                lacking |= missing
        for (nodes, denied), (who, lacking) in foreign.items():
            reason = "may not be used (Mems_allowed)" if denied else f"ha{_plural(lacking, 's', 've')} no memory"
            self.warnings.append(
                f"The memory of {_instances_text(who)} comes from {_nodes_text(nodes)}, the nearest with memory, "
                f"because {_nodes_text(lacking)} {reason}."
            )


def _socket_penalty() -> str:
    return (
        ". In measurements, spanning sockets was 27–33 % slower for up to 128 tokens and 7–11 % faster for 384 to 512 "
        "tokens."
    )


def _plural(things: Iterable[object], one: str, many: str) -> str:
    return one if len(list(things)) == 1 else many


def _number(count: int, thing: str) -> str:
    return f"{count} {thing}" if count == 1 else f"{count} {thing}s"


def _node_of(cores: Sequence[Core]) -> int | None:
    """The node that contains all of these cores, or None."""
    nodes = {core.node for core in cores}
    return nodes.pop() if len(nodes) == 1 else None


def _equal_reason(count: int, here: int, node: int | None) -> str:
    if count == 1:
        return "The only instance"
    if here == count or node is None:
        return f"One of {count} equal instances"
    return f"One of {count} equal instances, {'the only one' if here == 1 else f'{here} of them'} on this node"


def _shared_reasons(allocation: Allocation) -> list[str]:
    users = Counter(cores[0].id for cores in allocation.instances)
    cores = f"{_number(len(users), 'core')}"
    reasons = []
    for (core,) in allocation.instances:
        others = users[core.id] - 1
        with_others = f"{others} other{'' if others == 1 else 's'}"
        company = f"shares cpu {core.cpus[0]} with {with_others}" if others else f"alone on cpu {core.cpus[0]}"
        reasons.append(f"One of {len(allocation.instances)} instances on {cores}, {company}, one thread")
    return reasons


def _nodes_text(nodes: Iterable[int | None]) -> str:
    known = sorted(node for node in nodes if node is not None)
    return f"node {known[0]}" if len(known) == 1 else f"nodes {format_cpu_list(known)}"


def _instances_text(instances: Sequence[int]) -> str:
    return f"instance{'' if len(instances) == 1 else 's'} {format_cpu_list(instances)}"


def _range_text(length_class: LengthClass) -> str:
    if length_class.max_length is None:
        return f"{length_class.min_length} or more tokens"
    return f"{length_class.min_length} to {length_class.max_length} tokens"


def _memory_reason(nodes: Sequence[int], own: set[int | None]) -> str:
    if not nodes:
        return "memory placed by the kernel, as the machine has no nodes"
    if len(nodes) > 1:
        return f"memory interleaved over {_nodes_text(nodes)}"
    return "memory on the same node" if own == set(nodes) else f"memory on node {nodes[0]}, the nearest with memory"


def _fitting_classes(classes: Sequence[ClassSpec], room: int) -> str:
    """What would fit: the same classes, scaled down to ``room`` cores."""
    if room < len(classes):
        return f"{len(classes)} classes need at least one core each; use fewer classes"
    extras = partition.largest_remainder([spec.cores for spec in classes], room - len(classes))
    entries = (
        f"{'max' if spec.max_length is None else spec.max_length}:{1 + extra}"
        for spec, extra in zip(classes, extras, strict=True)
    )
    return f"use --classes {','.join(entries)}"
