"""Groups cores by kind, node and L3 group, and puts them in the order in which they are allocated.

Separate from ``partition``, which works on counts only: this module handles the cores themselves, the subset that a
quota leaves, and the cores of the front. It knows nothing of instances or reasons.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from launcher.core.machine.topology import Core, Machine

MIXED = "mixed"
FAR = 255  # ACPI's distance for "not reachable"
LOCAL = 10  # ACPI's distance of a node to itself


@dataclass(frozen=True, slots=True)
class NodeCores:
    """The cores of one kind in one node, by L3 group; ``node`` None: cores that belong to no node."""

    node: int | None
    kind: str
    groups: tuple[tuple[Core, ...], ...]

    @property
    def cores(self) -> tuple[Core, ...]:
        """All cores, in allocation order."""
        return tuple(core for group in self.groups for core in group)

    @property
    def size(self) -> int:
        """The number of cores."""
        return sum(map(len, self.groups))

    @property
    def package(self) -> int | None:
        """The package of the cores; None if it is unknown, or if they are in several."""
        packages = {core.package for core in self.cores}
        return packages.pop() if len(packages) == 1 else None


KindCores = tuple[NodeCores, ...]


def by_package(nodes: KindCores) -> tuple[KindCores, ...]:
    """The nodes of each package, in order of their first node; nodes whose package is unknown stay alone."""
    packages: dict[object, list[NodeCores]] = {}
    for index, one in enumerate(nodes):
        packages.setdefault(("node", index) if one.package is None else one.package, []).append(one)
    return tuple(tuple(found) for found in packages.values())


def count_packages(cores: Iterable[Core]) -> int:
    """How many known packages these cores are in."""
    return len({core.package for core in cores} - {None})


class Distances:
    """The distances between nodes (ACPI SLIT), with a default for pairs that the kernel does not report."""

    def __init__(self, machine: Machine) -> None:
        self._known = {node.id: dict(node.distances) for node in machine.nodes}
        self._package = {core.node: core.package for core in machine.cores}

    def between(self, one: int | None, other: int | None) -> int:
        """The SLIT distance; pairs without one count as unreachable."""
        if one is None or other is None:
            return LOCAL if one == other else FAR
        return self._known.get(one, {}).get(other, LOCAL if one == other else FAR)

    def order(self, one: int | None, other: int | None) -> tuple[int, bool, int]:
        """Sort key of ``other`` by proximity to ``one``: distance, then same package, then id."""
        same_package = self._package.get(one) == self._package.get(other)
        return self.between(one, other), not same_package, -1 if other is None else other


def group_by_kind(cores: Iterable[Core], distances: Distances, *, mix_kinds: bool = False) -> tuple[KindCores, ...]:
    """The cores grouped by kind, performance cores first, then by node, each node followed by its nearest."""
    found: dict[str, dict[int | None, dict[tuple[bool, str, int], list[Core]]]] = {}
    for core in sorted(cores, key=lambda core: core.cpus[0]):
        nodes = found.setdefault(MIXED if mix_kinds else core.kind, {})
        # Cores whose L3 group is unknown are grouped by package, the next larger unit.
        place = ("l3", core.l3) if core.l3 is not None else ("package", -1 if core.package is None else core.package)
        nodes.setdefault(core.node, {}).setdefault((is_slow(core.kind), *place), []).append(core)
    return tuple(
        nearest_neighbour_order([_node_cores(node, kind, groups) for node, groups in nodes.items()], distances)
        for kind, nodes in sorted(found.items(), key=lambda item: (is_slow(item[0]), item[0]))
    )


def _node_cores(node: int | None, kind: str, groups: dict[tuple[bool, str, int], list[Core]]) -> NodeCores:
    # The sort is stable: groups stay in the order of their lowest cpu, slower cores after the others.
    in_order = sorted(groups.items(), key=lambda item: item[0][0])
    return NodeCores(node, kind, tuple(tuple(cores) for _, cores in in_order))


def is_slow(kind: str) -> bool:
    """Whether this is the slower kind on a machine with two kinds of cores."""
    return kind == "efficiency"


def nearest_neighbour_order(nodes: Sequence[NodeCores], distances: Distances) -> KindCores:
    """The nodes as a nearest-neighbour chain that starts at the lowest id."""
    left = sorted(nodes, key=lambda one: (one.node is None, one.node or 0))
    chain: list[NodeCores] = []
    while left:
        nearest = min(left, key=lambda one: distances.order(chain[-1].node, one.node)) if chain else left[0]
        left.remove(nearest)
        chain.append(nearest)
    return tuple(chain)


def closest_cores(machine: Machine, distances: Distances, count: int) -> tuple[Core, ...]:
    """``count`` cores that are close to each other, for a machine whose quota allows no more than that.

    Performance cores come first; whole L3 groups of one node if it has that many cores, otherwise of the fewest and
    nearest nodes. Nodes whose memory may be used come before others.
    """
    chosen: list[Core] = []
    for kind in group_by_kind(machine.cores, distances):
        wanted = count - len(chosen)
        start = min(kind, key=lambda one: _start_rank(one, wanted, machine))
        order = sorted(kind, key=lambda one: (one is not start, *distances.order(start.node, one.node)))
        chosen += [core for one in order for core in one.cores][:wanted]
    return tuple(chosen)


def _start_rank(one: NodeCores, wanted: int, machine: Machine) -> tuple[bool, int, int]:
    """Sort key of nodes by how well they suit as the first node for ``wanted`` cores."""
    memory_nodes = machine.limits.memory_nodes
    foreign = memory_nodes is not None and one.node not in memory_nodes
    return foreign, max(0, wanted - one.size), -1 if one.node is None else one.node


def front_cores(kinds: Sequence[KindCores], count: int) -> tuple[tuple[Core, ...], ...]:
    """The ``count`` cores that cost the instances least, as one or two alternatives: all in one node, and spread over
    the nodes.

    Slow cores are preferred if the machine has any. Among nodes, and among the L3 groups of a node, the one with
    most cores left gives the next core, which keeps the sizes even. Inside a group the lowest cpu goes first: the
    kernel handles timers and interrupts on cpu 0 by default, and an instance is as fast as its slowest thread.
    """
    together, spread = _front(kinds, count, spread=False), _front(kinds, count, spread=True)
    return (together,) if together == spread else (together, spread)


def _front(kinds: Sequence[KindCores], count: int, *, spread: bool) -> tuple[Core, ...]:
    chosen: list[Core] = []
    for kind in reversed(kinds):
        nodes = [[list(group) for group in one.groups] for one in kind]
        while len(chosen) < count and any(map(any, nodes)):
            largest = max(nodes, key=lambda groups: sum(map(len, groups)))
            for _ in range(1 if spread else min(count - len(chosen), sum(map(len, largest)))):
                chosen.append(max(largest, key=len).pop(0))
    return tuple(chosen)


def without(kinds: Sequence[KindCores], taken: Iterable[Core]) -> tuple[KindCores, ...]:
    """The cores that are not in ``taken``; empty nodes and kinds are omitted."""
    gone = {core.id for core in taken}
    left = tuple(tuple(rest for one in kind if (rest := _rest(one, gone)).groups) for kind in kinds)
    return tuple(kind for kind in left if kind)


def _rest(one: NodeCores, gone: set[int]) -> NodeCores:
    groups = (tuple(core for core in group if core.id not in gone) for group in one.groups)
    return NodeCores(one.node, one.kind, tuple(group for group in groups if group))
