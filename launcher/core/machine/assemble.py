"""Makes a ``Machine`` of what was read of it: which cpus share a core, which cores are usable, and of which kind.

Separate from the reading, so that a recorded machine, a live one and the output of ``lscpu`` are judged by the same
rules. Where readings contradict each other the machine stays usable and a warning names the contradiction. No file
is opened here.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from itertools import pairwise

from launcher.core.machine.anomalies import Oddities
from launcher.core.machine.cpuset import format_cpu_list
from launcher.core.machine.topology import Core, Limits, Machine, Node
from launcher.errors import MachineError

Cpus = tuple[int, ...]

# Cores of one kind differ by turbo bins (5.2 and 5.0 GHz in one hybrid part); kinds differ by a quarter and more.
FREQUENCY_GAP = 1.2
CAPACITY_GAP = 1.1
MAX_THREADS = 8  # POWER8 to POWER10; no processor has more hardware threads to a core


@dataclass(frozen=True, slots=True)
class CpuReading:
    """What is said of an online cpu: ``siblings`` share its core, ``l3`` its level-3 cache; None: nothing is said."""

    siblings: Cpus | None = None
    package: int | None = None
    l3: Cpus | None = None


@dataclass(frozen=True, slots=True)
class KindReading:
    """Evidence for kinds of cores, best first.

    ``efficiency_cpus``: the list of a hybrid machine's own counter device. ``capacity``: the scheduler's, 1024 at
    most. ``max_khz`` and ``base_khz``: of cpufreq.
    """

    efficiency_cpus: Cpus | None = None
    capacity: Mapping[int, int] = field(default_factory=dict)
    max_khz: Mapping[int, int] = field(default_factory=dict)
    base_khz: Mapping[int, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class MachineReading:
    """All that was read. ``cpuset`` and ``limits.affinity`` are None where nothing limits, or nothing is recorded."""

    arch: str
    vendor: str | None
    model: str | None
    isa: tuple[str, ...]
    present: Cpus
    online: Cpus
    isolated: Cpus
    cpus: Mapping[int, CpuReading]
    nodes: tuple[Node, ...]
    kinds: KindReading
    cpuset: Cpus | None
    limits: Limits
    memory_bytes: int | None = None
    free_bytes: int | None = None
    microarchitecture: str | None = None


def build_machine(
    reading: MachineReading, oddities: Oddities | None = None, *, include_isolated: bool = False
) -> Machine:
    """The machine as it may be used; ``oddities``: those already found. Raises ``MachineError`` if no cpu is left."""
    odd = Oddities() if oddities is None else oddities
    allowed = _allowed(reading, include_isolated)
    usable = frozenset(allowed if include_isolated else set(allowed) - set(reading.isolated))
    if not usable:
        raise MachineError(_nothing_usable(reading, include_isolated))
    groups = group_cores(reading.cpus, reading.online, odd)
    _check_cores(groups, reading, odd)
    _check_l3(reading, odd)
    _check_nodes(reading, odd)
    return Machine(
        arch=reading.arch,
        vendor=reading.vendor,
        model=reading.model,
        isa=reading.isa,
        present=reading.present,
        online=reading.online,
        allowed=allowed,
        isolated=reading.isolated,
        cores=_cores(groups, usable, reading),
        nodes=reading.nodes,
        limits=reading.limits,
        warnings=odd.sentences(),
        memory_bytes=reading.memory_bytes,
        free_bytes=reading.free_bytes,
        microarchitecture=reading.microarchitecture,
    )


def _allowed(reading: MachineReading, include_isolated: bool) -> Cpus:
    allowed = set(reading.online)
    if reading.cpuset is not None:
        allowed &= set(reading.cpuset)
    if reading.limits.affinity is not None:
        mask = set(reading.limits.affinity)
        if include_isolated:
            # The kernel starts every process with a mask without them; asking for them means widening it.
            mask |= set(reading.isolated)
        allowed &= mask
    return tuple(sorted(allowed))


def _nothing_usable(reading: MachineReading, include_isolated: bool) -> str:
    found = [f"online {format_cpu_list(reading.online) or 'none'}"]
    if reading.cpuset is not None:
        found.append(f"cpuset {format_cpu_list(reading.cpuset) or 'empty'}")
    if reading.limits.affinity is not None:
        found.append(f"affinity mask {format_cpu_list(reading.limits.affinity) or 'empty'}")
    if reading.isolated:
        found.append(f"isolated {format_cpu_list(reading.isolated)}")
    advice = "widen the cpuset or the affinity mask"
    if reading.isolated and not include_isolated:
        advice += ", or ask for the isolated cpus"
    return f"No cpu of this machine may be used: {'; '.join(found)}. To go on, {advice}."


def group_cores(cpus: Mapping[int, CpuReading], online: Cpus, odd: Oddities) -> tuple[Cpus, ...]:
    """Online cpus grouped into physical cores, by lowest cpu.

    Two cpus share a core when each names the other, or one names the other and that one says nothing. A one-sided
    claim against the other's word is reported and not followed.
    """
    claims = _claims(cpus, online)
    groups: list[Cpus] = []
    unclear: list[int] = []
    for cpu, claim in claims.items():
        if claim is not None and all(claims[other] is claim or claims[other] == claim for other in claim):
            if cpu == claim[0]:
                groups.append(claim)
        else:
            unclear.append(cpu)
    groups.extend(_group_unclear(unclear, claims, odd))
    return tuple(sorted(groups))


def _claims(cpus: Mapping[int, CpuReading], online: Cpus) -> dict[int, Cpus | None]:
    """The online siblings that each cpu names, itself among them; equal ones are one object."""
    known = set(online)
    seen: dict[frozenset[int], Cpus] = {}
    claims: dict[int, Cpus | None] = {}
    for cpu in online:
        said = cpus.get(cpu)
        named = None if said is None or said.siblings is None else frozenset({cpu, *said.siblings} & known)
        claims[cpu] = None if named is None else seen.setdefault(named, tuple(sorted(named)))
    return claims


def _group_unclear(unclear: list[int], claims: Mapping[int, Cpus | None], odd: Oddities) -> list[Cpus]:
    """Groups of the cpus whose claims do not simply agree: those linked, directly or not, by accepted claims."""
    leader = {cpu: cpu for cpu in unclear}

    def find(cpu: int) -> int:
        while leader[cpu] != cpu:
            cpu = leader[cpu]
        return cpu

    for cpu in unclear:
        others = [other for other in claims[cpu] or () if other != cpu]
        accepted = [other for other in others if other in leader and _accepts(claims[other], cpu)]
        for other in accepted:
            first, second = sorted((find(cpu), find(other)))
            leader[second] = first
        refused = set(others) - set(accepted)
        if refused:
            odd.add(
                "cpus whose siblings (topology/core_cpus) do not name them and are taken as different cores: {}",
                f"cpu {cpu} names {format_cpu_list(refused)}",
            )
    members: dict[int, list[int]] = defaultdict(list)
    for cpu in unclear:
        members[find(cpu)].append(cpu)
    return [tuple(group) for group in members.values()]


def _accepts(claim: Cpus | None, cpu: int) -> bool:
    return claim is None or cpu in claim


def _cores(groups: Iterable[Cpus], usable: frozenset[int], reading: MachineReading) -> tuple[Core, ...]:
    node_of = _node_of_cpu(reading.nodes)
    l3_ids = _l3_ids(reading)
    efficiency = efficiency_cpus(reading.kinds, reading.online)
    cores = []
    for group in groups:
        cpus = tuple(cpu for cpu in group if cpu in usable)
        if cpus:
            said = reading.cpus.get(group[0], CpuReading())
            kind = "efficiency" if cpus[0] in efficiency else "performance"
            cores.append((cpus, said.package, node_of.get(cpus[0]), l3_ids.get(cpus[0]), kind))
    cores.sort(key=lambda core: core[0])
    return tuple(Core(index, *core) for index, core in enumerate(cores))


def _node_of_cpu(nodes: Iterable[Node]) -> dict[int, int]:
    found: dict[int, int] = {}
    for node in nodes:
        for cpu in node.cpus:
            found.setdefault(cpu, node.id)
    return found


def _l3_ids(reading: MachineReading) -> dict[int, int]:
    """Running ids of the distinct sets of cpus that share a level-3 cache; the kernel's own ids repeat."""
    ids: dict[Cpus, int] = {}
    found: dict[int, int] = {}
    for cpu in reading.online:
        said = reading.cpus.get(cpu)
        if said is not None and said.l3 is not None:
            found[cpu] = ids.setdefault(said.l3, len(ids))
    return found


