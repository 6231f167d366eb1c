"""Which cores stand together, and in which order they are taken: by kind, by node, by L3 group.

Separate from ``sizes``, which only counts: here are the cores themselves, what a quota leaves of them, which of them
the front gets. No instance and no reason for one may enter.
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
    """The cores of one kind in one node, L3 group by L3 group; ``node`` None: cores in no node."""

    node: int | None
    kind: str
    groups: tuple[tuple[Core, ...], ...]

    @property
    def cores(self) -> tuple[Core, ...]:
        """All of them, in the order in which they are taken."""
        return tuple(core for group in self.groups for core in group)

    @property
    def size(self) -> int:
        """The number of cores."""
        return sum(map(len, self.groups))


KindCores = tuple[NodeCores, ...]


class Distances:
    """How far nodes are from each other (SLIT), with an answer for every pair."""

    def __init__(self, machine: Machine) -> None:
        self._known = {node.id: dict(node.distances) for node in machine.nodes}
        self._package = {core.node: core.package for core in machine.cores}

    def between(self, one: int | None, other: int | None) -> int:
        """SLIT distance; nodes the kernel does not relate count as far away."""
        if one is None or other is None:
            return LOCAL if one == other else FAR
        return self._known.get(one, {}).get(other, LOCAL if one == other else FAR)

    def order(self, one: int | None, other: int | None) -> tuple[int, bool, int]:
        """Sorts ``other`` by nearness to ``one``: distance, then the same package, then the id."""
        same_package = self._package.get(one) == self._package.get(other)
        return self.between(one, other), not same_package, -1 if other is None else other


def group_by_kind(cores: Iterable[Core], distances: Distances, *, mix_kinds: bool = False) -> tuple[KindCores, ...]:
    """The cores by kind, performance cores first; in each kind by node, each node next to its nearest."""
    found: dict[str, dict[int | None, dict[tuple[bool, str, int], list[Core]]]] = {}
    for core in sorted(cores, key=lambda core: core.cpus[0]):
        nodes = found.setdefault(MIXED if mix_kinds else core.kind, {})
        # Cores whose L3 group is not known stay together by package, the next larger thing that is.
        place = ("l3", core.l3) if core.l3 is not None else ("package", -1 if core.package is None else core.package)
        nodes.setdefault(core.node, {}).setdefault((is_slow(core.kind), *place), []).append(core)
    return tuple(
        near_order([_node_cores(node, kind, groups) for node, groups in nodes.items()], distances)
        for kind, nodes in sorted(found.items(), key=lambda item: (is_slow(item[0]), item[0]))
    )


def _node_cores(node: int | None, kind: str, groups: dict[tuple[bool, str, int], list[Core]]) -> NodeCores:
    # Stable: groups stay in the order of their lowest cpu, slower cores behind the others.
    in_order = sorted(groups.items(), key=lambda item: item[0][0])
    return NodeCores(node, kind, tuple(tuple(cores) for _, cores in in_order))


def is_slow(kind: str) -> bool:
    """Whether cores of this kind are the slower ones of a machine that has two kinds."""
    return kind == "efficiency"


def near_order(nodes: Sequence[NodeCores], distances: Distances) -> KindCores:
    """The same, from the lowest id on, each followed by the one nearest to it among those left."""
    left = sorted(nodes, key=lambda one: (one.node is None, one.node or 0))
    chain: list[NodeCores] = []
    while left:
        nearest = min(left, key=lambda one: distances.order(chain[-1].node, one.node)) if chain else left[0]
        left.remove(nearest)
        chain.append(nearest)
    return tuple(chain)


def keep_together(machine: Machine, distances: Distances, count: int) -> tuple[Core, ...]:
    """``count`` of the machine's cores that lie close to each other: what a quota leaves.

    Performance cores first; whole L3 groups of one node when it has that many, else of the fewest and nearest nodes.
    Nodes whose memory may be used come before others.
    """
    chosen: list[Core] = []
    for kind in group_by_kind(machine.cores, distances):
        wanted = count - len(chosen)
        start = min(kind, key=lambda one: _as_start(one, wanted, machine))
        order = sorted(kind, key=lambda one: (one is not start, *distances.order(start.node, one.node)))
        chosen += [core for one in order for core in one.cores][:wanted]
    return tuple(chosen)


def _as_start(one: NodeCores, wanted: int, machine: Machine) -> tuple[bool, int, int]:
    """Sorts nodes by how well ``wanted`` cores can begin in them."""
    memory_nodes = machine.limits.memory_nodes
    foreign = memory_nodes is not None and one.node not in memory_nodes
    return foreign, max(0, wanted - one.size), -1 if one.node is None else one.node


def front_cores(kinds: Sequence[KindCores], count: int) -> tuple[tuple[Core, ...], ...]:
    """The ``count`` cores that the instances miss least: in one node, and, where they differ, one node after another.

    Slow cores where there are any; of the node that has most, so that shares stay even; of the L3 group that has most
    left, for the same reason; and there the lowest cpu: the kernel gives timers and interrupts to cpu 0 unless told
    otherwise, and an instance is as fast as the most disturbed of its threads.
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
    """What is left of the cores; nodes and kinds with nothing left are gone."""
    gone = {core.id for core in taken}
    left = tuple(tuple(rest for one in kind if (rest := _rest(one, gone)).groups) for kind in kinds)
    return tuple(kind for kind in left if kind)


def _rest(one: NodeCores, gone: set[int]) -> NodeCores:
    groups = (tuple(core for core in group if core.id not in gone) for group in one.groups)
    return NodeCores(one.node, one.kind, tuple(group for group in groups if group))
