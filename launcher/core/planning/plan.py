"""The plan: which instance gets which cores and which memory, with the reason for each decision.

A pure function of machine and request. Frozen values, JSON in and out. Which cores go to whom is decided in
``sharing``, memory in ``memory``; here they are put together and the words are found.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from launcher.core.machine.cpuset import format_cpu_list
from launcher.core.machine.topology import Core, Machine
from launcher.core.planning import allocation, partition
from launcher.core.planning.allocation import Layout
from launcher.core.planning.length_classes import ClassSpec, LengthClass, resolve_classes
from launcher.core.planning.memory import MemoryNodes, Need, check_memory
from launcher.core.planning.placement import Distances, KindCores, group_by_kind, keep_together
from launcher.errors import MachineError, UsageError

MemoryPolicy = Literal["bind", "interleave", "local"]

# Below this a core for the front would cost the instances more than sharing does.
RESERVE_FROM = 8
# One core is for the event loop, which is one thread; from here on there is work for a second one, which tokenizes.
RESERVE_TWO_FROM = 64
# What a front used beside the fastest worker, with room to spare, in cpus: at least, and for each core of instances
# (docs/decisions/0006-front-under-a-quota.md). A quota that leaves as much beside them has room for it.
FRONT_LEAST, FRONT_PER_CORE = 1 / 2, 1 / 3


@dataclass(frozen=True, slots=True)
class PlanRequest:
    """What the user wants. ``None`` means: decide for me.

    ``classes`` and ``instances``/``cores_per_instance`` exclude each other. ``length_limit`` is the longest
    sequence the model takes, ``instance_bytes`` the memory one instance is expected to need.
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
    """One instance: ``cpus`` are the first allowed cpu of each of its ``cores``; one thread each.

    ``memory`` is ``bind`` or, over several nodes, ``interleave``; ``local`` where the machine has no nodes.
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
        span = self.length_class
        return {
            "id": self.id,
            "cpus": list(self.cpus),
            "threads": self.threads,
            "nodes": list(self.nodes),
            "memory": self.memory,
            "class": None if span is None else {"min_length": span.min_length, "max_length": span.max_length},
            "why": self.why,
        }


@dataclass(frozen=True, slots=True)
class Plan:
    """All instances, and what is left. Every usable core is in an instance, reserved or unused.

    Like ``InstancePlan.cpus``, ``reserved_cpus`` and ``unused_cpus`` name the first allowed cpu of each core.
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
        """The plan that ``to_json`` wrote for ``machine``. Raises ``UsageError`` when the two do not belong together.

        ``warnings`` stand outside the ``plan`` object of a report and are handed in.
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
                f"this is no plan for a machine with cpus {format_cpu_list(core_of)}: {error!r}"
            ) from error


def _instance_from_json(entry: dict[str, Any], core_of: dict[int, int]) -> InstancePlan:
    span = entry["class"]
    return InstancePlan(
        id=entry["id"],
        cores=tuple(core_of[cpu] for cpu in entry["cpus"]),
        cpus=tuple(entry["cpus"]),
        threads=entry["threads"],
        nodes=tuple(entry["nodes"]),
        memory=entry["memory"],
        length_class=None if span is None else LengthClass(span["min_length"], span["max_length"]),
        why=entry["why"],
    )


def front_cpus(machine: Machine, plan: Plan) -> tuple[int, ...]:
    """The cpus that the front is bound to; empty: any that this process may use.

    Those are both hardware threads of its reserved cores. Under a cpu quota front and instances together get no more
    cpus than they can use up, so that the kernel does not stop them: the front gets cpus beside the instances as far
    as the quota has room for them, and those of the instances where it has none.
    """
    reserved = [core for core in machine.cores if core.cpus[0] in set(plan.reserved_cpus)]
    quota = _bounding_quota(machine)
    if quota is None:
        return tuple(sorted(cpu for core in reserved for cpu in core.cpus))
    taken = {cpu for instance in plan.instances for cpu in instance.cpus}
    unused = [core for core in machine.cores if core.cpus[0] in set(plan.unused_cpus)]
    firsts = [core.cpus[0] for core in reserved or unused]
    siblings = [cpu for core in reserved or machine.cores for cpu in core.cpus[1:]]
    beside = [*firsts, *siblings][: _room_for_front(quota, len(taken))]
    return tuple(sorted(beside or taken))


def _bounding_quota(machine: Machine) -> float | None:
    """The cpu quota, None where there is none or all cpus together cannot use it up."""
    quota = machine.limits.cpu_quota
    return quota if quota is not None and int(quota) < sum(len(core.cpus) for core in machine.cores) else None


def _room_for_front(quota: float, used: int) -> int:
    """How many cpus a quota leaves to the front when the instances use so many: whole ones, or one for a part."""
    left = quota - used
    return max(int(left), int(left >= max(FRONT_LEAST, FRONT_PER_CORE * used)))


def make_plan(machine: Machine, request: PlanRequest) -> Plan:
    """The plan for this machine and this wish; the same for the same arguments.

    Raises ``UsageError`` for a wish that makes no sense and ``MachineError`` for one that this machine cannot fulfil.
    """
    _check_request(request)
    if not machine.cores:
        raise MachineError("no core of this machine may be used, and a plan needs at least 1")
    return _Planner(machine, request).plan()


def _check_request(request: PlanRequest) -> None:
    for name, value, least in (
        ("--instances", request.instances, 1),
        ("--cores-per-instance", request.cores_per_instance, 1),
        ("--reserve-cores", request.reserve_cores, 0),
    ):
        if value is not None and value < least:
            raise UsageError(f"{name} {value} makes no sense; the least is {least}")
    if request.classes and (request.instances is not None or request.cores_per_instance is not None):
        raise UsageError(
            "--classes says how many instances there are and of how many cores; "
            "give it without --instances and --cores-per-instance"
        )
    if request.oversubscribe and (request.classes or (request.cores_per_instance or 1) > 1):
        raise UsageError(
            "--oversubscribe gives every instance one thread on a shared core; "
            "give it with --instances alone, without --classes and --cores-per-instance"
        )


class _Planner:
    """One planning: the facts that every step needs, and the warnings that come up. Lives for one call."""

    def __init__(self, machine: Machine, request: PlanRequest) -> None:
        self.machine = machine
        self.request = request
        self.distances = Distances(machine)
        self.memory = MemoryNodes(machine, self.distances)
        self.warnings: list[str] = []
        self.has_kinds = len({core.kind for core in machine.cores}) > 1
        self.kinds = self.group(self.budget())
        self.total = allocation.total(self.kinds)

    def plan(self) -> Plan:
        layout = self.layout()
        reasons, classes = self.reasons(layout), self.classes(len(layout.shares))
        instances = tuple(
            self.instance(index, cores, reason, span)
            for index, (cores, reason, span) in enumerate(zip(layout.shares, reasons, classes, strict=True))
        )
        self.check_memory(layout)
        self.warn_of_front(layout)
        self.warn_of_spare(layout)
        self.warn_of_nodes(layout)
        used = {core.id for cores in (*layout.shares, layout.front) for core in cores}
        return Plan(
            instances=instances,
            reserved_cpus=tuple(sorted(core.cpus[0] for core in layout.front)),
            unused_cpus=tuple(sorted(core.cpus[0] for core in self.machine.cores if core.id not in used)),
            warnings=tuple(self.warnings),
        )

    @property
    def bounding_quota(self) -> float | None:
        return _bounding_quota(self.machine)

    def group(self, cores: Iterable[Core]) -> tuple[KindCores, ...]:
        return group_by_kind(cores, self.distances, mix_kinds=self.request.mix_kinds)

    def budget(self) -> tuple[Core, ...]:
        """The cores that the cpu quota leaves."""
        quota = self.machine.limits.cpu_quota
        usable = self.machine.cores
        if quota is None or int(quota) >= len(usable):
            return usable
        count = max(1, int(quota))
        if quota < 1:
            self.warnings.append(
                f"The cpu quota allows {quota:g} cpus, less than one core: one of {len(usable)} is planned for, and "
                "under load the kernel stops it for a part of every period. Only a larger quota helps."
            )
        else:
            self.warnings.append(
                f"The cpu quota allows {quota:g} cpus, so {_number(count, 'core')} of {len(usable)} "
                f"{'is' if count == 1 else 'are'} planned for and the others stay unused; "
                "more threads than that would be stopped by the kernel in every period."
            )
        return keep_together(self.machine, self.distances, count)

    # -- which cores for which instance -------------------------------------------------------------------------

    def layout(self) -> Layout:
        request = self.request
        asked = request.reserve_cores or 0
        if asked >= self.total:
            raise MachineError(
                f"--reserve-cores {asked}: the machine has {self.found()}, and an instance needs at least 1; "
                f"the most is {self.total - 1}"
            )
        if request.classes:
            return self.exact_layout([spec.cores for spec in request.classes])
        if request.cores_per_instance is not None:
            return self.sized_layout(request.cores_per_instance)
        if request.instances is None:
            return self.default_layout()
        if request.instances <= self.total - asked:
            return allocation.equal(self.kinds, request.instances, self.reserve(request.instances))
        if request.oversubscribe:
            return allocation.in_turn(self.kinds, request.instances, asked)
        raise MachineError(self.too_many_instances(request.instances, self.total - asked))

    def reserve(self, needed: int) -> int:
        """How many cores the front gets when the instances need ``needed`` of them at least."""
        if self.request.reserve_cores is not None:
            return self.request.reserve_cores
        wanted = 2 if self.total >= RESERVE_TWO_FROM else 1 if self.total >= RESERVE_FROM else 0
        return min(wanted, self.total - needed)

    def sized_layout(self, size: int) -> Layout:
        largest = max(sum(one.size for one in kind) for kind in self.kinds)
        if size > largest:
            raise MachineError(
                f"--cores-per-instance {size}: the machine has {self.found()}; "
                f"the largest instance possible has {_number(largest, 'core')}"
            )
        reserve = self.request.reserve_cores or 0
        count = self.request.instances or allocation.count_of_size(self.kinds, size, reserve)
        return self.exact_layout([size] * count)

    def exact_layout(self, wanted: list[int]) -> Layout:
        room = self.total - (self.request.reserve_cores or 0)
        if sum(wanted) > room:
            raise MachineError(self.too_many_cores(wanted, room))
        return allocation.exact(self.kinds, wanted, self.reserve(sum(wanted)), self.distances)

    def default_layout(self) -> Layout:
        """The best that memory allows; where none does, the one with the least need: the check will say why not."""
        layouts = allocation.default(self.kinds, self.reserve(1))
        best = chosen = next(layouts)
        while not self.memory_fits(chosen) and (following := next(layouts, None)):
            chosen = following
        if len(chosen.shares) != len(best.shares):
            self.warnings.append(
                f"Memory allows {_number(len(chosen.shares), 'instance')} of this model; "
                f"by its cores the machine would get {len(best.shares)}."
            )
        return chosen

    def memory_fits(self, layout: Layout) -> bool:
        try:
            self.check_memory(layout)
        except MachineError:
            return False
        return True

    # -- memory -------------------------------------------------------------------------------------------------

    def check_memory(self, layout: Layout) -> None:
        if self.request.instance_bytes is not None:
            nodes = [self.memory.serving(core.node for core in cores) for cores in layout.shares]
            check_memory(self.machine, Need(nodes, self.request.instance_bytes))

    def instance(self, index: int, share: Sequence[Core], reason: str, span: LengthClass | None) -> InstancePlan:
        cores = sorted(share, key=lambda core: core.cpus[0])
        own = {core.node for core in cores}
        nodes = self.memory.serving(own)
        policy: MemoryPolicy = "local" if not nodes else "bind" if len(nodes) == 1 else "interleave"
        return InstancePlan(
            id=index,
            cores=tuple(core.id for core in cores),
            cpus=tuple(core.cpus[0] for core in cores),
            threads=len(cores),
            nodes=nodes,
            memory=policy,
            length_class=span,
            why=f"{reason}: {self.where(cores)}, {_memory_reason(nodes, own)}.",
        )

    def classes(self, count: int) -> Sequence[LengthClass | None]:
        request = self.request
        return resolve_classes(request.classes, request.length_limit) if request.classes else [None] * count

    # -- reasons ------------------------------------------------------------------------------------------------

    def reasons(self, layout: Layout) -> list[str]:
        """Why each instance is there and of that size."""
        request = self.request
        if request.classes:
            spans = resolve_classes(request.classes, request.length_limit)
            asked = (f"--classes asks for {_number(spec.cores, 'core')}" for spec in request.classes)
            return [f"{text} for {_span_text(span)}" for text, span in zip(asked, spans, strict=True)]
        if request.cores_per_instance is not None:
            return [f"--cores-per-instance asks for {_number(len(cores), 'core')}" for cores in layout.shares]
        count = len(layout.shares)
        if count > self.total - len(layout.front):
            return _shared_reasons(layout)
        here = Counter(_node_of(cores) for cores in layout.shares)
        return [_equal_reason(count, here[_node_of(cores)], _node_of(cores)) for cores in layout.shares]

    def where(self, cores: Sequence[Core]) -> str:
        """Where these cores are, in words; their kind is named where the machine has several."""
        kind = f"{cores[0].kind} " if self.has_kinds and len({core.kind for core in cores}) == 1 else ""
        parts = [_number(len(cores), f"{kind}core")]
        groups = {core.l3 for core in cores}
        if None not in groups:
            parts.append("in one L3 group" if len(groups) == 1 else f"in {len(groups)} L3 groups")
        nodes = {core.node for core in cores}
        if len(nodes) > 1:
            parts.append(f"of {_nodes_text(nodes)}")
        return " ".join(parts)

    def found(self) -> str:
        """What there is, in words: ``48 usable cores in 2 nodes``."""
        text = _number(self.total, "usable core")
        nodes = {one.node for kind in self.kinds for one in kind}
        if len(nodes) > 1:
            text += f" in {len(nodes)} nodes"
        if len(self.kinds) > 1:
            text += f" ({' and '.join(map(allocation.kind_text, self.kinds))})"
        if self.total < len(self.machine.cores):
            text += f" within its cpu quota of {self.machine.limits.cpu_quota:g}"
        if reserved := self.request.reserve_cores:
            text += f", of which --reserve-cores takes {reserved}"
        return text

    def too_many_instances(self, count: int, room: int) -> str:
        remedy = f"--instances {room} fits, and --oversubscribe lets instances share cores"
        return f"--instances {count} needs a core for each, and the machine has {self.found()}; {remedy}"

    def too_many_cores(self, wanted: Sequence[int], room: int) -> str:
        asked = sum(wanted)
        missing = f"and the machine has {self.found()}: {asked - room} too few"
        if self.request.classes:
            remedy = _fitting_classes(self.request.classes, room)
            return f"--classes asks for {_number(asked, 'core')}, {missing}; {remedy}"
        size = wanted[0]
        fits = f"--instances {room // size} of that size fits" if room >= size else f"the largest has {room} cores"
        return f"{len(wanted)} instances of {_number(size, 'core')} need {asked}, {missing}; {fits}"

    # -- warnings -----------------------------------------------------------------------------------------------

    def warn_of_front(self, layout: Layout) -> None:
        count = len(layout.shares)
        if count > self.total - len(layout.front):
            room = self.total - len(layout.front)
            self.warnings.append(
                f"{count} instances share {_number(room, 'core')}, one thread each (--oversubscribe): they slow each "
                f"other down, and --instances {room} would have a core for each."
            )
        used = self.total - len(layout.spare)
        if layout.front or self.request.reserve_cores == 0 or self.front_is_beside(used):
            return
        if self.total == 1:
            reason = "there is only one"
        elif self.total >= RESERVE_FROM:
            reason = "the instances asked for take all of them; fewer or smaller ones leave it a core of its own"
        else:
            fewer = "fewer instances and " if (self.request.instances or 0) >= self.total else ""
            reason = (
                f"with fewer than {RESERVE_FROM} cores ({self.total} here) one of its own costs them more than "
                f"sharing; {fewer}--reserve-cores 1 keeps one for it"
            )
        self.warnings.append(f"The front shares the cores of the instances: {reason}.")
        self.warn_of_bound_front(used)

    def front_is_beside(self, used: int) -> bool:
        """Whether ``front_cpus`` puts it on cores that no instance has, without any being reserved."""
        quota = self.bounding_quota
        return quota is not None and _room_for_front(quota, used) > 0 and used < len(self.machine.cores)

    def warn_of_bound_front(self, used: int) -> None:
        """What ``front_cpus`` does where the quota leaves it no cpu beyond those of the instances."""
        quota = self.bounding_quota
        if quota is None or _room_for_front(quota, used):
            return
        effect = ": together they cannot use more than the quota" if quota >= 1 else ""
        self.warnings.append(
            f"The quota of {quota:g} cpus has no cpu to spare for the front, which is bound to those of the "
            f"instances{effect}."
        )

    def warn_of_spare(self, layout: Layout) -> None:
        if not layout.spare:
            return
        spare = f"{_number(len(layout.spare), 'core')} of {self.total}"
        spare += " stays unused, because " if len(layout.spare) == 1 else " stay unused, because "
        if self.request.classes or self.request.cores_per_instance is not None:
            self.warnings.append(f"{spare}no more were asked for.")
            return
        count = len(layout.shares)
        better = allocation.uses_all(self.kinds, count)
        limit = "without mixing kinds of cores" if len(self.kinds) > 1 else "inside the nodes"
        self.warnings.append(
            f"{spare}{_number(count, 'instance')} of equal size {'takes' if count == 1 else 'take'} no more {limit}; "
            f"{f'--instances {better} would use them all, and ' if better else ''}--classes gives instances of "
            "unequal size."
        )

    def warn_of_nodes(self, layout: Layout) -> None:
        owns = [{core.node for core in cores} for cores in layout.shares]
        spanning = [index for index, own in enumerate(owns) if len(own) > 1]
        if spanning:
            where = _nodes_text({node for index in spanning for node in owns[index]})
            self.warnings.append(
                f"No node has room for {_instances_text(spanning)}: cores and memory are spread over {where}. "
                "Crossing sockets was measured 27–33 % slower for up to 128 tokens and 7–11 % faster for 384 to 512."
            )
        foreign: dict[tuple[tuple[int, ...], bool], tuple[list[int], set[int]]] = {}
        for index, own in enumerate(owns):
            nodes = self.memory.serving(own)
            missing = {node for node in own if node is not None} - set(self.memory.usable)
            if nodes and missing:
                denied = bool(missing & self.memory.with_memory)
                who, lacking = foreign.setdefault((nodes, denied), ([], set()))
                who.append(index)
                lacking |= missing
        for (nodes, denied), (who, lacking) in foreign.items():
            reason = "may not be used for it (Mems_allowed)" if denied else f"ha{_s(lacking, 's', 've')} none"
            self.warnings.append(
                f"Memory of {_instances_text(who)} comes from {_nodes_text(nodes)}, the nearest with any, because "
                f"{_nodes_text(lacking)} {reason}."
            )


def _s(things: Iterable[object], one: str, many: str) -> str:
    return one if len(list(things)) == 1 else many


def _number(count: int, thing: str) -> str:
    return f"{count} {thing}" if count == 1 else f"{count} {thing}s"


def _node_of(cores: Sequence[Core]) -> int | None:
    """The node that all of these cores are in, or None."""
    nodes = {core.node for core in cores}
    return nodes.pop() if len(nodes) == 1 else None


def _equal_reason(count: int, here: int, node: int | None) -> str:
    if count == 1:
        return "The only instance"
    if here == count or node is None:
        return f"One of {count} equal instances"
    return f"One of {count} equal instances, {'the only one' if here == 1 else f'{here} of them'} on its node"


def _shared_reasons(layout: Layout) -> list[str]:
    users = Counter(cores[0].id for cores in layout.shares)
    cores = f"{_number(len(users), 'core')}"
    reasons = []
    for (core,) in layout.shares:
        others = users[core.id] - 1
        company = f"shares cpu {core.cpus[0]} with {others} more" if others else f"alone on cpu {core.cpus[0]}"
        reasons.append(f"One of {len(layout.shares)} instances on {cores}, {company}, one thread")
    return reasons


def _nodes_text(nodes: Iterable[int | None]) -> str:
    known = sorted(node for node in nodes if node is not None)
    return f"node {known[0]}" if len(known) == 1 else f"nodes {format_cpu_list(known)}"


def _instances_text(instances: Sequence[int]) -> str:
    return f"instance{'' if len(instances) == 1 else 's'} {format_cpu_list(instances)}"


def _span_text(span: LengthClass) -> str:
    if span.max_length is None:
        return f"{span.min_length} tokens and more"
    return f"{span.min_length} to {span.max_length} tokens"


def _memory_reason(nodes: Sequence[int], own: set[int | None]) -> str:
    if not nodes:
        return "memory wherever the kernel puts it, as there are no nodes to choose"
    if len(nodes) > 1:
        return f"memory interleaved over {_nodes_text(nodes)}"
    return "memory on the same node" if own == set(nodes) else f"memory on node {nodes[0]}, the nearest with any"


def _fitting_classes(classes: Sequence[ClassSpec], room: int) -> str:
    """An example of the same classes that fits in ``room`` cores."""
    if room < len(classes):
        return f"{len(classes)} classes need at least a core each; fewer classes fit"
    extras = partition.largest_remainder([spec.cores for spec in classes], room - len(classes))
    entries = (
        f"{'max' if spec.max_length is None else spec.max_length}:{1 + extra}"
        for spec, extra in zip(classes, extras, strict=True)
    )
    return f"--classes {','.join(entries)} would fit"