def efficiency_cpus(kinds: KindReading, online: Cpus) -> frozenset[int]:
    """The cpus of slower cores; empty where all cores are of one kind, or nothing tells."""
    if kinds.efficiency_cpus is not None:
        return frozenset(kinds.efficiency_cpus)
    by_capacity = _below_gap(kinds.capacity, online, CAPACITY_GAP)
    if by_capacity:
        return by_capacity
    by_clock = _below_gap(kinds.max_khz, online, FREQUENCY_GAP)
    if by_clock and kinds.base_khz:
        # Base clocks alone differ on one kind of core (Speed Select), and so do turbo clocks: both must.
        return by_clock & _below_gap(kinds.base_khz, online, FREQUENCY_GAP)
    return by_clock


def _below_gap(values: Mapping[int, int], online: Cpus, gap: float) -> frozenset[int]:
    """The cpus below the widest step between neighbouring values, when it is wider than ``gap`` (a ratio)."""
    if not set(online) <= set(values):
        return frozenset()  # half the evidence would make a kind of what is merely unknown
    levels = sorted({values[cpu] for cpu in online if values[cpu] > 0})
    steps = [(upper / lower, upper) for lower, upper in pairwise(levels)]
    widest, bound = max(steps, default=(1.0, 0))
    return frozenset(cpu for cpu in online if values[cpu] < bound) if widest >= gap else frozenset()


