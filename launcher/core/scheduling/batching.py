"""The queue of one length class: how its clients share the instances, and how batches are cut from it.

Clients are served by start-time fair queueing (Goyal, Vin and Cheng 1996) over predicted seconds of work. Each client
with waiting items has a virtual start time, which advances by the work taken from it, and the client with the lowest
one is served next. A client that had nothing waiting starts at the virtual time of the queue, which is the start time
of the client served last: it gets no credit for the past, and waits for nobody's backlog. Of equal clients the one with
the shorter item is first. While two clients wait, the work that they get differs by at most their longest items and a
batch. ``client_queue`` decides in which order the items of one client are taken.

The virtual time also advances with all work taken, at a rate that promises each waiting client a part of it: otherwise
an endless sequence of new clients, each of which starts at the virtual time, would starve the others.

A packed batch takes items in this order, whatever their lengths. A padded batch starts with the first item and adds
items that need little padding next to it: first from its own bucket, then from neighbouring buckets as long as the
padding costs less than another batch would. No operation scans a whole bucket, or all clients.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Mapping, Sequence
from heapq import heapify, heappop, heappush, heapreplace
from math import inf

from launcher.core.cost.cost_model import CostModel
from launcher.core.scheduling.client_queue import AGEING, BOUNDS, ClientQueue, Head, Item

__all__ = ["BOUNDS", "ClientQueue", "Item", "LengthQueue"]

# The order of clients is purged of those without waiting items when it exceeds twice the others by this many, and so is
# the record of clients that are ahead of the virtual time.
STALE_CLIENTS = 1000
# At most this many clients, those to be served next, are examined for a padded batch.
PADDED_CLIENTS = 256
# An item costs at least this many seconds, so that the virtual time advances whatever the costs are.
MIN_SECONDS = 1e-9


class LengthQueue:
    """Items waiting for one class of instances. ``is_waiting`` is false for items that were cancelled since."""

    def __init__(self, is_waiting: Callable[[Item], bool]) -> None:
        self._is_waiting = is_waiting
        # The clients with waiting items, and a heap of them: start, length of the first item, number, client. A start
        # may be out of date, that is, too early.
        self._clients: dict[str, ClientQueue] = {}
        self._order: list[tuple[float, int, int, ClientQueue]] = []
        self._number = 0
        self._time = 0.0  # the virtual time of the queue
        # The starts of clients without waiting items that are ahead of the virtual time.
        self._ahead: dict[str, float] = {}
        self._rank = 0.0  # no rank of an item that was taken is later
        self.count = 0
        self.tokens = 0
        self.pairs = 0

    # ----------------------------------------------------------------- clients

    def clock(self, client: str) -> float:
        """The virtual clock of a client: the rank of the first item of a request that arrives now."""
        waiting = self._clients.get(client)
        return self._rank if waiting is None else waiting.clock

    def clients(self) -> int:
        """The number of clients with waiting items."""
        return len(self._clients)

    def backlog(self, client: str) -> tuple[int, int]:
        """The waiting tokens and pairs of a client."""
        waiting = self._clients.get(client)
        return (0, 0) if waiting is None else (waiting.tokens, waiting.pairs)

    def push(self, client: str, item: Item, rank: float) -> None:
        """Add an item of a client; ``rank`` is a time on the clock of the client, and the lowest is served first."""
        waiting = self._clients.get(client)
        if waiting is None:
            waiting = self._add_client(client, item.length)
        waiting.push(item, rank)
        length = item.length
        self.count += 1
        self.tokens += length
        self.pairs += length * length

    def discard(self, client: str, item: Item, rank: float) -> None:
        """Remove a cancelled item, pushed with ``rank``."""
        waiting = self._clients[client]
        waiting.discard(item, rank)
        self._removed(item.length)
        if not waiting.count:
            self._drop_client(waiting)

    def _removed(self, length: int) -> None:
        self.count -= 1
        self.tokens -= length
        self.pairs -= length * length

    def _add_client(self, client: str, length: int) -> ClientQueue:
        start = self._time
        if self._ahead:
            start = max(start, self._ahead.pop(client, start))
        if len(self._order) > 2 * len(self._clients) + STALE_CLIENTS:
            self._order = [entry for entry in self._order if entry[3].count]
            heapify(self._order)
        waiting = self._clients[client] = ClientQueue(client, self._is_waiting, self._rank, start)
        self._number += 1
        heappush(self._order, (start, length, self._number, waiting))
        return waiting

    def _drop_client(self, client: ClientQueue) -> None:
        """Forget a client without waiting items, except how far it is ahead of others that wait."""
        del self._clients[client.name]
        self._rank = max(self._rank, client.clock)
        if not self._clients:
            self._order.clear()
            self._ahead.clear()
        elif client.start > self._time:
            if len(self._ahead) > len(self._clients) + STALE_CLIENTS:
                self._ahead = {name: start for name, start in self._ahead.items() if start > self._time}
                if len(self._ahead) > len(self._clients) + STALE_CLIENTS:
                    self._ahead.clear()  # each of them gets at most one batch too early
            self._ahead[client.name] = client.start

    def _next_client(self) -> ClientQueue | None:
        """The client to be served next, which is then the first of the order; None if no item waits."""
        while self._order:
            start, _, _, client = self._order[0]
            if not client.count:
                heappop(self._order)
            elif start != client.start:
                self._reorder(client)
            else:
                return client
        return None

    def _reorder(self, client: ClientQueue) -> None:
        """Move the first client of the order to the place that its start has now."""
        self._number += 1
        heapreplace(self._order, (client.start, client.peek().length, self._number, client))

    def _charge(self, client: ClientQueue, rank: float, seconds: float) -> None:
        """Record that work of ``seconds`` was taken from a client, up to an item of this rank."""
        seconds = max(seconds, MIN_SECONDS)
        served_from = client.start
        client.start += seconds
        client.advance(rank, seconds)
        # A client that is alone takes from nobody: one that comes later starts beside it.
        waiting = len(self._clients)
        self._time = client.start if waiting == 1 else max(served_from, self._time + AGEING * seconds / waiting)
        if not client.count:
            self._drop_client(client)

    # ----------------------------------------------------------------- batches

    def peek(self) -> Item | None:
        """The item to be served next."""
        client = self._next_client()
        return None if client is None else client.peek()

    def cut_fifo(self, max_items: int) -> tuple[Item, ...]:
        """Remove the first ``max_items`` items, whatever their lengths; longest first."""
        batch = _BatchBuilder(CostModel(), 0, inf, packed=True, max_seconds=inf, max_items=max_items)
        self._fill_in_order(batch)
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
            self._fill_in_order(batch)
        elif self.count:
            self._fill_by_length(batch, cost.per_token * budget)
        return tuple(sorted(batch.items, key=lambda item: -item.length))

    def _fill_in_order(self, batch: _BatchBuilder) -> None:
        """Move the first items to the batch, as long as they fit."""
        opened: dict[str, list[Head]] = {}
        full, before = False, 0.0
        while not full and (client := self._next_client()):
            heads = opened.get(client.name)
            if heads is None:
                heads = opened[client.name] = client.heads()
            alone = len(self._clients) == 1
            taken, rank = len(batch.items), 0.0
            while heads:
                item = heads[0][2]
                if not batch.take(item):
                    full = True
                    break
                rank = heads[0][0]
                client.take(heads)
                self._removed(item.length)
                if not alone:
                    break
            if len(batch.items) > taken:
                seconds = batch.seconds
                self._charge(client, rank, seconds - before)
                before = seconds

    def _fill_by_length(self, batch: _BatchBuilder, window: float) -> None:
        """Move the first item to the batch, and others of similar length.

        Only the client of the first item gets more than ``window`` seconds ahead of it: which items need little padding
        must not decide how much work a client gets.
        """
        clients = self._first_clients()
        first, end = clients[0].peek(), clients[0].start + window
        members: dict[int, list[ClientQueue]] = {}
        for client in clients:
            for key in client.buckets:
                members.setdefault(key, []).append(client)
        start = bisect_left(BOUNDS, first.length)
        for key in sorted(members, key=lambda key: (abs(key - start), key)):
            if not batch.items or self._is_worth_padding(batch, key, members[key]):
                for client in members[key]:
                    self._fill(batch, key, client, inf if client is clients[0] else end)

    def _is_worth_padding(self, batch: _BatchBuilder, key: int, clients: Sequence[ClientQueue]) -> bool:
        """Whether padding for the items of a bucket costs less than another batch for them would."""
        bound, width = BOUNDS[key], batch.width
        rows = sum([len(client.buckets.get(key, ())) for client in clients]) if bound <= width else len(batch.items)
        return rows * abs(width - bound) * batch.cost.per_token <= batch.cost.overhead

    def _first_clients(self) -> Sequence[ClientQueue]:
        """The clients to be served next, in order; at most ``PADDED_CLIENTS`` of them."""
        if len(self._clients) == 1:
            return tuple(self._clients.values())
        entries: list[tuple[float, int, int, ClientQueue]] = []
        while len(entries) < PADDED_CLIENTS and self._next_client():
            entries.append(heappop(self._order))
        for entry in entries:
            heappush(self._order, entry)
        return [entry[3] for entry in entries]

    def _fill(self, batch: _BatchBuilder, key: int, client: ClientQueue, end: float) -> None:
        """Move items from a bucket to the batch in rank order, as long as they fit, and the client starts before
        ``end``."""
        while client.start <= end and (head := client.head(key)):
            before = batch.seconds
            if not batch.take(head[2]):
                return
            client.take_from(key)
            self._removed(head[2].length)
            self._charge(client, head[0], batch.seconds - before)

    # ------------------------------------------------------------- predictions

    def work_ahead(self, client: str, work: tuple[int, int], cost: CostModel) -> tuple[int, int]:
        """The approximate tokens and pairs that will be taken before the last item of a request of these tokens and
        pairs, which arrives now: the client's own waiting work, as far as its rank is not later, and as much of each
        other client."""
        waiting = self._clients.get(client)
        tokens = pairs = 0
        if waiting is not None:
            tokens, pairs = waiting.work_before(waiting.clock + cost.seconds(*work))
        if waiting is None or len(self._clients) > 1:
            own = cost.seconds(tokens + work[0], pairs + work[1])
            for other in self._clients.values():
                if other is not waiting:
                    part = min(1.0, own / max(MIN_SECONDS, cost.seconds(other.tokens, other.pairs)))
                    tokens += int(part * other.tokens)
                    pairs += int(part * other.pairs)
        return tokens, pairs

    def check(self, waiting: Mapping[str, Sequence[Item]]) -> None:
        """Raise ``AssertionError`` unless the state matches the waiting items of each client; for tests."""
        everything = [item for items in waiting.values() for item in items]
        assert self.count == len(everything), "waiting items are miscounted"
        assert self.tokens == sum(item.length for item in everything), "waiting tokens are miscounted"
        assert self.pairs == sum(item.length**2 for item in everything), "waiting pairs are miscounted"
        assert set(self._clients) == set(waiting), "clients without waiting items are kept"
        for name, client in self._clients.items():
            client.check(waiting[name])
        ordered = [entry[3] for entry in self._order if entry[3].count]
        assert sorted(client.name for client in ordered) == sorted(waiting), "a client is not in the order exactly once"
        assert all(entry[0] <= entry[3].start for entry in self._order), "a client is too late in the order"


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

    @property
    def seconds(self) -> float:
        """The predicted seconds of its items, without padding and the overhead of a batch."""
        return self.cost.seconds(self._tokens, self._pairs) - self.cost.overhead

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
