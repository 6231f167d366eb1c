"""Allocates cores to instances and to the front, and ranks the possible allocations.

``partition`` does the arithmetic on core counts, ``plan`` adds memory, reasons and warnings. This module handles cores
only: it does not compare cpu numbers, look at memory, or build messages.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass

from launcher.core.machine.topology import Core
from launcher.core.planning import partition
from launcher.core.planning.placement import (
    Distances,
    KindCores,
    NodeCores,
    by_package,
    count_packages,
    front_cores,
    without,
)
from launcher.errors import MachineError

# Equal instances count as even if the largest has at most a third more cores than the smallest: small core counts
# cannot always be divided more evenly.
EVEN_ENOUGH = 4 / 3


@dataclass(frozen=True, slots=True)
class Allocation:
    """The cores of each instance, the cores of the front, and the cores left over."""

    instances: tuple[tuple[Core, ...], ...]
    front: tuple[Core, ...]
    unused: tuple[Core, ...]

    @property
    def spanning(self) -> int:
        """The number of instances whose cores are in more than one node."""
        return sum(len({core.node for core in cores}) > 1 for cores in self.instances)

    @property
    def spanning_packages(self) -> int:
        """The number of instances whose cores are in more than one package."""
        return sum(count_packages(cores) > 1 for cores in self.instances)

    @property
    def penalty(self) -> tuple[float, ...]:
        """Sort key, lower is better: instances that span packages, those that span nodes, capacity that no instance
        uses if it exceeds ``IDLE_SHARE``, instances that share several L3 groups with others, all unused capacity, and
        the ratio of largest to smallest instance if it exceeds ``EVEN_ENOUGH``."""
        sizes = [len(cores) for cores in self.instances]
        unused = partition.capacity_of_cores(self.unused)
        used = sum(map(partition.capacity_of_cores, self.instances))
        idle = unused + partition.capacity_of_cores(self.front)
        tolerated = partition.IDLE_SHARE * (used + unused)
        return (
            self.spanning_packages,
            self.spanning,
            max(tolerated, unused),
            self._l3_crossings(),
            idle,
            max(EVEN_ENOUGH, max(sizes) / min(sizes)),
        )

    @property
    def is_optimal(self) -> bool:
        """Whether no other number of instances can give a better allocation."""
        sizes = [len(cores) for cores in self.instances]
        aligned = not (self.unused or self.spanning or self._l3_crossings())
        return aligned and max(sizes) <= EVEN_ENOUGH * min(sizes)

    def _l3_crossings(self) -> int:
        touched = [{(core.node, core.l3) for core in cores} for cores in self.instances]
        users = Counter(group for groups in touched for group in groups)
        return sum(len(groups) > 1 and any(users[group] > 1 for group in groups) for groups in touched)


def all_cores(kinds: Sequence[KindCores]) -> list[Core]:
    """All cores, in allocation order."""
    return [core for kind in kinds for one in kind for core in one.cores]


def count_cores(kinds: Sequence[KindCores]) -> int:
    """The number of cores."""
    return sum(one.size for kind in kinds for one in kind)


def _allocation(kinds: Sequence[KindCores], instances: Sequence[tuple[Core, ...]], front: Sequence[Core]) -> Allocation:
    taken = {core.id for cores in instances for core in cores} | {core.id for core in front}
    unused = tuple(core for core in all_cores(kinds) if core.id not in taken)
    return Allocation(tuple(instances), tuple(front), unused)


# -- equal instances --------------------------------------------------------------------------------------------


def equal(kinds: Sequence[KindCores], count: int, reserve: int) -> Allocation:
    """``count`` instances whose sizes differ by at most one, and ``reserve`` cores for the front.

    The front's cores are removed before the instances are sized, or taken from the instances afterwards, whichever
    gives the better allocation. There must be at least ``count + reserve`` cores.
    """
    options = [_reserved_after(kinds, count, reserve)]
    if reserve:
        options += [_reserved_before(kinds, count, front) for front in front_cores(kinds, reserve)]
    aligned = partition.aligned_size(kinds, count, count_cores(kinds) - reserve)
    if aligned is not None:
        options.append(_of_sizes(kinds, [aligned] * count, reserve))
    best = min(options, key=lambda option: option.penalty)
    return Allocation(tuple(sorted(best.instances, key=_place)), best.front, best.unused)


def in_node_order(allocation: Allocation, kinds: Sequence[Hashable]) -> Allocation:
    """The same cores, with instances that are interchangeable (equal ``kinds`` and sizes) in the order of nodes."""
    slots: dict[Hashable, list[int]] = {}
    for index, cores in enumerate(allocation.instances):
        slots.setdefault((kinds[index], len(cores)), []).append(index)
    instances = list(allocation.instances)
    for alike in slots.values():
        ordered = sorted((allocation.instances[index] for index in alike), key=_place)
        for index, cores in zip(alike, ordered, strict=True):
            instances[index] = cores
    return Allocation(tuple(instances), allocation.front, allocation.unused)


def _place(cores: Sequence[Core]) -> tuple[bool, int, int]:
    """Sort key of instances: by node, then by cpu."""
    first = min(cores, key=lambda core: core.cpus[0])
    return first.node is None, first.node or 0, first.cpus[0]


def _cut(kinds: Sequence[KindCores], count: int) -> list[tuple[Core, ...]]:
    instances = []
    for part in partition.equal_parts(kinds, count):
        cores = tuple(core for node in part.nodes for core in node.cores)
        start = 0
        for size in part.sizes:
            instances.append(cores[start : start + size])
            start += size
    return instances


def _reserved_before(kinds: Sequence[KindCores], count: int, front: Sequence[Core]) -> Allocation:
    return _allocation(kinds, _cut(without(kinds, front), count), front)


def _reserved_after(kinds: Sequence[KindCores], count: int, reserve: int) -> Allocation:
    """The front gets the cores that equal sizes leave over, then one core at a time from the largest instance."""
    instances = _cut(kinds, count)
    unused = sorted(_allocation(kinds, instances, ()).unused, key=lambda core: core.cpus[0])
    front = unused[:reserve]
    while len(front) < reserve:
        largest = max(
            range(count), key=lambda index: (len(instances[index]), instances[index][0].kind != "performance")
        )
        front.append(instances[largest][0])
        instances[largest] = instances[largest][1:]
    return _allocation(kinds, instances, front)


def default_candidates(kinds: Sequence[KindCores], reserve: int) -> Iterator[Allocation]:
    """Allocations for a number of instances chosen by the program (``--instances auto``), best first."""
    ideal, counts = partition.default_counts(kinds, count_cores(kinds) - reserve)
    found = []
    for count in counts:
        allocation = equal(kinds, count, reserve)
        found.append((allocation.penalty, abs(count - ideal), count, allocation))
        # Counts are tried nearest to the ideal first, so none of the remaining ones can beat an optimal allocation.
        if allocation.is_optimal:
            yield allocation
            break
    yield from (allocation for *_, allocation in sorted(found, key=lambda candidate: candidate[:3]))
    yield from (equal(kinds, count, reserve) for count in range(min(counts) - 1, 0, -1))


def count_using_all_cores(kinds: Sequence[KindCores], near: int) -> int | None:
    """The number of equal instances nearest to ``near`` that uses every core without spanning nodes, if any."""
    cores = count_cores(kinds)
    counts = range(max(1, near // 2), min(cores, near + 16) + 1)
    for count in sorted(counts, key=lambda count: (abs(count - near), -count)):
        parts = partition.equal_parts(kinds, count)
        if sum(sum(part.sizes) for part in parts) == cores and not any(part.spans for part in parts):
            return count
    return None


# -- instances of given sizes -----------------------------------------------------------------------------------


def exact(
    kinds: Sequence[KindCores], sizes: Sequence[int], reserve: int, distances: Distances, order: Sequence[int] = ()
) -> Allocation:
    """Instances of exactly these sizes, in the order of ``sizes``; the front gets its cores from the remainder.

    On a machine with several kinds of cores, the instances choose in this ``order`` of their indices, performance cores
    first. There must be enough cores. Raises ``MachineError`` if an instance fits only by mixing core kinds.
    """
    taken: dict[int, tuple[Core, ...]] = {}
    for kind, indices in zip(kinds, _choose_kinds(kinds, sizes, order or range(len(sizes))), strict=True):
        taken.update(_within_packages(kind, sizes, indices))
    for index in sorted(set(range(len(sizes))) - set(taken), key=lambda index: (-sizes[index], index)):
        left = without(kinds, (core for cores in taken.values() for core in cores))
        taken[index] = _across_nodes(left, sizes[index], distances)
    instances = [taken[index] for index in range(len(sizes))]
    return _allocation(kinds, instances, _allocation(kinds, instances, ()).unused[:reserve])


def _choose_kinds(kinds: Sequence[KindCores], sizes: Sequence[int], order: Sequence[int]) -> list[list[int]]:
    """The indices of the instances that each kind of cores gets; performance cores come first in ``kinds``."""
    room = [sum(one.size for one in kind) for kind in kinds]
    chosen: list[list[int]] = [[] for _ in kinds]
    for index in order:
        fitting = next((kind for kind, cores in enumerate(room) if cores >= sizes[index]), None)
        if fitting is not None:
            chosen[fitting].append(index)
            room[fitting] -= sizes[index]
    if sum(map(len, chosen)) < len(sizes) and len(kinds) > 1:
        # The largest ones first may fit where this order does not.
        by_size = sorted(range(len(sizes)), key=lambda index: (-sizes[index], index))
        return chosen if list(order) == by_size else _choose_kinds(kinds, sizes, by_size)
    return chosen


def _within_packages(kind: KindCores, sizes: Sequence[int], indices: Sequence[int]) -> dict[int, tuple[Core, ...]]:
    """The cores of each instance that fits inside one package, by its index: inside nodes if all fit inside nodes."""
    found = _within_nodes(kind, sizes, indices)
    packages = by_package(kind)
    if len(found) == len(indices) or len(packages) == len(kind):
        return found
    places = partition.assign([sum(one.size for one in nodes) for nodes in packages], [sizes[i] for i in indices])
    taken: dict[int, tuple[Core, ...]] = {}
    for place, nodes in enumerate(packages):
        here = [index for index, chosen in zip(indices, places, strict=True) if chosen == place]
        inside = _within_nodes(nodes, sizes, here)
        cores = {core.id for chosen in inside.values() for core in chosen}
        left = [core for one in nodes for core in one.cores if core.id not in cores]
        for index in sorted(set(here) - set(inside), key=lambda index: (-sizes[index], index)):
            inside[index], left = tuple(left[: sizes[index]]), left[sizes[index] :]
        taken.update(inside)
    return taken


def _within_nodes(
    nodes: Sequence[NodeCores], sizes: Sequence[int], indices: Sequence[int]
) -> dict[int, tuple[Core, ...]]:
    """The cores of each of these instances that fits inside one node, by the index of the instance."""
    if not indices:
        return {}
    places = partition.assign([one.size for one in nodes], [sizes[index] for index in indices])
    taken: dict[int, tuple[Core, ...]] = {}
    for place, one in enumerate(nodes):
        here = [index for index, chosen in zip(indices, places, strict=True) if chosen == place]
        cores = one.cores
        for chosen in partition.order_in_node(one, [sizes[index] for index in here]):
            index = here[chosen]
            taken[index], cores = cores[: sizes[index]], cores[sizes[index] :]
    return taken


def _across_nodes(left: Sequence[KindCores], size: int, distances: Distances) -> tuple[Core, ...]:
    """``size`` cores of one kind, taken from the nearest nodes that have cores left."""
    fitting = [kind for kind in left if sum(one.size for one in kind) >= size]
    if not fitting:
        there = " and ".join(kind_text(kind) for kind in left)
        raise MachineError(
            f"an instance of {size} cores does not fit: {there} cores are left, and performance and efficiency "
            "cores are not mixed in one instance; use smaller instances"
        )
    start = max(fitting[0], key=lambda one: one.size)
    near = sorted(fitting[0], key=lambda one: distances.order(start.node, one.node))
    return tuple(core for one in near for core in one.cores)[:size]


def _of_sizes(kinds: Sequence[KindCores], sizes: Sequence[int], reserve: int) -> Allocation:
    """Instances of these sizes inside nodes, as far as they fit; otherwise across the nodes in their order."""
    taken = {}
    for kind in kinds:
        taken.update(_within_nodes(kind, sizes, range(len(sizes))))
    instances = [taken[index] for index in sorted(taken)]
    left = list(_allocation(kinds, instances, ()).unused)
    for index in sorted(set(range(len(sizes))) - set(taken)):
        instances.append(tuple(left[: sizes[index]]))
        left = left[sizes[index] :]
    return _allocation(kinds, instances, left[:reserve])


def max_count_of_size(kinds: Sequence[KindCores], size: int, reserve: int) -> int:
    """How many instances of ``size`` cores fit: inside nodes if any fits inside one, else inside packages, else across
    them; at least 1."""
    rooms = [one.size // size for kind in kinds for one in kind]
    wider = [sum(one.size for one in nodes) // size for kind in kinds for nodes in by_package(kind)]
    count = sum(rooms) or sum(wider) or sum(sum(one.size for one in kind) // size for kind in kinds)
    return max(1, min(count, (count_cores(kinds) - reserve) // size))


# -- shared cores -----------------------------------------------------------------------------------------------


def oversubscribed(kinds: Sequence[KindCores], count: int, reserve: int) -> Allocation:
    """More instances than cores: one core each, assigned round-robin, in proportion to the cores of each node."""
    front = front_cores(kinds, reserve)[0] if reserve else ()
    nodes = [one for kind in without(kinds, front) for one in kind]
    instances: list[tuple[Core, ...]] = []
    for node, here in zip(nodes, partition.largest_remainder([node.size for node in nodes], count), strict=True):
        cores = node.cores
        instances += [(cores[index % len(cores)],) for index in range(here)]
    return _allocation(kinds, sorted(instances, key=lambda cores: _place(cores)[:2]), front)


def kind_text(kind: KindCores) -> str:
    """The number and kind of the cores: ``8 efficiency``."""
    return f"{sum(one.size for one in kind)} {kind[0].kind}"
