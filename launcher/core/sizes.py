"""How many instances, of how many cores, in which nodes: arithmetic on counts of cores.

Separate from the plan because these are the rules that can be stated and tested as sums: shares by largest remainder,
sizes that differ by at most one, ends that meet the ends of L3 groups. No cpu, no memory and no text may enter.
"""

from __future__ import annotations

import bisect
import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from launcher.core.placement import KindCores, NodeCores, is_slow

# Over nodes only where staying inside them would leave more than this share of the cores idle.
IDLE_SHARE = 0.1
# An efficiency core's work against a performance core's, roughly; decides only which kind an only instance gets.
SLOW_WEIGHT = 0.5

# docs/decisions/0002-default-instances.md
DEFAULT_INSTANCES = 4
LARGEST_DEFAULT = 12
SMALLEST_L3_UNIT = 6
MOST_CANDIDATES = 24
EVEN_ENOUGH = 4 / 3


@dataclass(frozen=True, slots=True)
class Part:
    """Instances of these sizes, cut one after the other out of the cores of these nodes."""

    nodes: KindCores
    sizes: tuple[int, ...]

    @property
    def spans(self) -> bool:
        """Whether an instance may lie in more than one node."""
        return len(self.nodes) > 1


def largest_remainder(weights: Sequence[int], count: int) -> tuple[int, ...]:
    """``count`` things shared in proportion to ``weights`` (Hamilton's method); equal remainders: the first wins."""
    total = sum(weights)
    shares = [count * weight // total for weight in weights]
    by_remainder = sorted(range(len(weights)), key=lambda index: (-(count * weights[index] % total), index))
    for index in by_remainder[: count - sum(shares)]:
        shares[index] += 1
    return tuple(shares)


def cut(lengths: Sequence[int], count: int, total: int) -> tuple[tuple[int, int], ...]:
    """``count`` instances on ``total`` cores that stand in stretches of these ``lengths``, divided at the ends of
    stretches wherever sizes that differ by at most one allow it: (instances, cores) of each piece.
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


def sizes_of(nodes: KindCores, count: int, smallest: int) -> tuple[int, ...]:
    """The sizes of ``count`` instances of ``smallest`` cores, or one more where these nodes have them."""
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
    """``count`` instances whose sizes differ by at most one; there must be as many cores.

    Shared over kinds and nodes in proportion to their cores. Cores that equal sizes cannot use are left over.
    """
    options = [_parts(kinds, shares) for shares in _shares_of_kinds(kinds, count)]
    return max(options, key=work_of)


def _shares_of_kinds(kinds: Sequence[KindCores], count: int) -> Iterator[tuple[int, ...]]:
    totals = [sum(one.size for one in kind) for kind in kinds]
    if len(kinds) > 1:
        for chosen, total in enumerate(totals):
            if count <= total:
                yield tuple(count if index == chosen else 0 for index in range(len(kinds)))
    yield largest_remainder(totals, count)


def work_of(parts: Sequence[Part]) -> float:
    """The cores in use, slow ones counted as ``SLOW_WEIGHT``."""
    return sum(sum(part.sizes) * (SLOW_WEIGHT if is_slow(part.nodes[0].kind) else 1.0) for part in parts)


def _parts(kinds: Sequence[KindCores], shares: Sequence[int]) -> tuple[Part, ...]:
    stretches: list[tuple[KindCores, int]] = []
    for kind, count in zip(kinds, shares, strict=True):
        if count:
            stretches += _stretches(kind, count)
    smallest = min(sum(one.size for one in nodes) // count for nodes, count in stretches)
    return tuple(Part(nodes, sizes_of(nodes, count, smallest)) for nodes, count in stretches)


def _stretches(kind: KindCores, count: int) -> list[tuple[KindCores, int]]:
    """The nodes that instances are cut out of: each by itself when they fit, else all in one row."""
    total = sum(one.size for one in kind)
    inside = [
        ((one,), share)
        for one, share in zip(kind, largest_remainder([one.size for one in kind], count), strict=True)
        if share
    ]
    if total // count <= max(one.size for one in kind):
        return list(inside)
    smallest = min(one.size // share for (one,), share in inside)
    used = sum(min(one.size, share * (smallest + 1)) for (one,), share in inside)
    return list(inside) if used >= total * (1 - IDLE_SHARE) else [(kind, count)]


@dataclass(frozen=True, slots=True)
class Candidate:
    """A number of instances for ``auto``. ``flaws`` sort the candidates: what is wrong with this one, worst first."""

    count: int
    flaws: tuple[float, ...]


def default_counts(kinds: Sequence[KindCores]) -> tuple[Candidate, ...]:
    """Numbers of instances for ``auto``, best first; never empty. docs/decisions/0002-default-instances.md."""
    total = sum(one.size for kind in kinds for one in kind)
    size = min(_l3_unit(kinds), max(1.0, total // DEFAULT_INSTANCES + (total % DEFAULT_INSTANCES >= 2)))
    ideal = max(1, min(total, round(total / size)))
    near = range(max(1, -(-ideal * 3 // 5)), min(total, ideal * 3 // 2) + 1)
    counts = set(near)
    if len(near) > MOST_CANDIDATES:
        nodes = sum(map(len, kinds))
        even = [count for count in near if count % nodes == 0]
        counts = {ideal, *even[:: max(1, len(even) // MOST_CANDIDATES)]}
    found = (Candidate(count, (*_flaws(kinds, count), abs(count - ideal), count)) for count in counts)
    return tuple(sorted(found, key=lambda candidate: candidate.flaws))


def _l3_unit(kinds: Sequence[KindCores]) -> float:
    """The size of an instance that suits the machine's L3 groups: some of them whole, or one in equal parts."""
    groups = sorted(len(group) for kind in kinds for one in kind for group in one.groups)
    typical = groups[len(groups) // 2]
    if typical < SMALLEST_L3_UNIT:
        return typical * -(-SMALLEST_L3_UNIT // typical)
    return typical / -(-typical // LARGEST_DEFAULT)


def _flaws(kinds: Sequence[KindCores], count: int) -> tuple[float, ...]:
    """What is wrong with that many equal instances, worst first: nodes crossed, work left undone, instances that
    share several L3 groups with others, the largest size against the smallest where that is more than a third."""
    parts = equal_parts(kinds, count)
    everything = tuple(Part(kind, tuple(one.size for one in kind)) for kind in kinds)
    sizes = [size for part in parts for size in part.sizes]
    undone = work_of(everything) - work_of(parts)
    return (
        any(part.spans for part in parts),
        undone,
        sum(map(l3_crossings, parts)),
        max(EVEN_ENOUGH, max(sizes) / min(sizes)),
    )


def l3_crossings(part: Part) -> int:
    """How many instances of this part lie in several L3 groups without filling all of them."""
    ends = [0, *itertools.accumulate(len(group) for one in part.nodes for group in one.groups)]
    borders = set(ends)
    crossings = 0
    start = 0
    for size in part.sizes:
        stop = start + size
        whole = start in borders and stop in borders
        crossings += not whole and bisect.bisect_right(ends, start) != bisect.bisect_left(ends, stop)
        start = stop
    return crossings


def assign(room: Sequence[int], sizes: Sequence[int], tries: int = 20_000) -> tuple[int | None, ...]:
    """The node of each instance of a given size, by index into ``room``; None: it fits in no node any more.

    Spread over the emptiest nodes when all fit that way, else packed, else searched for (``tries`` steps at most).
    Equal sizes are shared in proportion to what the nodes can take.
    """
    if len(set(sizes)) == 1:
        return _assign_equal(room, sizes[0], len(sizes))
    order = sorted(range(len(sizes)), key=lambda index: (-sizes[index], index))
    largest_first = [sizes[index] for index in order]
    spread = _fill(room, largest_first, emptiest=True)
    found = spread if None not in spread else _fill(room, largest_first, emptiest=False)
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


def _fill(room: Sequence[int], sizes: Sequence[int], *, emptiest: bool) -> list[int | None]:
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
        # Two nodes with the same room are the same choice.
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
    """The indices of ``sizes`` in an order that ends at the ends of L3 groups where it can, larger ones first."""
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
