"""Assembles a ``Machine`` from what was read: which cpus share a core, which cores are usable, and of which kind.

Separate from the readers, so that the same rules apply to a live machine, a recorded one and the output of ``lscpu``.
Where sources contradict each other the machine stays usable, and a warning names the contradiction. No file is opened
here.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from itertools import pairwise

from launcher.core.machine.anomalies import Anomalies
from launcher.core.machine.cpuset import format_cpu_list
from launcher.core.machine.topology import Core, Limits, Machine, Node
from launcher.errors import MachineError
from launcher.options.choices import IsolatedPolicy

Cpus = tuple[int, ...]

# Within a kind of core, clocks differ by turbo bins (5.2 and 5.0 GHz); between kinds, by a quarter or more.
FREQUENCY_GAP = 1.2
CAPACITY_GAP = 1.1
MAX_THREADS = 8  # of POWER8 to POWER10; no processor has more hardware threads per core


@dataclass(frozen=True, slots=True)
class RawCpu:
    """An online cpu: ``siblings`` share its core, ``l3`` lists the cpus that share its L3 cache; None if unknown."""

    siblings: Cpus | None = None
    package: int | None = None
    l3: Cpus | None = None


@dataclass(frozen=True, slots=True)
class KindHints:
    """Facts that distinguish performance and efficiency cores, in order of preference.

    ``efficiency_cpus``: from the performance counters of a hybrid machine. ``capacity``: the scheduler's, at most
    1024. ``max_khz`` and ``base_khz``: from cpufreq.
    """

    efficiency_cpus: Cpus | None = None
    capacity: Mapping[int, int] = field(default_factory=dict)
    max_khz: Mapping[int, int] = field(default_factory=dict)
    base_khz: Mapping[int, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class RawMachine:
    """Everything that was read. ``cpuset`` and ``limits.affinity`` are None if there is no limit or it is unknown."""

    arch: str
    vendor: str | None
    model: str | None
    isa: tuple[str, ...]
    present: Cpus
    online: Cpus
    isolated: Cpus
    cpus: Mapping[int, RawCpu]
    nodes: tuple[Node, ...]
    kinds: KindHints
    cpuset: Cpus | None
    limits: Limits
    memory_bytes: int | None = None
    free_bytes: int | None = None
    microarchitecture: str | None = None


def build_machine(raw: RawMachine, anomalies: Anomalies | None = None, *, isolated: IsolatedPolicy = "auto") -> Machine:
    """The machine as this process may use it; ``anomalies`` has those already found.

    Raises ``MachineError`` when no cpu is usable.
    """
    anomalies = Anomalies() if anomalies is None else anomalies
    allowed = _allowed(raw, isolated)
    usable = usable_cpus(allowed, raw.isolated, isolated)
    if not usable:
        raise MachineError(_nothing_usable(raw, allowed))
    groups = group_cores(raw.cpus, raw.online, anomalies)
    _check_cores(groups, raw, anomalies)
    _check_l3(raw, anomalies)
    _check_nodes(raw, anomalies)
    return Machine(
        arch=raw.arch,
        vendor=raw.vendor,
        model=raw.model,
        isa=raw.isa,
        present=raw.present,
        online=raw.online,
        allowed=allowed,
        isolated=raw.isolated,
        cores=_cores(groups, usable, raw),
        nodes=raw.nodes,
        limits=raw.limits,
        warnings=anomalies.sentences(),
        memory_bytes=raw.memory_bytes,
        free_bytes=raw.free_bytes,
        microarchitecture=raw.microarchitecture,
    )


def _allowed(raw: RawMachine, isolated: IsolatedPolicy) -> Cpus:
    allowed = set(raw.online)
    if raw.cpuset is not None:
        allowed &= set(raw.cpuset)
    if raw.limits.affinity is not None:
        mask = set(raw.limits.affinity)
        if isolated == "use":
            # The kernel starts every process with a mask that excludes isolated cpus; using them widens it.
            mask |= set(raw.isolated)
        allowed &= mask
    return tuple(sorted(allowed))


def usable_cpus(allowed: Iterable[int], isolated: Iterable[int], policy: IsolatedPolicy) -> frozenset[int]:
    """The allowed cpus that instances may run on. A process whose cpuset or mask has nothing but isolated cpus was
    given them on purpose: the kernel never puts isolated cpus in a mask by itself."""
    every = frozenset(allowed)
    shared = every - frozenset(isolated)
    return every if policy == "use" or (policy == "auto" and not shared) else shared


def _nothing_usable(raw: RawMachine, allowed: Cpus) -> str:
    found = [f"online {format_cpu_list(raw.online) or 'none'}"]
    if raw.cpuset is not None:
        found.append(f"cpuset {format_cpu_list(raw.cpuset) or 'empty'}")
    if raw.limits.affinity is not None:
        found.append(f"affinity mask {format_cpu_list(raw.limits.affinity) or 'empty'}")
    if raw.isolated:
        found.append(f"isolated {format_cpu_list(raw.isolated)}")
    advice = "Widen the cpuset or the affinity mask"
    if allowed:
        advice += ", or use the isolated cpus with --isolated use"
    return f"No cpu of this machine is usable: {'; '.join(found)}. {advice}."


def group_cores(cpus: Mapping[int, RawCpu], online: Cpus, anomalies: Anomalies) -> tuple[Cpus, ...]:
    """Online cpus grouped into physical cores, ordered by lowest cpu.

    Two cpus share a core if each lists the other as a sibling, or if one lists the other and the other has no list. A
    list that the other cpu contradicts is reported and ignored.
    """
    sibling_lists = _sibling_lists(cpus, online)
    groups: list[Cpus] = []
    inconsistent: list[int] = []
    for cpu, siblings in sibling_lists.items():
        if siblings is not None and all(
            sibling_lists[other] is siblings or sibling_lists[other] == siblings for other in siblings
        ):
            if cpu == siblings[0]:
                groups.append(siblings)
        else:
            inconsistent.append(cpu)
    groups.extend(_group_inconsistent(inconsistent, sibling_lists, anomalies))
    return tuple(sorted(groups))


def _sibling_lists(cpus: Mapping[int, RawCpu], online: Cpus) -> dict[int, Cpus | None]:
    """The online siblings that each cpu lists, including itself; equal sets are the same object."""
    known = set(online)
    seen: dict[frozenset[int], Cpus] = {}
    sibling_lists: dict[int, Cpus | None] = {}
    for cpu in online:
        one = cpus.get(cpu)
        named = None if one is None or one.siblings is None else frozenset({cpu, *one.siblings} & known)
        sibling_lists[cpu] = None if named is None else seen.setdefault(named, tuple(sorted(named)))
    return sibling_lists


def _group_inconsistent(
    inconsistent: list[int], sibling_lists: Mapping[int, Cpus | None], anomalies: Anomalies
) -> list[Cpus]:
    """Groups of cpus whose sibling lists differ: those connected, directly or indirectly, by accepted lists."""
    leader = {cpu: cpu for cpu in inconsistent}

    def find(cpu: int) -> int:
        while leader[cpu] != cpu:
            cpu = leader[cpu]
        return cpu

    for cpu in inconsistent:
        others = [other for other in sibling_lists[cpu] or () if other != cpu]
        accepted = [other for other in others if other in leader and _does_not_contradict(sibling_lists[other], cpu)]
        for other in accepted:
            first, second = sorted((find(cpu), find(other)))
            leader[second] = first
        refused = set(others) - set(accepted)
        if refused:
            anomalies.add(
                "cpus whose siblings (topology/core_cpus) do not list them in turn, treated as separate cores: {}",
                f"cpu {cpu} lists {format_cpu_list(refused)}",
            )
    members: dict[int, list[int]] = defaultdict(list)
    for cpu in inconsistent:
        members[find(cpu)].append(cpu)
    return [tuple(group) for group in members.values()]


def _does_not_contradict(siblings: Cpus | None, cpu: int) -> bool:
    return siblings is None or cpu in siblings


def _cores(groups: Iterable[Cpus], usable: frozenset[int], raw: RawMachine) -> tuple[Core, ...]:
    node_of = _node_of_cpu(raw.nodes)
    l3_ids = _l3_ids(raw)
    efficiency = efficiency_cpus(raw.kinds, raw.online)
    cores = []
    for group in groups:
        cpus = tuple(cpu for cpu in group if cpu in usable)
        if cpus:
            first = raw.cpus.get(group[0], RawCpu())
            kind = "efficiency" if cpus[0] in efficiency else "performance"
            cores.append((cpus, first.package, node_of.get(cpus[0]), l3_ids.get(cpus[0]), kind))
    cores.sort(key=lambda core: core[0])
    return tuple(Core(index, *core) for index, core in enumerate(cores))


def _node_of_cpu(nodes: Iterable[Node]) -> dict[int, int]:
    found: dict[int, int] = {}
    for node in nodes:
        for cpu in node.cpus:
            found.setdefault(cpu, node.id)
    return found


def _l3_ids(raw: RawMachine) -> dict[int, int]:
    """A number for each distinct set of cpus that share an L3 cache; the kernel's own ids are not unique."""
    ids: dict[Cpus, int] = {}
    found: dict[int, int] = {}
    for cpu in raw.online:
        one = raw.cpus.get(cpu)
        if one is not None and one.l3 is not None:
            found[cpu] = ids.setdefault(one.l3, len(ids))
    return found


