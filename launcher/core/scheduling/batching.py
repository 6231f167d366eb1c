"""The queue of one length class, and how a batch is cut from it.

Items wait in buckets of similar length, each ordered by a rank that is a time: when the item arrived, put off by what
the items before it in its own request cost. So a request of a thousand items queues up as if its client had sent them
one after another, and does not keep others waiting; since a rank never changes, nothing starves.

A packed batch takes items in the order of their ranks, since any lengths go together. A padded batch starts from
the item of the lowest rank and takes what fits beside it with the least padding: its own bucket, then neighbours as
long as the padding they bring costs less than a batch of their own would. Nothing in here looks at a whole bucket.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Sequence
from heapq import heapify, heappop, heappush
from math import inf

import msgspec

from launcher.core.cost.model import CostModel
from launcher.core.scheduling.rank_sums import RankSums


class Item(msgspec.Struct, frozen=True, gc=False):
    """One sequence: item ``index`` of ``request``, ``length`` tokens long."""

    request: int
    index: int
    length: int


def _bucket_bounds(largest: int = 1 << 17) -> tuple[int, ...]:
    """Upper bounds of the buckets: steps of 8 tokens while short, then of about a tenth."""
    bounds = [8]
    while bounds[-1] < largest:
        bounds.append(bounds[-1] + max(8, bounds[-1] // 10))
    return tuple(bounds)


BOUNDS = _bucket_bounds()
# Buckets are cleaned of cancelled items when these are so many more than those that wait.
STALE_ITEMS = 1000


class LengthQueue:
    """Items waiting for one class of instances. ``is_waiting`` tells items that were cancelled meanwhile."""

    def __init__(self, is_waiting: Callable[[Item], bool]) -> None:
        self._is_waiting = is_waiting
        # Each a heap of (rank, number, item); the number keeps items of equal rank in their order.
        self._buckets: dict[int, list[tuple[float, int, Item]]] = {}
        self._sequence = 0
        # What waits of items whose rank is later than their request's arrival: all but its first.
        self._put_off = RankSums()
        self._stale = 0  # entries of cancelled items
        self.count = 0
        self.tokens = 0
        self.pairs = 0

    def push(self, item: Item, rank: float) -> None:
        """Add an item; ``rank`` is a time in seconds, the lowest is served first."""
        if self._stale > self.count + STALE_ITEMS:
            self._clean()
        self._sequence += 1
        key = bisect_left(BOUNDS, item.length)
        bucket = self._buckets.get(key)
        if bucket is None:
            bucket = self._buckets[key] = []
        heappush(bucket, (rank, self._sequence, item))
        self._account(item, rank, 1)

    def forget(self, item: Item, rank: float) -> None:
        """Take a cancelled item, pushed with ``rank``, out of the sums; it is dropped when it comes up."""
        self._account(item, rank, -1)
        self._stale += 1

    def _clean(self) -> None:
        """Drop cancelled items. Of bulk none comes up while there is no idle time, and clients come and go."""
        for key, bucket in list(self._buckets.items()):
            self._buckets[key] = live = [entry for entry in bucket if self._is_waiting(entry[2])]
            heapify(live)
        self._stale = 0

    def _account(self, item: Item, rank: float, sign: int) -> None:
        tokens, pairs = sign * item.length, sign * item.length**2
        self.count += sign
        self.tokens += tokens
        self.pairs += pairs
        if item.index:
            self._put_off.add(rank, tokens, pairs)

    def before(self, rank: float) -> tuple[int, int]:
        """About how many tokens and pairs wait that have no later rank. ``rank`` is not earlier than any arrival."""
        if not self._put_off:
            return self.tokens, self.pairs
        tokens, pairs = self._put_off.later(rank)
        return self.tokens - tokens, self.pairs - pairs

    def check(self, waiting: Sequence[tuple[int, int]]) -> None:
        """Raise ``AssertionError`` unless the sums are those of the items that wait (index, length); for tests."""
        assert self.count == len(waiting), "waiting items are miscounted"
        assert self.tokens == sum(length for _, length in waiting), "waiting tokens are miscounted"
        assert self.pairs == sum(length**2 for _, length in waiting), "waiting pairs are miscounted"
        later = [length for index, length in waiting if index]
        assert self._put_off.later(-1.0) == (sum(later), sum(n * n for n in later)), "what is put off is miscounted"

    def oldest(self) -> Item | None:
        """The item of the lowest rank."""
        heads = [head for head in map(self._head, list(self._buckets)) if head]
        return min(heads)[2] if heads else None

    def _head(self, key: int) -> tuple[float, int, Item] | None:
        """The first live entry of a bucket; entries cancelled meanwhile are dropped, an empty bucket too."""
        bucket = self._buckets.get(key)
        while bucket:
            if self._is_waiting(bucket[0][2]):
                return bucket[0]
            heappop(bucket)
            self._stale -= 1
        self._buckets.pop(key, None)
        return None

    def cut_in_order(self, most: int) -> tuple[Item, ...]:
        """Take out the ``most`` items of the lowest ranks, whatever their lengths; longest first."""
        batch = _Cut(CostModel(), 0, inf, packed=True, longest=inf, most=most)
        self._fill_in_order(batch)
        return tuple(sorted(batch.items, key=lambda item: -item.length))

    def cut(
        self, cost: CostModel, budget: int, share: float, *, packed: bool, longest: float = inf
    ) -> tuple[Item, ...]:
        """Take a batch out: longest first, at most ``budget`` tokens and ``longest`` predicted seconds, padding
        counted in both, and about ``share`` predicted seconds of work.

        At least one item is taken when there is one, whatever its length.
        """
        batch = _Cut(cost, budget, share, packed, longest)
        if packed:
            self._fill_in_order(batch)
        else:
            self._fill_by_length(batch)
        return tuple(sorted(batch.items, key=lambda item: -item.length))

    def _fill_in_order(self, batch: _Cut) -> None:
        """Move items of the lowest ranks to the batch, while its limits hold."""
        heads = [(*head, key) for key in list(self._buckets) if (head := self._head(key))]
        heapify(heads)
        while heads:
            rank, _, item, key = heads[0]
            if not batch.take(item):
                return
            heappop(self._buckets[key])
            heappop(heads)
            self._account(item, rank, -1)
            if following := self._head(key):
                heappush(heads, (*following, key))

    def _fill_by_length(self, batch: _Cut) -> None:
        """Move the item of the lowest rank to the batch, and others of about its length."""
        oldest = self.oldest()
        if oldest is None:
            return
        for key in self._neighbours(bisect_left(BOUNDS, oldest.length)):
            bound, width = BOUNDS[key], batch.width
            narrower = len(self._buckets[key]) * (width - bound)
            padding = narrower if bound <= width else len(batch.items) * (bound - width)
            if not batch.items or padding * batch.cost.per_token <= batch.cost.overhead:
                self._fill(batch, key)

    def _neighbours(self, start: int) -> list[int]:
        """The bucket ``start``, then the others, nearest first."""
        return sorted(self._buckets, key=lambda key: (abs(key - start), key))

    def _fill(self, batch: _Cut, key: int) -> None:
        """Move items from a bucket to the batch, oldest first, while its limits hold."""
        while (head := self._head(key)) and batch.take(head[2]):
            heappop(self._buckets[key])
            self._account(head[2], head[0], -1)


class _Cut:
    """A batch being cut. The share counts what the items cost without padding, so that shares add up to the whole."""

    def __init__(
        self, cost: CostModel, budget: int, share: float, packed: bool, longest: float, most: int | None = None
    ) -> None:
        self.items: list[Item] = []
        self.width = 0
        self.cost = cost
        self._budget, self._share, self._packed, self._longest = budget, share, packed, longest
        self._most = most
        self._tokens = self._pairs = 0

    def take(self, item: Item) -> bool:
        """Add an item unless that breaks a limit; the first is always taken. Returns whether it was taken."""
        width = max(self.width, item.length)
        tokens, pairs = self._tokens + item.length, self._pairs + item.length**2
        if self.items and self._breaks(width, tokens, pairs):
            return False
        self.items.append(item)
        self.width, self._tokens, self._pairs = width, tokens, pairs
        return True

    def _breaks(self, width: int, tokens: int, pairs: int) -> bool:
        """Whether one more item, which makes it so much, would break a limit."""
        if self._most is not None:
            return len(self.items) >= self._most
        computed = tokens if self._packed else (len(self.items) + 1) * width
        # Half of the item has to fit into the share, so that shares are neither too small nor too large on average.
        half = self.cost.seconds((self._tokens + tokens) // 2, (self._pairs + pairs) // 2)
        if computed > self._budget or half > self._share:
            return True
        if self._longest == inf:
            return False
        return self.cost.seconds(computed, pairs if self._packed else computed * width) > self._longest
