"""The items of one client that wait for one class of instances, in the order in which they are to be computed.

Separate from ``batching``, which shares the instances among clients: the order here concerns the requests of a single
client, and no other client appears in it.

Items wait in buckets of similar length, each ordered by rank. A rank is a virtual time in seconds of work: the client's
virtual clock when the request arrived, plus the work of the items before it in its own request. A request of a thousand
items therefore queues as if its client had sent them one after another, and does not hold up other requests. A rank
never changes.

The clock follows the rank of the item taken last (start-time fair queueing, Goyal et al. 1996), so that the large
requests of a client share what it gets, however many they are. It also advances with all work taken, at a rate that
promises ``AGEING`` of that work to large requests: without this, an endless stream of short requests, each of which
starts at the current time, would starve them.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Sequence
from heapq import heapify, heappop, heappush

import msgspec

from launcher.core.scheduling.rank_sums import RankSums

# The share of a client's work that is promised to its large requests.
AGEING = 0.5
# Cancelled items are purged when they outnumber the waiting ones by this many.
STALE_ITEMS = 1000
# Of items of equal rank, the first items of requests come before the other ones.
_LATER = 1 << 62


class Item(msgspec.Struct, frozen=True, gc=False):
    """One sequence: item ``index`` of ``request``, ``length`` tokens long."""

    request: int
    index: int
    length: int


# The head of a bucket: rank, sequence number, item, key of the bucket.
Head = tuple[float, int, Item, int]


def _bucket_bounds(largest: int = 1 << 17) -> tuple[int, ...]:
    """Upper bounds of the buckets: steps of 8 tokens while short, then of about a tenth."""
    bounds = [8]
    while bounds[-1] < largest:
        bounds.append(bounds[-1] + max(8, bounds[-1] // 10))
    return tuple(bounds)


BOUNDS = _bucket_bounds()


class ClientQueue:
    """The waiting items of a client. ``is_waiting`` is false for items that were cancelled since.

    ``clock`` is the client's virtual time. ``batching`` keeps two facts here: ``start``, the virtual start time of the
    client's next item among all clients, and ``ordered``, whether the client is in their order.
    """

    __slots__ = (
        "_aged",
        "_deferred",
        "_is_waiting",
        "_large",
        "_sequence",
        "_slack",
        "_stale",
        "buckets",
        "clock",
        "count",
        "name",
        "ordered",
        "pairs",
        "start",
        "tokens",
    )

    def __init__(self, name: str, is_waiting: Callable[[Item], bool], clock: float, start: float) -> None:
        self.name = name
        self.clock = clock
        self.start = start
        self.ordered = False
        self.count = self.tokens = self.pairs = 0
        # Each bucket is a heap of (rank, sequence number, item); the number keeps items of equal rank in order.
        self.buckets: dict[int, list[tuple[float, int, Item]]] = {}
        # The second clock, and the most that the first may be ahead of it: the longest work taken at once, so that it
        # does not overtake the items of other large requests that are due in the same round.
        self._aged = clock
        self._slack = 0.0
        self._is_waiting = is_waiting
        self._sequence = 0
        self._stale = 0  # entries of cancelled items
        # The waiting work of all but the first items of requests, and the number of these items by request.
        self._deferred: RankSums | None = None
        self._large: dict[int, int] = {}

    def push(self, item: Item, rank: float) -> None:
        """Add an item; the lowest rank is served first."""
        if self._stale > self.count + STALE_ITEMS:
            self._clean()
        self._sequence += 1
        length = item.length
        key = bisect_left(BOUNDS, length)
        bucket = self.buckets.get(key)
        if bucket is None:
            bucket = self.buckets[key] = []
        self.count += 1
        self.tokens += length
        self.pairs += length * length
        if item.index:
            heappush(bucket, (rank, self._sequence + _LATER, item))
            self._defer(item, rank, 1)
        else:
            heappush(bucket, (rank, self._sequence, item))

    def discard(self, item: Item, rank: float) -> None:
        """Remove a cancelled item, pushed with ``rank``, from the sums; its entry is dropped when it is reached."""
        self._remove(item, rank)
        self._stale += 1

    def clear(self) -> None:
        """Drop the entries of cancelled items, when no item is waiting."""
        self.buckets.clear()
        self._stale = 0

    def _clean(self) -> None:
        """Purge cancelled items: bulk entries may not be reached for long, while clients come and go."""
        for key, bucket in list(self.buckets.items()):
            self.buckets[key] = live = [entry for entry in bucket if self._is_waiting(entry[2])]
            heapify(live)
        self._stale = 0

    def _remove(self, item: Item, rank: float) -> None:
        length = item.length
        self.count -= 1
        self.tokens -= length
        self.pairs -= length * length
        if item.index:
            self._defer(item, rank, -1)

    def _defer(self, item: Item, rank: float, sign: int) -> None:
        if self._deferred is None:
            self._deferred = RankSums()
        self._deferred.add(rank, sign * item.length, sign * item.length**2)
        waiting = self._large.get(item.request, 0) + sign
        if waiting:
            self._large[item.request] = waiting
        else:
            del self._large[item.request]

    def advance(self, rank: float, seconds: float) -> None:
        """Record that ``seconds`` of work were taken, and that the last item of them had this rank."""
        clock = self.clock if self.clock > rank else rank
        if not self._large:
            self.clock = clock
            return
        if seconds > self._slack:
            self._slack = seconds
        aged = max(self._aged, clock - self._slack) + AGEING * seconds / max(1, len(self._large))
        self._aged = aged
        self.clock = aged if aged > clock else clock

    def work_before(self, rank: float) -> tuple[int, int]:
        """The approximate tokens and pairs waiting at ranks up to ``rank``, which must not be before the clock."""
        if not self._deferred:
            return self.tokens, self.pairs
        tokens, pairs = self._deferred.after(rank)
        return self.tokens - tokens, self.pairs - pairs

    def heads(self) -> list[Head]:
        """A heap of the first items of all buckets, for ``take``."""
        if len(self.buckets) == 1:
            (key,) = self.buckets
            first = self.head(key)
            return [(*first, key)] if first else []
        heads = [(*head, key) for key in list(self.buckets) if (head := self.head(key))]
        heapify(heads)
        return heads

    def peek(self) -> Item:
        """The item of the lowest rank; one must be waiting."""
        return min([head for head in map(self.head, list(self.buckets)) if head])[2]

    def head(self, key: int) -> tuple[float, int, Item] | None:
        """The first live entry of a bucket; drops cancelled entries, and the bucket if it is empty."""
        bucket = self.buckets.get(key)
        while bucket:
            if self._is_waiting(bucket[0][2]):
                return bucket[0]
            heappop(bucket)
            self._stale -= 1
        self.buckets.pop(key, None)
        return None

    def take(self, heads: list[Head]) -> None:
        """Remove the item of the lowest rank; ``heads`` is the heap of all heads."""
        rank, _, item, key = heappop(heads)
        bucket = self.buckets[key]
        heappop(bucket)
        length = item.length
        self.count -= 1
        self.tokens -= length
        self.pairs -= length * length
        if item.index:
            self._defer(item, rank, -1)
        if not bucket:
            del self.buckets[key]
        elif following := self.head(key):
            heappush(heads, (*following, key))

    def only(self) -> tuple[float, Item] | None:
        """Rank and item, if exactly one waits and nothing else is in the buckets; ``remove_only`` removes it."""
        if self.count != 1 or self._stale:
            return None
        for bucket in self.buckets.values():
            if bucket:
                return bucket[0][0], bucket[0][2]
        return None

    def remove_only(self, rank: float, item: Item) -> None:
        """Remove the item of ``only``."""
        self.buckets.clear()
        self.count = self.tokens = self.pairs = 0
        if item.index:
            self._defer(item, rank, -1)

    def take_from(self, key: int) -> None:
        """Remove the head of a bucket."""
        rank, _, item = heappop(self.buckets[key])
        self._remove(item, rank)

    def check(self, waiting: Sequence[Item]) -> None:
        """Raise ``AssertionError`` unless the sums match the waiting items; for tests."""
        assert self.count == len(waiting), "waiting items are miscounted"
        assert self.tokens == sum(item.length for item in waiting), "waiting tokens are miscounted"
        assert self.pairs == sum(item.length**2 for item in waiting), "waiting pairs are miscounted"
        deferred = [item for item in waiting if item.index]
        work = sum(item.length for item in deferred), sum(item.length**2 for item in deferred)
        assert (self._deferred.after(-1.0) if self._deferred else (0, 0)) == work, "deferred work is miscounted"
        assert set(self._large) == {item.request for item in deferred}, "large requests are miscounted"
