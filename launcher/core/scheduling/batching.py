"""The queue of one length class: how its clients share the instances, and how batches are cut from it.

Clients are served by start-time fair queueing (Goyal, Vin and Cheng 1996) over predicted seconds of work. Each client
with waiting items has a virtual start time, which advances by the work taken from it, and the client with the lowest
one is served next. A client that had nothing waiting starts at the virtual time of the queue, which is the start time
of the client served last: it gets no credit for the past, and waits for nobody's backlog. While two clients wait, the
work that they get differs by at most their longest items and a batch. ``client_queue`` decides in which order the items
of one client are taken.

Start times count in rounds, in which each client may take about the work of the longest item. In a round, the client
with the shorter item is first, so that a short request does not wait for one item of each of many clients. But an item
waits for shorter ones only for a limited time, so that an endless sequence of new clients does not starve it.

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
from launcher.core.scheduling.client_queue import BOUNDS, ClientQueue, Head, Item

__all__ = ["BOUNDS", "ClientQueue", "Item", "LengthQueue"]

# Clients without waiting items are forgotten when they outnumber the others by this many.
IDLE_CLIENTS = 1000
# At most this many clients, those to be served next, are examined for a padded batch.
PADDED_CLIENTS = 64
# In a round, a client waits for those with shorter items until this many tokens have been taken for each token of its
# own item. Rounds of fewer clients than this are taken in order of length.
PATIENCE = 512
# An item costs at least this many seconds, so that the virtual time advances whatever the costs are.
MIN_SECONDS = 1e-9

# Round, place in the round, number, start, client.
Entry = tuple[int, int, int, float, ClientQueue]


class LengthQueue:
    """Items waiting for one class of instances. ``is_waiting`` is false for items that were cancelled since; ``rank``
    is where the clocks of clients begin."""

    def __init__(self, is_waiting: Callable[[Item], bool], rank: float = 0.0) -> None:
        self._is_waiting = is_waiting
        # All clients that are remembered, and how many of them have waiting items.
        self._clients: dict[str, ClientQueue] = {}
        self._waiting = 0
        # A heap of the clients with waiting items, and of some that have had some. A start may be out of date, that is,
        # too early. Each client is in it at most once.
        self._order: list[Entry] = []
        self._number = 0
        self._time = 0.0  # the virtual time of the queue
        self._taken = 0  # tokens
        self._longest = 0  # tokens
        self._round = MIN_SECONDS  # the work of a round: at least that of the longest item
        # No item that was taken had a later rank, except for those of the clients that are remembered.
        self._rank = rank
        self.count = 0
        self.tokens = 0
        self.pairs = 0

    # ----------------------------------------------------------------- clients

    def client(self, name: str) -> ClientQueue:
        """The items of a client, which ``push`` adds to; the rank of the first item of a request is its clock."""
        client = self._clients.get(name)
        if client is None:
            if len(self._clients) > 2 * self._waiting + IDLE_CLIENTS:
                self._forget_idle()
            client = self._clients[name] = ClientQueue(name, self._is_waiting, self._rank, self._time)
        return client

    def latest_clock(self) -> float:
        """The latest clock of any client so far: a queue that replaces this one begins there."""
        return max(self._rank, *[client.clock for client in self._clients.values()], 0.0)

    def waiting_clients(self) -> int:
        """The number of clients with waiting items."""
        return self._waiting

    def backlog(self, name: str) -> tuple[int, int]:
        """The waiting tokens and pairs of a client."""
        client = self._clients.get(name)
        return (0, 0) if client is None else (client.tokens, client.pairs)

    def push(self, client: ClientQueue, item: Item, rank: float) -> None:
        """Add an item of a client; ``rank`` is a time on the clock of the client, and the lowest is served first."""
        length = item.length
        if not client.count:
            self._waiting += 1
            if client.start < self._time:
                client.start = self._time
            if not client.ordered:
                self._insert(client, length)
        client.push(item, rank)
        if length > self._longest:
            self._longest = length
        self.count += 1
        self.tokens += length
        self.pairs += length * length

    def discard(self, name: str, item: Item, rank: float) -> None:
        """Remove a cancelled item, pushed with ``rank``."""
        client = self._clients[name]
        client.discard(item, rank)
        if not client.count:
            self._waiting -= 1
            client.clear()
        self._removed(item.length)

    def _removed(self, length: int) -> None:
        self._taken += length
        self.count -= 1
        self.tokens -= length
        self.pairs -= length * length

    def _insert(self, client: ClientQueue, length: int) -> None:
        """Add a client to the order; ``length`` is that of its first item."""
        self._number += 1
        client.ordered = True
        place = self._taken + PATIENCE * length
        heappush(self._order, (int(client.start / self._round), place, self._number, client.start, client))

    def _forget_idle(self) -> None:
        """Forget clients without waiting items. Those that were ahead of others get at most one batch too early."""
        idle = [client for client in self._clients.values() if not client.count]
        self._rank = max(self._rank, *[client.clock for client in idle])
        self._clients = {name: client for name, client in self._clients.items() if client.count}
        self._order = [entry for entry in self._order if entry[4].count]
        heapify(self._order)

    def _widen_rounds(self, cost: CostModel) -> None:
        """Let a round have the work of the longest item, if it has less. It doubles, so that this is rare."""
        longest = cost.per_token * self._longest + cost.per_pair * self._longest**2
        if longest <= self._round:
            return
        while self._round < longest:
            self._round *= 2
        self._order = [(int(entry[3] / self._round), *entry[1:]) for entry in self._order]
        heapify(self._order)

    def _next_client(self) -> ClientQueue | None:
        """The client to be served next, which is then the first of the order; None if no item waits."""
        order = self._order
        while order:
            client = order[0][4]
            if not client.count:
                heappop(order)
                client.ordered = False
            elif order[0][3] != client.start:
                self._number += 1
                place = self._taken + PATIENCE * client.peek().length
                heapreplace(order, (int(client.start / self._round), place, self._number, client.start, client))
            else:
                return client
        return None

    def _charge(self, client: ClientQueue, rank: float, seconds: float) -> None:
        """Record that work of ``seconds`` was taken from a client, up to an item of this rank."""
        if seconds < MIN_SECONDS:
            seconds = MIN_SECONDS
        waiting, start = self._waiting, client.start
        client.start = end = start + seconds
        client.advance(rank, seconds)
        if waiting == 1:  # it takes from nobody: a client that comes later starts beside it
            self._time = end
            if len(self._order) == 1:  # cheaper than to do it when it is served next
                place = self._taken + PATIENCE * self._longest
                self._order[0] = (int(end / self._round), place, 0, end, client)
        elif start > self._time:
            self._time = start
        if not client.count:
            self._waiting = waiting - 1

    # ----------------------------------------------------------------- batches

    def peek(self) -> Item | None:
        """The item to be served next."""
        client = self._next_client()
        return None if client is None else client.peek()

    def cut_fifo(self, max_items: int) -> tuple[Item, ...]:
        """Remove the first ``max_items`` items, whatever their lengths; longest first."""
        batch = _BatchBuilder(CostModel(), 0, inf, packed=True, max_seconds=inf, max_items=max_items)
        self._widen_rounds(batch.cost)
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
        self._widen_rounds(cost)
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
            alone = self._waiting == 1
            if not alone and (only := client.only()):
                if not batch.take(only[1]):
                    return
                client.remove_only(*only)
                self._removed(only[1].length)
                seconds = batch.seconds
                self._charge(client, only[0], seconds - before)
                before = seconds
                continue
            heads = None if alone else opened.get(client.name)
            if heads is None:
                heads = client.heads()
                if not alone and client.count > 1:
                    opened[client.name] = heads
            rank = -1.0
            while heads:
                head = heads[0]
                item = head[2]
                if not batch.take(item):
                    full = True
                    break
                rank = head[0]
                client.take(heads)
                self._removed(item.length)
                if not alone:
                    break
            if rank >= 0:
                seconds = batch.seconds
                self._charge(client, rank, seconds - before)
                before = seconds

    def _fill_by_length(self, batch: _BatchBuilder, window: float) -> None:
        """Move the first item to the batch, and others of similar length.

        Only the client of the first item gets more than ``window`` seconds ahead of it: which items need little padding
        must not decide how much work a client gets.
        """
        clients, entries = self._first_clients()
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
        for entry in entries:
            client = entry[4]
            if entry[3] == client.start:
                heappush(self._order, entry)
            else:
                client.ordered = False
                if client.count:
                    self._insert(client, client.peek().length)

    def _is_worth_padding(self, batch: _BatchBuilder, key: int, clients: Sequence[ClientQueue]) -> bool:
        """Whether padding for the items of a bucket costs less than another batch for them would."""
        bound, width = BOUNDS[key], batch.width
        rows = sum([len(client.buckets.get(key, ())) for client in clients]) if bound <= width else len(batch.items)
        return rows * abs(width - bound) * batch.cost.per_token <= batch.cost.overhead

    def _first_clients(self) -> tuple[Sequence[ClientQueue], Sequence[Entry]]:
        """The clients to be served next, in order, at most ``PADDED_CLIENTS`` of them; and their entries, which are
        removed from the order."""
        first = self._next_client()
        if first is not None and self._waiting == 1:
            return (first,), ()
        entries: list[Entry] = []
        while len(entries) < PADDED_CLIENTS and self._next_client():
            entries.append(heappop(self._order))
        return [entry[4] for entry in entries], entries

    def _fill(self, batch: _BatchBuilder, key: int, client: ClientQueue, end: float) -> None:
        """Move items from a bucket to the batch in rank order, as long as they fit, and the client starts before
        ``end``."""
        before, rank, start = batch.seconds, -1.0, client.start
        while start <= end and (head := client.head(key)) and batch.take(head[2]):
            client.take_from(key)
            self._removed(head[2].length)
            rank = head[0]
            if end < inf:
                start = client.start + batch.seconds - before
        if rank >= 0:
            self._charge(client, rank, batch.seconds - before)

    # ------------------------------------------------------------- predictions

    def work_ahead(self, client: str, work: tuple[int, int], cost: CostModel) -> tuple[int, int]:
        """The approximate tokens and pairs that will be taken before the last item of a request of these tokens and
        pairs, which arrives now: the client's own waiting work, as far as its rank is not later, and as much of each
        other client."""
        asking = self._clients.get(client)
        tokens = pairs = 0
        if asking is not None and asking.count:
            tokens, pairs = asking.work_before(asking.clock + cost.seconds(*work))
        if tokens < self.tokens:
            own = cost.seconds(tokens + work[0], pairs + work[1])
            for other in self._clients.values():
                if other is not asking and other.count:
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
        assert self._waiting == len(waiting), "waiting clients are miscounted"
        assert len(self._clients) <= 2 * self._waiting + IDLE_CLIENTS + 1 + self.count, "clients are not forgotten"
        for name, client in self._clients.items():
            client.check(waiting.get(name, ()))
        ordered = [id(entry[4]) for entry in self._order]
        assert len(ordered) == len(set(ordered)), "a client is in the order twice"
        assert set(ordered) == {id(client) for client in self._clients.values() if client.ordered}
        assert all(self._clients[name].ordered for name in waiting), "a waiting client is not in the order"
        assert all(entry[3] <= entry[4].start for entry in self._order), "a client is too late in the order"


class _BatchBuilder:
    """A batch being cut. ``share`` is compared with the cost of the items without padding, so that the shares of all
    instances add up to the whole."""

    def __init__(
        self, cost: CostModel, budget: int, share: float, packed: bool, max_seconds: float, max_items: int | None = None
    ) -> None:
        self.items: list[Item] = []
        self.width = 0
        self.cost = cost
        self._per_token, self._per_pair = cost.per_token, cost.per_pair
        self._budget, self._share, self._packed, self._max_seconds = budget, share, packed, max_seconds
        self._max_items = max_items
        self._tokens = self._pairs = 0

    @property
    def seconds(self) -> float:
        """The predicted seconds of its items, without padding and the overhead of a batch."""
        return self._per_token * self._tokens + self._per_pair * self._pairs

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
