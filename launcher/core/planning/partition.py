"""The number of instances, their sizes and their nodes: arithmetic on core counts.

Separate from the plan because these rules can be stated and tested as arithmetic: proportional shares by largest
remainder, sizes that differ by at most one, boundaries that coincide with those of L3 groups, bin packing. This module
does not handle cpus, memory or text.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from launcher.core.machine.topology import Core
from launcher.core.planning.placement import KindCores, NodeCores, by_package, is_slow

# Instances span nodes, packages or parts of L3 groups only if avoiding it would leave more than this fraction of the
# cores idle.
IDLE_SHARE = 0.1
# Approximate capacity of an efficiency core relative to a performance core, and of an instance that spans packages
# relative to one that does not (27 to 33 % less was measured for up to 128 tokens). Used only to rank allocations.
SLOW_WEIGHT = 0.5
SPAN_WEIGHT = 0.7

# docs/decisions/0002-default-instances.md
DEFAULT_INSTANCES = 4
LARGEST_DEFAULT = 12
SMALLEST_L3_UNIT = 6
MAX_CANDIDATES = 16


@dataclass(frozen=True, slots=True)
class Part:
    """Instances of these sizes, cut consecutively from the cores of these nodes."""

    nodes: KindCores
    sizes: tuple[int, ...]

    @property
    def spans(self) -> bool:
        """Whether an instance may span nodes."""
        return len(self.nodes) > 1

    @property
    def spans_packages(self) -> bool:
        """Whether an instance may span packages."""
        return len(by_package(self.nodes)) > 1


def largest_remainder(weights: Sequence[int], count: int) -> tuple[int, ...]:
    """``count`` divided in proportion to ``weights`` (Hamilton's method); of equal remainders the first wins."""
    total = sum(weights)
    shares = [count * weight // total for weight in weights]
    by_remainder = sorted(range(len(weights)), key=lambda index: (-(count * weights[index] % total), index))
    for index in by_remainder[: count - sum(shares)]:
        shares[index] += 1
    return tuple(shares)


def cut(lengths: Sequence[int], count: int, total: int) -> tuple[tuple[int, int], ...]:
    """Divide ``total`` cores, which come in segments of these ``lengths``, among ``count`` instances.

    Cuts at segment boundaries wherever sizes that differ by at most one allow it. Returns (instances, cores) of each
    piece.
    """
    smallest, longer = divmod(total, count)
    largest = smallest + (longer > 0)
    pieces: list[tuple[int, int]] = []
    start = 0
    for end in itertools.accumulate(lengths):
        cores, left = end - start, total - end
        if left <= 0:
            break
        fewest = max(-(-cores // largest), count - left // smallest)
        if 0 < fewest <= min(cores // smallest, count - -(-left // largest)):
            pieces.append((fewest, cores))
            count, start = count - fewest, end
    return (*pieces, (count, total - start))


def aligned_size(kinds: Sequence[KindCores], count: int, cores: int) -> int | None:
    """The largest size of ``count`` equal instances, on ``cores`` cores, that consists of whole L3 groups; None if the
    groups differ in size, or if it leaves more than ``IDLE_SHARE`` of the cores idle."""
    groups = {len(group) for kind in kinds for one in kind for group in one.groups}
    if len(groups) != 1 or len(kinds) != 1:
        return None
    group = groups.pop()
    size = cores // count // group * group
    return size if size and count * size >= cores * (1 - IDLE_SHARE) else None


def sizes_of(nodes: KindCores, count: int, smallest: int) -> tuple[int, ...]:
    """The sizes of ``count`` instances: ``smallest`` cores each, or one more as far as these nodes have cores."""
    total = min(sum(one.size for one in nodes), count * (smallest + 1))
    groups = [len(group) for one in nodes for group in one.groups]
    sizes: list[int] = []
    start = 0
    for instances, cores in cut([one.size for one in nodes], count, total):
        for part_instances, part_cores in cut(_between(groups, start, start + cores), instances, cores):
            size, longer = divmod(part_cores, part_instances)
            sizes += [size + 1] * longer + [size] * (part_instances - longer)
        start += cores
    return tuple(sizes)


def _between(lengths: Sequence[int], start: int, stop: int) -> list[int]:
    ends = list(itertools.accumulate(lengths))
    clipped = (min(end, stop) - max(end - length, start) for end, length in zip(ends, lengths, strict=True))
    return [length for length in clipped if length > 0]


def equal_parts(kinds: Sequence[KindCores], count: int) -> tuple[Part, ...]:
    """``count`` instances whose sizes differ by at most one; there must be at least that many cores.

    Divided over kinds and nodes in proportion to their cores. Cores that equal sizes cannot use are left over.
    """
    options = [_parts(kinds, shares) for shares in _shares_of_kinds(kinds, count)]
    return max(options, key=capacity_of)


def _shares_of_kinds(kinds: Sequence[KindCores], count: int) -> Iterator[tuple[int, ...]]:
    totals = [sum(one.size for one in kind) for kind in kinds]
    if len(kinds) > 1:
        for chosen, total in enumerate(totals):
            if count <= total:
                yield tuple(count if index == chosen else 0 for index in range(len(kinds)))
    yield largest_remainder(totals, count)


def capacity_of(parts: Sequence[Part]) -> float:
    """The capacity of these instances, in performance cores."""
    return sum(_capacity_of_part(part) for part in parts)


def _capacity_of_part(part: Part) -> float:
    weight = SLOW_WEIGHT if is_slow(part.nodes[0].kind) else 1.0
    return sum(part.sizes) * weight * (SPAN_WEIGHT if part.spans_packages else 1.0)


def capacity_of_cores(cores: Sequence[Core]) -> float:
    """The capacity of these cores, in performance cores."""
    return sum(SLOW_WEIGHT if is_slow(core.kind) else 1.0 for core in cores)


def _parts(kinds: Sequence[KindCores], shares: Sequence[int]) -> tuple[Part, ...]:
    segments: list[tuple[KindCores, int]] = []
    for kind, count in zip(kinds, shares, strict=True):
        if count:
            segments += _segments(kind, count)
    smallest = min(sum(one.size for one in nodes) // count for nodes, count in segments)
    segments = [part for nodes, count in segments for part in _into_nodes(nodes, count, smallest)]
    return tuple(Part(nodes, sizes_of(nodes, count, smallest)) for nodes, count in segments)


def _into_nodes(nodes: KindCores, count: int, size: int) -> list[tuple[KindCores, int]]:
    """The nodes one by one if ``count`` instances of ``size`` cores fit inside them, which they may do although they
    were sized for a package or for the machine."""
    shares = largest_remainder([one.size for one in nodes], count)
    if all(share * size <= one.size for one, share in zip(nodes, shares, strict=True)):
        return [((one,), share) for one, share in zip(nodes, shares, strict=True) if share]
    return [(nodes, count)]


def _segments(kind: KindCores, count: int) -> list[tuple[KindCores, int]]:
    """The nodes that instances are cut from: each node by itself if the instances fit, or else the nodes of each
    package, or else all nodes in one segment."""
    inside = _divided([(one,) for one in kind], count)
    if inside:
        return inside
    packages = by_package(kind)
    # Of instances that fit into the packages, those of one package may even fit into its nodes.
    within = _divided(packages, count) if len(packages) < len(kind) else []
    return [
        part for nodes, share in within for part in (_divided([(one,) for one in nodes], share) or [(nodes, share)])
    ] or [(kind, count)]


def _divided(segments: Sequence[KindCores], count: int) -> list[tuple[KindCores, int]]:
    """The instances of each segment, in proportion to its cores; empty if they do not fit and would leave too many
    cores idle."""
    rooms = [sum(one.size for one in nodes) for nodes in segments]
    shares = largest_remainder(rooms, count)
    smallest = min(room // share for room, share in zip(rooms, shares, strict=True) if share)
    used = sum(min(room, share * (smallest + 1)) for room, share in zip(rooms, shares, strict=True))
    if sum(rooms) // count > max(rooms) and used < sum(rooms) * (1 - IDLE_SHARE):
        return []
    return [(nodes, share) for nodes, share in zip(segments, shares, strict=True) if share]


def default_counts(kinds: Sequence[KindCores], cores: int) -> tuple[float, tuple[int, ...]]:
    """For ``--instances auto``, with ``cores`` cores for instances: the ideal number of instances, and the numbers to
    try, nearest first. See docs/decisions/0002-default-instances.md."""
    size = min(_unit(kinds), max(1.0, cores // DEFAULT_INSTANCES + (cores % DEFAULT_INSTANCES >= 2)))
    ideal = max(1.0, cores / size)
    near = range(max(1, math.ceil(ideal * 0.6)), max(1, min(cores, math.floor(ideal * 1.5))) + 1)
    counts = sorted(near, key=lambda count: (abs(count - ideal), count))
    if len(counts) > MAX_CANDIDATES:
        nodes = sum(map(len, kinds))
        # Of many candidates, those that divide evenly over the nodes are worth trying.
        counts = [counts[0], *(count for count in counts[1:] if count % nodes == 0)][:MAX_CANDIDATES]
    return ideal, tuple(counts)


def _unit(kinds: Sequence[KindCores]) -> float:
    """The natural size of an instance on this machine: several L3 groups of a node, or an equal part of one."""
    groups = _median(len(group) for kind in kinds for one in kind for group in one.groups)
    node = _median(one.size for kind in kinds for one in kind)
    if groups < SMALLEST_L3_UNIT:
        return min(node, groups * math.ceil(SMALLEST_L3_UNIT / groups))
    return groups / math.ceil(groups / LARGEST_DEFAULT)


def _median(numbers: Iterable[int]) -> int:
    in_order = sorted(numbers)
    return in_order[len(in_order) // 2]


def assign(room: Sequence[int], sizes: Sequence[int], tries: int = 20_000) -> tuple[int | None, ...]:
    """Bin packing: the node of each instance, by index into ``room``; None: it fits in no node.

    Worst fit decreasing if everything fits that way, otherwise best fit decreasing, otherwise a search of at most
    ``tries`` steps. Equal sizes are divided in proportion to the room of the nodes.
    """
    if len(set(sizes)) == 1:
        return _assign_equal(room, sizes[0], len(sizes))
    order = sorted(range(len(sizes)), key=lambda index: (-sizes[index], index))
    largest_first = [sizes[index] for index in order]
    worst_fit = _fit(room, largest_first, emptiest=True)
    found = worst_fit if None not in worst_fit else _fit(room, largest_first, emptiest=False)
    if None in found:
        searched = _search(list(room), largest_first, itertools.count(), tries)
        found = found if searched is None else searched
    nodes: list[int | None] = [None] * len(sizes)
    for index, node in zip(order, found, strict=True):
        nodes[index] = node
    return tuple(nodes)


def _assign_equal(room: Sequence[int], size: int, count: int) -> tuple[int | None, ...]:
    limits = [cores // size for cores in room]
    shares = list(limits)
    if sum(limits) > count:
        shares = [min(pair) for pair in zip(largest_remainder(room, count), limits, strict=True)]
        while sum(shares) < count:
            emptiest = max(range(len(room)), key=lambda index: (limits[index] - shares[index], -index))
            shares[emptiest] += 1
    nodes: list[int | None] = [index for index, share in enumerate(shares) for _ in range(share)]
    return (*nodes, *[None] * (count - len(nodes)))


def _fit(room: Sequence[int], sizes: Sequence[int], *, emptiest: bool) -> list[int | None]:
    """Worst fit (``emptiest``) or best fit, in the order of ``sizes``."""
    left = list(room)
    nodes: list[int | None] = []
    for size in sizes:
        fitting = [index for index, cores in enumerate(left) if cores >= size]
        if not fitting:
            nodes.append(None)
            continue
        best = min(fitting, key=lambda index: (-left[index] if emptiest else left[index], index))
        left[best] -= size
        nodes.append(best)
    return nodes


def _search(left: list[int], sizes: Sequence[int], steps: Iterator[int], tries: int) -> list[int | None] | None:
    if not sizes:
        return []
    seen: set[int] = set()
    for index, cores in enumerate(left):
        # Nodes with the same room are equivalent choices.
        if cores < sizes[0] or cores in seen or next(steps) > tries:
            continue
        seen.add(cores)
        left[index] -= sizes[0]
        rest = _search(left, sizes[1:], steps, tries)
        left[index] += sizes[0]
        if rest is not None:
            return [index, *rest]
    return None


def order_in_node(one: NodeCores, sizes: Sequence[int]) -> tuple[int, ...]:
    """The indices of ``sizes``, larger first, reordered so that instances end at L3 group boundaries if possible."""
    ends = set(itertools.accumulate(len(group) for group in one.groups))
    left = sorted(range(len(sizes)), key=lambda index: (-sizes[index], index))
    order: list[int] = []
    position = 0
    while left:
        chosen = next((index for index in left if position + sizes[index] in ends), left[0])
        left.remove(chosen)
        order.append(chosen)
        position += sizes[chosen]
    return tuple(order)
