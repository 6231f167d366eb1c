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

from launcher.core.cpuset import format_cpu_list
from launcher.core.topology import Core, Limits, Machine, Node
from launcher.errors import MachineError

Cpus = tuple[int, ...]

# Cores of one kind differ by turbo bins (5.2 and 5.0 GHz in one hybrid part); kinds differ by a quarter and more.
FREQUENCY_GAP = 1.2
CAPACITY_GAP = 1.1


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
    problems: tuple[str, ...] = ()


def build_machine(reading: MachineReading, *, include_isolated: bool = False) -> Machine:
    """The machine as it may be used. Raises ``MachineError`` when no cpu is left to use."""
    warnings = list(reading.problems)
    allowed = _allowed(reading, include_isolated)
    usable = frozenset(allowed if include_isolated else set(allowed) - set(reading.isolated))
    if not usable:
        raise MachineError(_nothing_usable(reading, include_isolated))
    groups = group_cores(reading.cpus, reading.online, warnings)
    _check_groups(groups, reading, warnings)
    cores = _cores(groups, usable, reading)
    _check_l3(reading, warnings)
    _check_nodes(reading, warnings)
    return Machine(
        arch=reading.arch,
        vendor=reading.vendor,
        model=reading.model,
        isa=reading.isa,
        present=reading.present,
        online=reading.online,
        allowed=allowed,
        isolated=reading.isolated,
        cores=cores,
        nodes=reading.nodes,
        limits=reading.limits,
        warnings=tuple(warnings),
        memory_bytes=reading.memory_bytes,
        free_bytes=reading.free_bytes,
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


def group_cores(cpus: Mapping[int, CpuReading], online: Cpus, warnings: list[str]) -> tuple[Cpus, ...]:
    """Online cpus grouped into physical cores, by lowest cpu.

    Two cpus share a core when each names the other, or one names the other and that one says nothing. A one-sided
    claim against the other's word is reported and not followed.
    """
    known = set(online)
    claims = {cpu: _claim(cpus.get(cpu), cpu, known) for cpu in online}
    groups: list[Cpus] = []
    odd: list[int] = []
    for cpu, claim in claims.items():
        if claim is not None and all(claims[other] == claim for other in claim):
            if cpu == claim[0]:
                groups.append(claim)
        else:
            odd.append(cpu)
    groups.extend(_group_odd(odd, claims, warnings))
    return tuple(sorted(groups))


def _claim(reading: CpuReading | None, cpu: int, online: set[int]) -> Cpus | None:
    if reading is None or reading.siblings is None:
        return None
    return tuple(sorted({cpu, *reading.siblings} & online))


def _group_odd(odd: list[int], claims: Mapping[int, Cpus | None], warnings: list[str]) -> list[Cpus]:
    """Groups of the cpus whose claims do not simply agree."""
    leader = {cpu: cpu for cpu in odd}

    def find(cpu: int) -> int:
        while leader[cpu] != cpu:
            cpu = leader[cpu]
        return cpu

    for cpu in odd:
        refused = []
        for other in claims[cpu] or ():
            answer = claims[other]
            if other == cpu:
                continue
            if other in leader and (answer is None or cpu in answer):
                first, second = sorted((find(cpu), find(other)))
                leader[second] = first
            else:
                refused.append(other)
        if refused:
            warnings.append(
                f"cpu{cpu}/topology/core_cpus_list names cpus {format_cpu_list(refused)} as siblings, whose own "
                f"files do not name cpu {cpu}; they are taken as different cores"
            )
    members: dict[int, list[int]] = defaultdict(list)
    for cpu in odd:
        members[find(cpu)].append(cpu)
    return [tuple(group) for group in members.values()]


def _check_groups(groups: Iterable[Cpus], reading: MachineReading, warnings: list[str]) -> None:
    node_of = _node_of_cpu(reading.nodes)
    for group in groups:
        if len(group) == 1:
            continue
        nodes = {node_of.get(cpu) for cpu in group}
        readings = [reading.cpus.get(cpu, CpuReading()) for cpu in group]
        name = f"cpus {format_cpu_list(group)} share a core (topology/core_cpus_list)"
        packages = {one.package for one in readings}
        if len(packages) > 1:
            warnings.append(f"{name} but lie in packages {_listed(packages)} (topology/physical_package_id)")
        if len(nodes) > 1:
            warnings.append(f"{name} but lie in nodes {_listed(nodes)} (node*/cpulist)")
        if len({one.l3 for one in readings}) > 1:
            warnings.append(f"{name} but not a level-3 cache (cache/index*/shared_cpu_list)")


def _listed(ids: set[int | None]) -> str:
    known = sorted(number for number in ids if number is not None)
    return ", ".join([*map(str, known), *(["none"] if None in ids else [])])


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


def _check_l3(reading: MachineReading, warnings: list[str]) -> None:
    groups = {said.l3 for cpu in reading.online if (said := reading.cpus.get(cpu)) is not None and said.l3}
    owners: dict[int, Cpus] = {}
    for group in sorted(groups):
        for cpu in group:
            if owners.setdefault(cpu, group) != group:
                warnings.append(
                    f"cpus {format_cpu_list(owners[cpu])} and cpus {format_cpu_list(group)} are both said to share "
                    f"the level-3 cache of cpu {cpu} (cache/index*/shared_cpu_list)"
                )
                break
        packages = {said.package for cpu in group if (said := reading.cpus.get(cpu)) is not None}
        if len(packages - {None}) > 1:
            warnings.append(
                f"the level-3 cache of cpus {format_cpu_list(group)} (cache/index*/shared_cpu_list) spans packages "
                f"{_listed(packages - {None})} (topology/physical_package_id)"
            )
        _check_l3_nodes(group, reading, warnings)


def _check_l3_nodes(group: Cpus, reading: MachineReading, warnings: list[str]) -> None:
    """A cache inside one node, or over whole nodes (sub-NUMA clusters), is sound; a partial overlap is not."""
    members = set(group)
    online = set(reading.online)
    for node in reading.nodes:
        cpus = set(node.cpus) & online
        if cpus & members and not (cpus <= members or members <= cpus):
            warnings.append(
                f"the level-3 cache of cpus {format_cpu_list(group)} (cache/index*/shared_cpu_list) overlaps node "
                f"{node.id} of cpus {format_cpu_list(cpus)} (node{node.id}/cpulist) only in part"
            )


def _check_nodes(reading: MachineReading, warnings: list[str]) -> None:
    owner: dict[int, int] = {}
    online = set(reading.online)
    for node in reading.nodes:
        shared: dict[int, list[int]] = defaultdict(list)
        for cpu in node.cpus:
            if owner.setdefault(cpu, node.id) != node.id:
                shared[owner[cpu]].append(cpu)
        for other, cpus in shared.items():
            warnings.append(
                f"cpus {format_cpu_list(cpus)} are in two nodes, {other} and {node.id} (node{other}/cpulist, "
                f"node{node.id}/cpulist); node {other} is taken"
            )
        offline = set(node.cpus) - online
        if offline:
            warnings.append(
                f"node{node.id}/cpulist names cpus {format_cpu_list(offline)}, which are not online; they are unused"
            )
    homeless = online - set(owner)
    if reading.nodes and homeless:
        warnings.append(f"cpus {format_cpu_list(homeless)} are in no node (node*/cpulist)")