def _check_cores(groups: Iterable[Cpus], reading: MachineReading, odd: Oddities) -> None:
    node_of = _node_of_cpu(reading.nodes)
    for group in groups:
        if len(group) == 1:
            continue
        said = [reading.cpus.get(cpu, CpuReading()) for cpu in group]
        name = f"cpus {format_cpu_list(group)}"
        if len(group) > MAX_THREADS:
            odd.add("siblings (topology/core_cpus) that are more than any core has: {}", name)
        if len({one.package for one in said}) > 1:
            odd.add(
                "siblings (topology/core_cpus) that lie in different packages (topology/physical_package_id): {}",
                name,
            )
        if len({one.l3 for one in said}) > 1:
            odd.add("siblings (topology/core_cpus) that have different level-3 caches (cache/index*): {}", name)
        if len({node_of.get(cpu) for cpu in group}) > 1:
            odd.add("siblings (topology/core_cpus) that lie in different nodes (node*/cpumap): {}", name)


def _check_l3(reading: MachineReading, odd: Oddities) -> None:
    groups = {said.l3 for cpu in reading.online if (said := reading.cpus.get(cpu)) is not None and said.l3}
    owners: dict[int, Cpus] = {}
    for group in sorted(groups):
        name = f"cpus {format_cpu_list(group)}"
        rivals = {owners[cpu] for cpu in group if owners.setdefault(cpu, group) != group}
        for rival in sorted(rivals):
            odd.add(
                "sets of cpus that each share a level-3 cache (cache/index*/shared_cpu_map) and overlap: {}",
                f"{format_cpu_list(rival)} and {format_cpu_list(group)}",
            )
        packages = {said.package for cpu in group if (said := reading.cpus.get(cpu)) is not None} - {None}
        if len(packages) > 1:
            odd.add(
                "level-3 caches (cache/index*/shared_cpu_map) that span packages (topology/physical_package_id): {}",
                f"{name} of packages {format_cpu_list(package for package in packages if package is not None)}",
            )
        _check_l3_nodes(group, reading, odd)


def _check_l3_nodes(group: Cpus, reading: MachineReading, odd: Oddities) -> None:
    """A cache inside one node, or over whole nodes (sub-NUMA clusters), is sound; a partial overlap is not."""
    members = set(group)
    online = set(reading.online)
    for node in reading.nodes:
        cpus = set(node.cpus) & online
        if cpus & members and not (cpus <= members or members <= cpus):
            odd.add(
                "level-3 caches (cache/index*/shared_cpu_map) that cut nodes (node*/cpumap) in two: {}",
                f"cpus {format_cpu_list(group)} and node {node.id} of cpus {format_cpu_list(cpus)}",
            )


def _check_nodes(reading: MachineReading, odd: Oddities) -> None:
    nodes_of: dict[int, tuple[int, ...]] = defaultdict(tuple)
    for node in reading.nodes:
        for cpu in node.cpus:
            nodes_of[cpu] = (*nodes_of[cpu], node.id)
    online = set(reading.online)
    sharers: dict[tuple[int, ...], list[int]] = defaultdict(list)
    for cpu, nodes in nodes_of.items():
        if len(nodes) > 1 and cpu in online:
            sharers[nodes].append(cpu)
    for nodes, cpus in sharers.items():
        odd.add(
            "cpus in several nodes at once (node*/cpumap), of which the first is taken: {}",
            f"cpus {format_cpu_list(cpus)} in nodes {format_cpu_list(nodes)}",
        )
    homeless = online - set(nodes_of)
    if reading.nodes and homeless:
        odd.add("cpus that are in no node (node*/cpumap): {}", format_cpu_list(homeless))
    _check_offline(reading, odd)


def _check_offline(reading: MachineReading, odd: Oddities) -> None:
    online = set(reading.online)
    for node in reading.nodes:
        offline = set(node.cpus) - online
        if offline:
            odd.add(
                "nodes that list cpus which are not online (node*/cpumap, cpu/online) and stay unused: {}",
                f"node {node.id} cpus {format_cpu_list(offline)}",
            )
