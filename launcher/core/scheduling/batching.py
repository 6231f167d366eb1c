"""The queue of one length class, and how batches are cut from it.

Items wait in buckets of similar length, each ordered by rank. A rank is a time: the arrival of the item, deferred by
the cost of the items before it in its own request. A request of a thousand items therefore queues as if its client had
sent them one after another, and does not hold up other requests. A rank never changes, so nothing starves.

A packed batch takes items in rank order, whatever their lengths. A padded batch starts with the item of the lowest rank
and adds items that need little padding next to it: first from its own bucket, then from neighbouring buckets as long as
the padding costs less than another batch would. No operation scans a whole bucket.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Sequence
from heapq import heapify, heappop, heappush
from math import inf

import msgspec

from launcher.core.cost.cost_model import CostModel
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
# Cancelled items are purged when they outnumber the waiting ones by this many.
STALE_ITEMS = 1000


class LengthQueue:
    """Items waiting for one class of instances. ``is_waiting`` is false for items that were cancelled since."""

    def __init__(self, is_waiting: Callable[[Item], bool]) -> None:
        self._is_waiting = is_waiting
        # Each bucket is a heap of (rank, sequence number, item); the number keeps items of equal rank in order.
        self._buckets: dict[int, list[tuple[float, int, Item]]] = {}
        self._sequence = 0
        # The waiting work of items whose rank is later than their request's arrival: all but the first item of each.
        self._deferred = RankSums()
        self._stale = 0  # entries of cancelled items
        self.count = 0
        self.tokens = 0
        self.pairs = 0

    def push(self, item: Item, rank: float) -> None:
        """Add an item; ``rank`` is a time in seconds, and the lowest is served first."""
        if self._stale > self.count + STALE_ITEMS:
            self._clean()
        self._sequence += 1
        key = bisect_left(BOUNDS, item.length)
        bucket = self._buckets.get(key)
        if bucket is None:
            bucket = self._buckets[key] = []
        heappush(bucket, (rank, self._sequence, item))
        self._account(item, rank, 1)

    def discard(self, item: Item, rank: float) -> None:
        """Remove a cancelled item, pushed with ``rank``, from the sums; its entry is dropped when it is reached."""
        self._account(item, rank, -1)
        self._stale += 1

    def _clean(self) -> None:
        """Purge cancelled items: bulk entries may not be reached for long, while clients come and go."""
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
            self._deferred.add(rank, tokens, pairs)

    def work_before(self, rank: float) -> tuple[int, int]:
        """The approximate tokens and pairs waiting at ranks up to ``rank``, which must not be before any arrival."""
        if not self._deferred:
            return self.tokens, self.pairs
        tokens, pairs = self._deferred.after(rank)
        return self.tokens - tokens, self.pairs - pairs

    def check(self, waiting: Sequence[tuple[int, int]]) -> None:
        """Raise ``AssertionError`` unless the sums match the waiting items (index, length); for tests."""
        assert self.count == len(waiting), "waiting items are miscounted"
        assert self.tokens == sum(length for _, length in waiting), "waiting tokens are miscounted"
        assert self.pairs == sum(length**2 for _, length in waiting), "waiting pairs are miscounted"
        deferred = [length for index, length in waiting if index]
        work = sum(deferred), sum(length**2 for length in deferred)
        assert self._deferred.after(-1.0) == work, "deferred work is miscounted"

    def peek(self) -> Item | None:
        """The item of the lowest rank."""
        heads = [head for head in map(self._head, list(self._buckets)) if head]
        return min(heads)[2] if heads else None

    def _head(self, key: int) -> tuple[float, int, Item] | None:
        """The first live entry of a bucket; drops cancelled entries, and the bucket if it is empty."""
        bucket = self._buckets.get(key)
        while bucket:
            if self._is_waiting(bucket[0][2]):
                return bucket[0]
            heappop(bucket)
            self._stale -= 1
        self._buckets.pop(key, None)
        return None

    def cut_fifo(self, max_items: int) -> tuple[Item, ...]:
        """Remove the ``max_items`` items of the lowest ranks, whatever their lengths; longest first."""
        batch = _BatchBuilder(CostModel(), 0, inf, packed=True, max_seconds=inf, max_items=max_items)
        self._fill_by_rank(batch)
        return tuple(sorted(batch.items, key=lambda item: -item.length))

    def cut(
        self, cost: CostModel, budget: int, share: float, *, packed: bool, max_seconds: float = inf
    ) -> tuple[Item, ...]:
        """Remove a batch, longest item first: at most ``budget`` tokens and ``max_seconds`` predicted seconds, both
        including padding, and about ``share`` predicted seconds of work.

        If any item waits, at least one is taken, whatever its length.
        """
        batch = _BatchBuilder(cost, budget, share, packed, max_seconds)
        if packed:
            self._fill_by_rank(batch)
        else:
            self._fill_by_length(batch)
        return tuple(sorted(batch.items, key=lambda item: -item.length))

    def _fill_by_rank(self, batch: _BatchBuilder) -> None:
        """Move the items of the lowest ranks to the batch, as long as they fit."""
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

    def _fill_by_length(self, batch: _BatchBuilder) -> None:
        """Move the item of the lowest rank to the batch, and others of similar length."""
        first = self.peek()
        if first is None:
            return
        for key in self._neighbours(bisect_left(BOUNDS, first.length)):
            bound, width = BOUNDS[key], batch.width
            narrower = len(self._buckets[key]) * (width - bound)
            padding = narrower if bound <= width else len(batch.items) * (bound - width)
            if not batch.items or padding * batch.cost.per_token <= batch.cost.overhead:
                self._fill(batch, key)

    def _neighbours(self, start: int) -> list[int]:
        """The bucket ``start``, then the others, nearest first."""
        return sorted(self._buckets, key=lambda key: (abs(key - start), key))

    def _fill(self, batch: _BatchBuilder, key: int) -> None:
        """Move items from a bucket to the batch in rank order, as long as they fit."""
        while (head := self._head(key)) and batch.take(head[2]):
            heappop(self._buckets[key])
            self._account(head[2], head[0], -1)


class _BatchBuilder:
    """A batch being cut. ``share`` is compared with the cost of the items without padding, so that the shares of all
    instances add up to the whole."""

    def __init__(
        self, cost: CostModel, budget: int, share: float, packed: bool, max_seconds: float, max_items: int | None = None
    ) -> None:
        self.items: list[Item] = []
        self.width = 0
        self.cost = cost
        self._budget, self._share, self._packed, self._max_seconds = budget, share, packed, max_seconds
        self._max_items = max_items
        self._tokens = self._pairs = 0

    def take(self, item: Item) -> bool:
        """Add an item unless it exceeds a limit; the first is always taken. Returns whether it was taken."""
        width = max(self.width, item.length)
        tokens, pairs = self._tokens + item.length, self._pairs + item.length**2
        if self.items and self._exceeds(width, tokens, pairs):
            return False
        self.items.append(item)
        self.width, self._tokens, self._pairs = width, tokens, pairs
        return True

    def _exceeds(self, width: int, tokens: int, pairs: int) -> bool:
        """Whether a batch of this width and work, with one more item, would exceed a limit."""
        if self._max_items is not None:
            return len(self.items) >= self._max_items
        computed = tokens if self._packed else (len(self.items) + 1) * width
        # Half of the item must fit into the share, so that batches match their shares on average.
        half = self.cost.seconds((self._tokens + tokens) // 2, (self._pairs + pairs) // 2)
        if computed > self._budget or half > self._share:
            return True
        if self._max_seconds == inf:
            return False
        return self.cost.seconds(computed, pairs if self._packed else computed * width) > self._max_seconds
