"""Which cores each instance gets, and which the front: layouts, and the choice between them.

Between ``sizes``, which counts, and ``plan``, which names the reasons. Cores only: no cpu numbers are compared, no
memory is looked at, no sentence is made.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from launcher.core.machine.topology import Core
from launcher.core.planning import partition
from launcher.core.planning.placement import Distances, KindCores, NodeCores, front_cores, without
from launcher.errors import MachineError

# A third between the largest and the smallest of equal instances is as even as small numbers get.
EVEN_ENOUGH = 4 / 3


@dataclass(frozen=True, slots=True)
class Layout:
    """The cores of each instance, those of the front, and those that nobody gets."""

    shares: tuple[tuple[Core, ...], ...]
    front: tuple[Core, ...]
    spare: tuple[Core, ...]

    @property
    def spanning(self) -> int:
        """How many instances lie in several nodes."""
        return sum(len({core.node for core in share}) > 1 for share in self.shares)

    @property
    def flaws(self) -> tuple[float, ...]:
        """What is wrong with this layout, worst first: instances over several nodes, work left undone, instances that
        share several L3 groups with others, the largest size against the smallest where that is more than a third."""
        counts = [len(share) for share in self.shares]
        idle = partition.work_of_cores(self.spare) + partition.work_of_cores(self.front)
        return self.spanning, idle, self._l3_crossings(), max(EVEN_ENOUGH, max(counts) / min(counts))

    @property
    def flawless(self) -> bool:
        """Whether no other number of instances can have a better layout."""
        counts = [len(share) for share in self.shares]
        in_place = not (self.spare or self.spanning or self._l3_crossings())
        return in_place and max(counts) <= EVEN_ENOUGH * min(counts)

    def _l3_crossings(self) -> int:
        touched = [{(core.node, core.l3) for core in share} for share in self.shares]
        users = Counter(group for groups in touched for group in groups)
        return sum(len(groups) > 1 and any(users[group] > 1 for group in groups) for groups in touched)


def all_cores(kinds: Sequence[KindCores]) -> list[Core]:
    """All of the cores, in the order in which they are taken."""
    return [core for kind in kinds for one in kind for core in one.cores]


def total(kinds: Sequence[KindCores]) -> int:
    """The number of cores."""
    return sum(one.size for kind in kinds for one in kind)


def _layout(kinds: Sequence[KindCores], shares: Sequence[tuple[Core, ...]], front: Sequence[Core]) -> Layout:
    taken = {core.id for share in shares for core in share} | {core.id for core in front}
    spare = tuple(core for core in all_cores(kinds) if core.id not in taken)
    return Layout(tuple(shares), tuple(front), spare)


# -- equal instances --------------------------------------------------------------------------------------------


def equal(kinds: Sequence[KindCores], count: int, reserve: int) -> Layout:
    """``count`` instances whose sizes differ by at most one, and ``reserve`` cores for the front.

    The front's cores are taken away before the sizes are found, or from the instances afterwards: what is better.
    There must be as many cores.
    """
    options = [_reserved_after(kinds, count, reserve)]
    if reserve:
        options += [_reserved_before(kinds, count, front) for front in front_cores(kinds, reserve)]
    return min(options, key=lambda option: option.flaws)


def _cut(kinds: Sequence[KindCores], count: int) -> list[tuple[Core, ...]]:
    shares = []
    for part in partition.equal_parts(kinds, count):
        cores = tuple(core for one in part.nodes for core in one.cores)
        start = 0
        for size in part.sizes:
            shares.append(cores[start : start + size])
            start += size
    return shares


def _reserved_before(kinds: Sequence[KindCores], count: int, front: Sequence[Core]) -> Layout:
    return _layout(kinds, _cut(without(kinds, front), count), front)


def _reserved_after(kinds: Sequence[KindCores], count: int, reserve: int) -> Layout:
    """The front gets what equal sizes leave over, then one core at a time of the largest instance."""
    shares = _cut(kinds, count)
    spare = sorted(_layout(kinds, shares, ()).spare, key=lambda core: core.cpus[0])
    front = spare[:reserve]
    while len(front) < reserve:
        largest = max(range(count), key=lambda index: (len(shares[index]), shares[index][0].kind != "performance"))
        front.append(shares[largest][0])
        shares[largest] = shares[largest][1:]
    return _layout(kinds, shares, front)


def default(kinds: Sequence[KindCores], reserve: int) -> Iterator[Layout]:
    """Layouts for a number of instances that nobody has asked for, best first."""
    ideal, counts = partition.default_counts(kinds, total(kinds) - reserve)
    found = []
    for count in counts:
        layout = equal(kinds, count, reserve)
        found.append((layout.flaws, abs(count - ideal), count, layout))
        # They come nearest to the ideal first, so that none of the others can be better than one without a flaw.
        if layout.flawless:
            yield layout
            break
    yield from (layout for *_, layout in sorted(found, key=lambda one: one[:3]))
    yield from (equal(kinds, count, reserve) for count in range(min(counts) - 1, 0, -1))


def uses_all(kinds: Sequence[KindCores], near: int) -> int | None:
    """The number of equal instances nearest to ``near`` that leaves no core over and crosses no node, if any."""
    cores = total(kinds)
    counts = range(max(1, near // 2), min(cores, near + 16) + 1)
    for count in sorted(counts, key=lambda count: (abs(count - near), -count)):
        parts = partition.equal_parts(kinds, count)
        if sum(sum(part.sizes) for part in parts) == cores and not any(part.spans for part in parts):
            return count
    return None


# -- instances of given sizes -----------------------------------------------------------------------------------


def exact(kinds: Sequence[KindCores], wanted: Sequence[int], reserve: int, distances: Distances) -> Layout:
    """Instances of exactly these sizes, in the order of ``wanted``; the front gets of what is left.

    There must be as many cores. Raises ``MachineError`` when only a mixture of kinds would be large enough.
    """
    nodes = [one for kind in kinds for one in kind]
    taken = _inside(nodes, wanted)
    for index in sorted(set(range(len(wanted))) - set(taken), key=lambda index: (-wanted[index], index)):
        left = without(kinds, (core for cores in taken.values() for core in cores))
        taken[index] = _across(left, wanted[index], distances)
    shares = [taken[index] for index in range(len(wanted))]
    return _layout(kinds, shares, _layout(kinds, shares, ()).spare[:reserve])


def _inside(nodes: Sequence[NodeCores], wanted: Sequence[int]) -> dict[int, tuple[Core, ...]]:
    """The cores of every instance that fits in a node, by its index."""
    places = partition.assign([one.size for one in nodes], wanted)
    taken: dict[int, tuple[Core, ...]] = {}
    for place, one in enumerate(nodes):
        here = [index for index, chosen in enumerate(places) if chosen == place]
        cores = one.cores
        for chosen in partition.order_in_node(one, [wanted[index] for index in here]):
            index = here[chosen]
            taken[index], cores = cores[: wanted[index]], cores[wanted[index] :]
    return taken


def _across(left: Sequence[KindCores], size: int, distances: Distances) -> tuple[Core, ...]:
    """``size`` cores of one kind from the nearest nodes that have some left."""
    roomy = [kind for kind in left if sum(one.size for one in kind) >= size]
    if not roomy:
        there = " and ".join(kind_text(kind) for kind in left)
        raise MachineError(
            f"an instance of {size} cores finds {there} left, and performance and efficiency cores are not mixed in "
            "one instance; smaller instances would fit"
        )
    start = max(roomy[0], key=lambda one: one.size)
    near = sorted(roomy[0], key=lambda one: distances.order(start.node, one.node))
    return tuple(core for one in near for core in one.cores)[:size]


def count_of_size(kinds: Sequence[KindCores], size: int, reserve: int) -> int:
    """As many instances of ``size`` cores as there is room for, inside nodes if any fits there; at least 1."""
    rooms = [one.size // size for kind in kinds for one in kind]
    count = sum(rooms) or sum(sum(one.size for one in kind) // size for kind in kinds)
    return max(1, min(count, (total(kinds) - reserve) // size))


# -- shared cores -----------------------------------------------------------------------------------------------


def in_turn(kinds: Sequence[KindCores], count: int, reserve: int) -> Layout:
    """More instances than cores: one core each, given out in turn, in proportion to the cores of each node."""
    front = front_cores(kinds, reserve)[0] if reserve else ()
    nodes = [one for kind in without(kinds, front) for one in kind]
    shares = []
    for one, here in zip(nodes, partition.largest_remainder([one.size for one in nodes], count), strict=True):
        cores = one.cores
        shares += [(cores[index % len(cores)],) for index in range(here)]
    return _layout(kinds, shares, front)


def kind_text(kind: KindCores) -> str:
    """How many cores of which kind: ``8 efficiency``."""
    return f"{sum(one.size for one in kind)} {kind[0].kind}"
