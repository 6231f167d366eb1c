"""The plan: which instance gets which cores and which memory, with the reason for each decision.

A pure function of machine and request. Frozen values, JSON in and out. What is summed is in ``sizes``, which cores
stand together in ``placement``, memory in ``memory``; here they are put together and the words are found.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from launcher.core import sizes
from launcher.core.cpuset import format_cpu_list
from launcher.core.lengths import ClassSpec, LengthClass, resolve_classes
from launcher.core.memory import MemoryNodes, Need, check_memory
from launcher.core.placement import (
    Distances,
    KindCores,
    NodeCores,
    cores_for_front,
    group_by_kind,
    keep_together,
    without,
)
from launcher.core.topology import Core, Machine
from launcher.errors import MachineError, UsageError

MemoryPolicy = Literal["bind", "interleave", "local"]

# Below this a core for the front would cost the instances more than sharing does.
RESERVE_FROM = 8
# One core is for the event loop, which is one thread; from here on there is work for a second one, which tokenizes.
RESERVE_TWO_FROM = 64


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
    """The cpus that the front may use, both hardware threads of each reserved core; empty: it shares all of them."""
    reserved = set(plan.reserved_cpus)
    return tuple(sorted(cpu for core in machine.cores if core.cpus[0] in reserved for cpu in core.cpus))


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


@dataclass(frozen=True, slots=True)
class _Share:
    """The cores of one instance to be, and where they come from."""

    cores: tuple[Core, ...]
    reason: str
    length_class: LengthClass | None = None


class _Planner:
    """One planning: the facts that every step needs, and the warnings that come up. Lives for one call."""

    def __init__(self, machine: Machine, request: PlanRequest) -> None:
        self.machine = machine
        self.request = request
        self.distances = Distances(machine)
        self.memory = MemoryNodes(machine, self.distances)
        self.kinds = len({core.kind for core in machine.cores})
        self.warnings: list[str] = []
        self.spanning: dict[tuple[int | None, ...], list[int]] = {}
        self.foreign: dict[tuple[tuple[int | None, ...], tuple[int, ...]], list[int]] = {}

    def plan(self) -> Plan:
        kinds = self.group(self.budget())
        shares, reserved = self.share(kinds)
        instances = tuple(self.instance(index, share) for index, share in enumerate(shares))
        self.warn_of_nodes()
        self.check_memory(instances)
        used = {core.id for share in shares for core in share.cores} | {core.id for core in reserved}
        unused = [core.cpus[0] for core in self.machine.cores if core.id not in used]
        return Plan(
            instances=instances,
            reserved_cpus=tuple(sorted(core.cpus[0] for core in reserved)),
            unused_cpus=tuple(sorted(unused)),
            warnings=tuple(self.warnings),
        )

    def group(self, cores: Iterable[Core]) -> tuple[KindCores, ...]:
        return group_by_kind(cores, self.distances, mix_kinds=self.request.mix_kinds)

    def budget(self) -> tuple[Core, ...]:
        """The cores that the cpu quota leaves."""
        quota = self.machine.limits.cpu_quota
        usable = self.machine.cores
        if quota is None or int(quota) >= len(usable):
            return usable
        count = max(1, int(quota))
        self.warnings.append(
            f"The cpu quota allows {quota:g} cpus, so {_number(count, 'core')} of {len(usable)} "
            f"{'is' if count == 1 else 'are'} planned for and the others stay unused; "
            "more threads than that would be stopped by the kernel in every period."
        )
        return keep_together(self.machine, self.distances, count)

    # -- which cores for which instance -------------------------------------------------------------------------

    def share(self, kinds: tuple[KindCores, ...]) -> tuple[list[_Share], tuple[Core, ...]]:
        """The cores of each instance, and those of the front."""
        request = self.request
        if request.classes:
            return self.share_exactly(kinds, [spec.cores for spec in request.classes])
        if request.cores_per_instance is not None:
            count: int = request.instances or self.count_of_size(kinds, request.cores_per_instance)
            return self.share_exactly(kinds, [request.cores_per_instance] * count)
        if request.instances is None:
            return self.share_by_default(kinds)
        if request.instances > _total(kinds) - (request.reserve_cores or 0):
            return self.share_threads(kinds, request.instances)
        return self.share_equally(kinds, request.instances)

    def share_equally(self, kinds: tuple[KindCores, ...], count: int) -> tuple[list[_Share], tuple[Core, ...]]:
        wanted = self.reserve(kinds, count)
        parts = sizes.equal_parts(kinds, count)
        spare = _spare(kinds, parts)
        reserved = spare[:wanted]
        if len(spare) < wanted:
            reserved, parts = self.front_and_parts(kinds, wanted, count)
            spare = _spare(without(kinds, reserved), parts)
        self.warn_of_front(kinds, reserved)
        self.warn_of_spare(kinds, count, len(set(spare) - set(reserved)))
        return _equal_shares(parts, count), reserved

    def front_and_parts(
        self, kinds: tuple[KindCores, ...], wanted: int, count: int
    ) -> tuple[tuple[Core, ...], tuple[sizes.Part, ...]]:
        """The front's cores, chosen so that ``count`` instances can use most of the others, and their parts."""
        options = [
            (reserved, sizes.equal_parts(without(kinds, reserved), count))
            for reserved in cores_for_front(kinds, wanted)
        ]
        return max(options, key=lambda option: sizes.work_of(option[1]))

    def share_by_default(self, kinds: tuple[KindCores, ...]) -> tuple[list[_Share], tuple[Core, ...]]:
        fronts = cores_for_front(kinds, self.reserve(kinds, 1))
        best = min((without(kinds, front) for front in fronts), key=lambda left: sizes.default_counts(left)[0].flaws)
        count = self.default_count(best)
        reserved, parts = self.front_and_parts(kinds, len(fronts[0]), count)
        self.warn_of_front(kinds, reserved)
        self.warn_of_spare(kinds, count, len(_spare(without(kinds, reserved), parts)))
        return _equal_shares(parts, count), reserved

    def default_count(self, kinds: tuple[KindCores, ...]) -> int:
        """The best number of instances that memory allows; where none does, one: the check will say why not."""
        candidates = [candidate.count for candidate in sizes.default_counts(kinds)]
        fewer = range(min(candidates) - 1, 0, -1)
        for count in itertools.chain(candidates, fewer):
            if self.fits_memory(sizes.equal_parts(kinds, count), count):
                if count != candidates[0]:
                    self.warnings.append(
                        f"Memory allows {_number(count, 'instance')} of this model; "
                        f"by its cores the machine would get {candidates[0]}."
                    )
                return count
        return 1

    def fits_memory(self, parts: Sequence[sizes.Part], count: int) -> bool:
        each = self.request.instance_bytes
        if each is None:
            return True
        nodes = [self.memory.serving(core.node for core in share.cores) for share in _equal_shares(parts, count)]
        try:
            check_memory(self.machine, Need(nodes, each))
        except MachineError:
            return False
        return True

    def count_of_size(self, kinds: tuple[KindCores, ...], size: int) -> int:
        """As many instances of ``size`` cores as there is room for."""
        if size > (largest := max(sum(one.size for one in kind) for kind in kinds)):
            raise MachineError(
                f"--cores-per-instance {size}: the machine has {self.found(kinds)}; "
                f"the largest instance possible has {_number(largest, 'core')}"
            )
        reserve = self.request.reserve_cores or 0
        rooms = [one.size // size for kind in kinds for one in kind]
        count = sum(rooms) or sum(sum(one.size for one in kind) // size for kind in kinds)
        while count > 1 and count * size > _total(kinds) - reserve:
            count -= 1
        return count

    def share_exactly(self, kinds: tuple[KindCores, ...], wanted: list[int]) -> tuple[list[_Share], tuple[Core, ...]]:
        reserve = self.reserve(kinds, sum(wanted), exact=True)
        if sum(wanted) > _total(kinds) - reserve:
            raise MachineError(self.too_many(kinds, wanted, reserve))
        nodes = [one for kind in kinds for one in kind]
        places = sizes.assign([one.size for one in nodes], wanted)
        taken = self.take_inside(nodes, wanted, places)
        self.take_across(kinds, wanted, taken)
        left = without(kinds, (core for cores in taken.values() for core in cores))
        reserved = tuple(core for kind in left for one in kind for core in one.cores)[:reserve]
        self.warn_of_front(kinds, reserved)
        self.warn_of_exact_spare(_total(left) - reserve)
        return self.exact_shares(wanted, taken), reserved

    def take_inside(
        self, nodes: Sequence[NodeCores], wanted: Sequence[int], places: Sequence[int | None]
    ) -> dict[int, tuple[Core, ...]]:
        """The cores of every instance that fits in a node, by its index."""
        taken: dict[int, tuple[Core, ...]] = {}
        for place, one in enumerate(nodes):
            here = [index for index, chosen in enumerate(places) if chosen == place]
            cores = one.cores
            for chosen in sizes.order_in_node(one, [wanted[index] for index in here]):
                index = here[chosen]
                taken[index], cores = cores[: wanted[index]], cores[wanted[index] :]
        return taken

    def take_across(
        self, kinds: tuple[KindCores, ...], wanted: Sequence[int], taken: dict[int, tuple[Core, ...]]
    ) -> None:
        """Add the instances that fit in no node, largest first, each on the nearest nodes that have cores left."""
        for index in sorted(set(range(len(wanted))) - set(taken), key=lambda index: (-wanted[index], index)):
            left = without(kinds, (core for cores in taken.values() for core in cores))
            roomy = [kind for kind in left if sum(one.size for one in kind) >= wanted[index]]
            if not roomy:
                raise MachineError(
                    f"an instance of {_number(wanted[index], 'core')} finds only "
                    f"{' and '.join(_kind_count(kind) for kind in left)} left, and performance and efficiency cores "
                    f"are not mixed in one instance; the machine has {self.found(kinds)}"
                )
            start = max(roomy[0], key=lambda one: one.size)
            near = sorted(roomy[0], key=lambda one: self.distances.order(start.node, one.node))
            taken[index] = tuple(core for one in near for core in one.cores)[: wanted[index]]

    def share_threads(self, kinds: tuple[KindCores, ...], count: int) -> tuple[list[_Share], tuple[Core, ...]]:
        """More instances than cores: one thread each, cores shared in turn."""
        reserve = self.reserve(kinds, 1)
        if not self.request.oversubscribe:
            raise MachineError(self.too_many(kinds, [1] * count, self.request.reserve_cores or 0))
        reserved = cores_for_front(kinds, reserve)[0] if self.request.reserve_cores else ()
        kinds = without(kinds, reserved)
        nodes = [one for kind in kinds for one in kind]
        self.warn_of_front(kinds, reserved)
        total = _total(kinds)
        self.warnings.append(
            f"{count} instances share {_number(total, 'core')}, one thread each (--oversubscribe): they slow each "
            f"other down, and {_number(total, 'instance')} would answer sooner."
        )
        shares = []
        for one, share in zip(nodes, sizes.largest_remainder([one.size for one in nodes], count), strict=True):
            cores = one.cores
            for index in range(share):
                core = cores[index % len(cores)]
                others = share // len(cores) + (index % len(cores) < share % len(cores)) - 1
                shares.append(_Share((core,), _shared_reason(core, others, count, total)))
        return shares, reserved

    def exact_shares(self, wanted: Sequence[int], taken: dict[int, tuple[Core, ...]]) -> list[_Share]:
        request = self.request
        classes = resolve_classes(request.classes, request.length_limit)
        shares = []
        for index, size in enumerate(wanted):
            if classes:
                reason = f"--classes asks for {_number(size, 'core')} for {_span_text(classes[index])}"
            else:
                reason = f"--cores-per-instance asks for {_number(size, 'core')}"
            shares.append(_Share(taken[index], reason, classes[index] if classes else None))
        return shares

    # -- the front ----------------------------------------------------------------------------------------------

    def reserve(self, kinds: tuple[KindCores, ...], needed: int, *, exact: bool = False) -> int:
        """How many cores the front gets when the instances need ``needed`` at least."""
        total = _total(kinds)
        asked = self.request.reserve_cores
        if asked is None:
            wanted = 2 if total >= RESERVE_TWO_FROM else 1 if total >= RESERVE_FROM else 0
            # A size that was asked for is kept: then the front gets what is left, which may be nothing.
            return min(wanted, max(0, total - needed)) if exact or total - needed < wanted else wanted
        if asked >= total:
            raise MachineError(
                f"--reserve-cores {asked}: the machine has {self.found(kinds)}, and an instance needs at least 1; "
                f"the most is {total - 1}"
            )
        return asked

    def warn_of_front(self, kinds: tuple[KindCores, ...], reserved: Sequence[Core]) -> None:
        if reserved or self.request.reserve_cores == 0:
            return
        total = _total(kinds)
        if total >= RESERVE_FROM:
            reason = "the instances asked for take all of them; fewer or smaller ones leave it a core of its own"
        elif total == 1:
            reason = "there is only one"
        else:
            fewer = "fewer instances and " if (self.request.instances or 0) >= total else ""
            reason = (
                f"with fewer than {RESERVE_FROM} cores ({total} here) one of its own costs them more than sharing; "
                f"{fewer}--reserve-cores 1 keeps one for it"
            )
        self.warnings.append(f"The front shares the cores of the instances: {reason}.")

    # -- words --------------------------------------------------------------------------------------------------

    def found(self, kinds: tuple[KindCores, ...]) -> str:
        """What there is, in words: ``48 usable cores in 2 nodes``."""
        total = _total(kinds)
        nodes = {one.node for kind in kinds for one in kind}
        text = f"{total} usable {'core' if total == 1 else 'cores'}"
        if len(nodes) > 1:
            text += f" in {len(nodes)} nodes"
        if len(kinds) > 1:
            text += f" ({' and '.join(_kind_count(kind) for kind in kinds)})"
        if total < len(self.machine.cores):
            text += f" within its cpu quota of {self.machine.limits.cpu_quota:g}"
        return text

    def too_many(self, kinds: tuple[KindCores, ...], wanted: Sequence[int], reserve: int) -> str:
        room = _total(kinds) - reserve
        found = f"the machine has {self.found(kinds)}"
        if reserve:
            found += f", of which {reserve} {'is' if reserve == 1 else 'are'} reserved for the front"
        if self.request.classes:
            missing = sum(wanted) - room
            return (
                f"--classes asks for {_number(sum(wanted), 'core')}, {found}: {missing} too few; "
                f"{_fitting_classes(self.request.classes, room)}"
            )
        if self.request.cores_per_instance is None:
            remedy = f"--instances {room} fits, and --oversubscribe lets instances share cores"
            return f"--instances {len(wanted)} needs a core for each, {found}; {remedy}"
        size = wanted[0]
        fits = f"--instances {room // size} of that size fits" if room >= size else f"at most {room} cores each fit"
        return f"{len(wanted)} instances of {size} cores need {sum(wanted)} cores, {found}; {fits}"

    def warn_of_spare(self, kinds: tuple[KindCores, ...], count: int, spare: int) -> None:
        if spare <= 0:
            return
        better = _count_without_spare(kinds, count)
        remedy = f"--instances {better} would use them all, and " if better else ""
        limit = "without mixing kinds of cores" if len(kinds) > 1 else "inside the nodes"
        self.warnings.append(
            f"{_number(spare, 'core')} of {_total(kinds)} {'stays' if spare == 1 else 'stay'} unused, because "
            f"{_number(count, 'instance')} of equal size {'takes' if count == 1 else 'take'} no more {limit}; "
            f"{remedy}--classes gives instances of unequal size."
        )

    def warn_of_exact_spare(self, spare: int) -> None:
        if spare > 0:
            asked = "--classes asks" if self.request.classes else "the instances ask"
            self.warnings.append(
                f"{_number(spare, 'core')} {'stays' if spare == 1 else 'stay'} unused, because {asked} for no more."
            )

    # -- memory -------------------------------------------------------------------------------------------------

    def instance(self, index: int, share: _Share) -> InstancePlan:
        cores = tuple(sorted(share.cores, key=lambda core: core.cpus[0]))
        own = {core.node for core in cores}
        nodes = self.memory.serving(own)
        policy: MemoryPolicy = "local" if not nodes else "bind" if len(nodes) == 1 else "interleave"
        elsewhere = bool(nodes) and not set(nodes) <= own
        in_order = tuple(sorted(own, key=lambda node: (node is None, node or 0)))
        if len(own) > 1:
            self.spanning.setdefault(in_order, []).append(index)
        if elsewhere:
            self.foreign.setdefault((in_order, nodes), []).append(index)
        return InstancePlan(
            id=index,
            cores=tuple(core.id for core in cores),
            cpus=tuple(core.cpus[0] for core in cores),
            threads=len(cores),
            nodes=nodes,
            memory=policy,
            length_class=share.length_class,
            why=f"{share.reason}: {_where(cores, self.kinds)}, {_memory_reason(nodes, elsewhere)}.",
        )

    def warn_of_nodes(self) -> None:
        if self.spanning:
            where = ", ".join(f"{_instances_text(who)} in {_nodes_text(own)}" for own, who in self.spanning.items())
            self.warnings.append(
                f"Too large for one node: {where}, memory interleaved over them; crossing sockets was measured "
                "27–33 % slower for up to 128 tokens and 7–11 % faster for 384 to 512."
            )
        for (own, nodes), who in self.foreign.items():
            missing = [node for node in own if node is not None and node not in self.memory.usable]
            denied = any(node in self.memory.with_memory for node in missing)
            self.warnings.append(
                f"Memory of {_instances_text(who)} comes from {_nodes_text(nodes)}, the nearest with any, because "
                f"{_nodes_text(missing)} {'may not be used for it (Mems_allowed)' if denied else 'has none'}."
            )

    def check_memory(self, instances: Sequence[InstancePlan]) -> None:
        if self.request.instance_bytes is not None:
            need = Need([instance.nodes for instance in instances], self.request.instance_bytes)
            check_memory(self.machine, need)


def _equal_shares(parts: Sequence[sizes.Part], count: int) -> list[_Share]:
    shares = []
    for part in parts:
        cores = tuple(core for one in part.nodes for core in one.cores)
        start = 0
        for size in part.sizes:
            shares.append(_Share(cores[start : start + size], _equal_reason(part, count)))
            start += size
    return shares


def _equal_reason(part: sizes.Part, count: int) -> str:
    if count == 1:
        return "The only instance"
    here = len(part.sizes)
    if part.spans or here == count or part.nodes[0].node is None:
        return f"One of {count} equal instances"
    return f"One of {count} equal instances, {'the only one' if here == 1 else f'{here} of them'} on its node"


def _spare(kinds: Sequence[KindCores], parts: Sequence[sizes.Part]) -> tuple[Core, ...]:
    """The cores that no instance of ``parts`` takes, lowest cpu first."""
    taken = {core.id for share in _equal_shares(parts, 0) for core in share.cores}
    left = (core for kind in kinds for one in kind for core in one.cores if core.id not in taken)
    return tuple(sorted(left, key=lambda core: core.cpus[0]))


def _count_without_spare(kinds: Sequence[KindCores], count: int) -> int | None:
    """The number of instances nearest to ``count`` that leaves no core over and crosses no node, if one is near."""
    total = _total(kinds)
    counts = range(max(1, count // 2), min(total, count + 16) + 1)
    near = sorted(counts, key=lambda other: (abs(other - count), -other))
    for other in near:
        parts = sizes.equal_parts(kinds, other)
        if sum(map(sum, (part.sizes for part in parts))) == total and not any(part.spans for part in parts):
            return other
    return None


def _total(kinds: Iterable[KindCores]) -> int:
    return sum(one.size for kind in kinds for one in kind)


def _number(count: int, thing: str) -> str:
    return f"{count} {thing}" if count == 1 else f"{count} {thing}s"


def _kind_count(kind: KindCores) -> str:
    return f"{sum(one.size for one in kind)} {kind[0].kind}"


def _nodes_text(nodes: Iterable[int | None]) -> str:
    known = sorted(node for node in nodes if node is not None)
    return f"node {known[0]}" if len(known) == 1 else f"nodes {format_cpu_list(known)}"


def _instances_text(instances: Sequence[int]) -> str:
    return f"instance{'' if len(instances) == 1 else 's'} {format_cpu_list(instances)}"


def _span_text(span: LengthClass) -> str:
    if span.max_length is None:
        return f"{span.min_length} tokens and more"
    return f"{span.min_length} to {span.max_length} tokens"


def _where(cores: Sequence[Core], kinds: int) -> str:
    """Where these cores are, in words; their kind is named where the machine has several."""
    nodes = {core.node for core in cores}
    kind = f"{cores[0].kind} " if kinds > 1 and len({core.kind for core in cores}) == 1 else ""
    groups = {core.l3 for core in cores}
    parts = [_number(len(cores), f"{kind}core")]
    if None not in groups:
        parts.append("in one L3 group" if len(groups) == 1 else f"in {len(groups)} L3 groups")
    if len(nodes) > 1:
        parts.append(f"of {_nodes_text(nodes)}")
    return " ".join(parts)


def _memory_reason(nodes: Sequence[int], elsewhere: bool) -> str:
    if not nodes:
        return "memory wherever the kernel puts it, as there are no nodes to choose"
    if len(nodes) > 1:
        return f"memory interleaved over {_nodes_text(nodes)}"
    return f"memory on node {nodes[0]}, the nearest with any" if elsewhere else "memory on the same node"


def _shared_reason(core: Core, others: int, count: int, total: int) -> str:
    company = f"shares cpu {core.cpus[0]} with {others} more" if others else f"alone on cpu {core.cpus[0]}"
    return f"One of {count} instances on {_number(total, 'core')}, {company}, one thread"


def _fitting_classes(classes: Sequence[ClassSpec], room: int) -> str:
    """An example of the same classes that fits in ``room`` cores."""
    if room < len(classes):
        return f"{len(classes)} classes need at least a core each; fewer classes fit"
    total = sum(spec.cores for spec in classes)
    shares = [1 + extra for extra in sizes.largest_remainder([spec.cores for spec in classes], room - len(classes))]
    assert sum(shares) == room < total
    entries = (
        f"{'max' if spec.max_length is None else spec.max_length}:{share}"
        for spec, share in zip(classes, shares, strict=True)
    )
    return f"--classes {','.join(entries)} would fit"