def efficiency_cpus(kinds: KindHints, online: Cpus) -> frozenset[int]:
    """The cpus of efficiency cores; empty if all cores are of one kind, or the kind is unknown."""
    if kinds.efficiency_cpus is not None:
        return frozenset(kinds.efficiency_cpus)
    by_capacity = _below_gap(kinds.capacity, online, CAPACITY_GAP)
    if by_capacity:
        return by_capacity
    by_clock = _below_gap(kinds.max_khz, online, FREQUENCY_GAP)
    by_base = _below_gap(kinds.base_khz, online, FREQUENCY_GAP)
    if by_clock and kinds.base_khz:
        # Turbo clocks differ within a kind too, if favoured cores reach more: require both.
        return by_clock & by_base
    if by_base and len({kinds.max_khz.get(cpu) for cpu in online}) == 1:
        return by_base
    return by_clock


def _below_gap(values: Mapping[int, int], online: Cpus, gap: float) -> frozenset[int]:
    """The cpus below the largest step between adjacent values, if its ratio is at least ``gap``."""
    if not set(online) <= set(values):
        return frozenset()  # with values for some cpus only, unknown ones would look like another kind
    levels = sorted({values[cpu] for cpu in online if values[cpu] > 0})
    steps = [(upper / lower, upper) for lower, upper in pairwise(levels)]
    widest, bound = max(steps, default=(1.0, 0))
    return frozenset(cpu for cpu in online if values[cpu] < bound) if widest >= gap else frozenset()


def _check_cores(groups: Iterable[Cpus], raw: RawMachine, anomalies: Anomalies) -> None:
    node_of = _node_of_cpu(raw.nodes)
    for group in groups:
        if len(group) == 1:
            continue
        members = [raw.cpus.get(cpu, RawCpu()) for cpu in group]
        name = f"cpus {format_cpu_list(group)}"
        if len(group) > MAX_THREADS:
            anomalies.add("more siblings (topology/core_cpus) than any core has: {}", name)
        if len({one.package for one in members}) > 1:
            anomalies.add(
                "siblings (topology/core_cpus) in different packages (topology/physical_package_id): {}",
                name,
            )
        if len({one.l3 for one in members}) > 1:
            anomalies.add("siblings (topology/core_cpus) with different L3 caches (cache/index*): {}", name)
        if len({node_of.get(cpu) for cpu in group}) > 1:
            anomalies.add("siblings (topology/core_cpus) in different nodes (node*/cpumap): {}", name)


def _check_l3(raw: RawMachine, anomalies: Anomalies) -> None:
    groups = {one.l3 for cpu in raw.online if (one := raw.cpus.get(cpu)) is not None and one.l3}
    owners: dict[int, Cpus] = {}
    for group in sorted(groups):
        name = f"cpus {format_cpu_list(group)}"
        rivals = {owners[cpu] for cpu in group if owners.setdefault(cpu, group) != group}
        for rival in sorted(rivals):
            anomalies.add(
                "overlapping sets of cpus that share an L3 cache (cache/index*/shared_cpu_map): {}",
                f"{format_cpu_list(rival)} and {format_cpu_list(group)}",
            )
        packages = {one.package for cpu in group if (one := raw.cpus.get(cpu)) is not None} - {None}
        if len(packages) > 1:
            anomalies.add(
                "L3 caches (cache/index*/shared_cpu_map) that span packages (topology/physical_package_id): {}",
                f"{name} of packages {format_cpu_list(package for package in packages if package is not None)}",
            )
        _check_l3_nodes(group, raw, anomalies)


def _check_l3_nodes(group: Cpus, raw: RawMachine, anomalies: Anomalies) -> None:
    """A cache within one node, or over whole nodes (sub-NUMA clustering), is plausible; a partial overlap is not."""
    members = set(group)
    online = set(raw.online)
    for node in raw.nodes:
        cpus = set(node.cpus) & online
        if cpus & members and not (cpus <= members or members <= cpus):
            anomalies.add(
                "L3 caches (cache/index*/shared_cpu_map) that contain only part of a node (node*/cpumap): {}",
                f"cpus {format_cpu_list(group)} and node {node.id} of cpus {format_cpu_list(cpus)}",
            )


def _check_nodes(raw: RawMachine, anomalies: Anomalies) -> None:
    nodes_of: dict[int, tuple[int, ...]] = defaultdict(tuple)
    for node in raw.nodes:
        for cpu in node.cpus:
            nodes_of[cpu] = (*nodes_of[cpu], node.id)
    online = set(raw.online)
    sharers: dict[tuple[int, ...], list[int]] = defaultdict(list)
    for cpu, nodes in nodes_of.items():
        if len(nodes) > 1 and cpu in online:
            sharers[nodes].append(cpu)
    for nodes, cpus in sharers.items():
        anomalies.add(
            "cpus in several nodes (node*/cpumap), assigned to the first: {}",
            f"cpus {format_cpu_list(cpus)} in nodes {format_cpu_list(nodes)}",
        )
    homeless = online - set(nodes_of)
    if raw.nodes and homeless:
        anomalies.add("cpus in no node (node*/cpumap): {}", format_cpu_list(homeless))
    _check_offline(raw, anomalies)


def _check_offline(raw: RawMachine, anomalies: Anomalies) -> None:
    online = set(raw.online)
    for node in raw.nodes:
        offline = set(node.cpus) - online
        if offline:
            anomalies.add(
                "nodes that list offline cpus (node*/cpumap, cpu/online), which are not used: {}",
                f"node {node.id} cpus {format_cpu_list(offline)}",
            )
