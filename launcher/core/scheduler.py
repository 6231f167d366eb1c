"""Decides which item goes to which instance, when, and with which others: events in, actions out.

The dispatcher feeds events and carries out the actions; there is no clock and no I/O in here. The rules:

* Items wait in the queue of their length class, not at instances. Each instance has at most one batch running and
  one ready; the ready one is cut as late as possible, so that it is as full as possible.
* Where several instances are idle, each takes a share of the waiting work by predicted seconds, unless a share would
  be so small that the overhead of one more batch eats the gain.
* An idle instance takes work of another class when it would finish it earlier than the instances of that class.
* What an instance was running when it was lost is tried once more, item by item, so that one poisoned item cannot
  take its companions with it. What fails twice fails its request.
* A batch that runs far longer than predicted is a hang: the instance is to be replaced.

Ids of requests come from the dispatcher and batches are numbered here; neither is used twice, so that a late
message about something that is gone is recognized and dropped.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field

from launcher.core.batching import Item, LengthQueue
from launcher.core.cost import CostModel, Measurement, fit
from launcher.core.lengths import LengthClass

MAX_ATTEMPTS = 2
# A share must be worth this many times the overhead of the batch that carries it.
SHARE_OVER_OVERHEAD = 3.0
# The ready batch is cut this long (seconds, and part of the running batch) before the running one should end:
# longer than a message takes to the worker, short against the batch.
LEAD_SECONDS = 1e-3
LEAD_PART = 0.05
# A batch is a hang when it runs this many times longer than predicted, and at least the floor (seconds).
HANG_FACTOR = 5.0
HANG_FLOOR = 30.0


@dataclass(frozen=True, slots=True)
class Arrived:
    """A request came in; ``lengths`` are its items' lengths in tokens, in the order of the request."""

    request: int
    lengths: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Cancelled:
    """The client of this request is gone, or nobody waits for it any more."""

    request: int


@dataclass(frozen=True, slots=True)
class InstanceReady:
    """An instance has a warm worker that takes batches; ``measured`` are the shapes it was timed with."""

    instance: int
    measured: tuple[Measurement, ...] = ()


@dataclass(frozen=True, slots=True)
class InstanceLost:
    """The worker of this instance is gone, with what it was running."""

    instance: int


@dataclass(frozen=True, slots=True)
class BatchDone:
    """A worker has computed a batch in ``seconds``."""

    instance: int
    batch: int
    seconds: float


@dataclass(frozen=True, slots=True)
class BatchFailed:
    """A worker raised on a batch, and lives on."""

    instance: int
    batch: int
    reason: str


@dataclass(frozen=True, slots=True)
class AllGone:
    """No instance is left and none will come back: whatever waits is answered with an error."""

    reason: str


@dataclass(frozen=True, slots=True)
class DrainStarted:
    """No more requests are admitted; what is here is finished."""


@dataclass(frozen=True, slots=True)
class Send:
    """Send these items to this instance as one batch, longest first."""

    instance: int
    batch: int
    items: tuple[Item, ...]


@dataclass(frozen=True, slots=True)
class Reject:
    """Answer this request with an error; none of its items is computed any more."""

    request: int
    status: int
    code: str
    reason: str
    retry_after: float | None = None


@dataclass(frozen=True, slots=True)
class Finish:
    """All items of this request are computed."""

    request: int


@dataclass(frozen=True, slots=True)
class Replace:
    """This instance hangs: end its worker. Its loss is to be told with ``InstanceLost``."""

    instance: int
    reason: str


Event = Arrived | Cancelled | InstanceReady | InstanceLost | BatchDone | BatchFailed | AllGone | DrainStarted
Action = Send | Reject | Finish | Replace


@dataclass(frozen=True, slots=True)
class InstanceSpec:
    """An instance as the scheduler sees it; ``length_class`` None serves every length."""

    id: int
    threads: int
    length_class: LengthClass | None = None


@dataclass(frozen=True, slots=True)
class SchedulerLimits:
    """``queue_items``: the most items that wait or run. ``batch_tokens``: the budget of a batch, padding counted."""

    queue_items: int
    batch_tokens: int


@dataclass(slots=True)
class _Batch:
    id: int
    items: tuple[Item, ...]
    predicted: float


@dataclass(slots=True)
class _Instance:
    """Reservations live here and nowhere else: ``batches`` holds the running one and the ready one."""

    spec: InstanceSpec
    queue: LengthQueue
    cost: CostModel = field(default_factory=CostModel)
    ready: bool = False
    batches: deque[_Batch] = field(default_factory=deque)
    started: float = 0.0
    replaced: bool = False

    def finish(self, now: float) -> float:
        """When all that it has is predicted to be done."""
        if not self.batches:
            return now
        return max(now, self.started + self.batches[0].predicted) + sum(b.predicted for b in list(self.batches)[1:])

    def lead_time(self) -> float:
        """When the ready batch is to be cut."""
        predicted = self.batches[0].predicted
        return self.started + predicted - max(LEAD_SECONDS, LEAD_PART * predicted)

    def hang_time(self) -> float:
        """When the running batch counts as hanging."""
        return self.started + max(HANG_FLOOR, HANG_FACTOR * self.batches[0].predicted)


_WAITING, _SENT, _COMPUTED = 0, 1, 2


@dataclass(slots=True)
class _Request:
    lengths: tuple[int, ...]
    states: bytearray
    remaining: int
    attempts: dict[int, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Load:
    """How much there is: for metrics and for the answer to an overload. ``seconds`` is the predicted drain time."""

    queued_items: int
    queued_tokens: int
    running_items: int
    requests: int
    seconds: float


class Scheduler:
    """See the module's head. Every method but the properties is to be called from one thread."""

    def __init__(self, instances: Sequence[InstanceSpec], limits: SchedulerLimits) -> None:
        self._limits = limits
        self._requests: dict[int, _Request] = {}
        self._queues: dict[LengthClass | None, LengthQueue] = {}
        self._suspects: deque[Item] = deque()
        for spec in sorted(
            instances, key=lambda s: (s.length_class is None, s.length_class and s.length_class.min_length)
        ):
            self._queues.setdefault(spec.length_class, LengthQueue(self._is_waiting))
        self._instances = {s.id: _Instance(s, self._queues[s.length_class]) for s in instances}
        self._routes = list(self._queues.items())
        self._items = 0
        self._running = 0
        self._next_batch = 1
        self._draining = False
        self._gone: str | None = None

    # ------------------------------------------------------------------ events

    def handle(self, event: Event, now: float) -> list[Action]:
        """Take an event in; the actions are to be carried out in order. ``now`` in seconds, never going back."""
        actions: list[Action] = []
        match event:
            case Arrived():
                self._arrived(event, now, actions)
            case BatchDone():
                self._batch_done(event, now, actions)
            case Cancelled():
                self._forget(event.request)
            case InstanceReady():
                self._instance_ready(event)
            case InstanceLost():
                self._instance_lost(event.instance, now, actions)
            case BatchFailed():
                self._batch_failed(event, now, actions)
            case DrainStarted():
                self._draining = True
            case AllGone():
                self._gone = event.reason
                for request in list(self._requests):
                    self._reject(request, 503, "no_instance", event.reason, actions)
        self._dispatch(now, actions)
        return actions

    def tick(self, now: float) -> list[Action]:
        """To be called at ``next_deadline()``."""
        actions: list[Action] = []
        for instance in self._instances.values():
            if instance.batches and not instance.replaced and now >= instance.hang_time():
                instance.replaced = True
                running, expected = now - instance.started, instance.batches[0].predicted
                reason = f"a batch has been running for {running:.1f} s, {expected:.3f} s were predicted"
                actions.append(Replace(instance.spec.id, reason))
        self._dispatch(now, actions)
        return actions

    def next_deadline(self) -> float | None:
        """When ``tick`` is to be called at the latest; None when nothing is to happen by itself."""
        times: list[float] = []
        for instance in self._instances.values():
            if instance.batches and not instance.replaced:
                times.append(instance.hang_time())
                if len(instance.batches) == 1 and (instance.queue.count or self._suspects):
                    times.append(instance.lead_time())
        return min(times, default=None)

    def _arrived(self, event: Arrived, now: float, actions: list[Action]) -> None:
        refusal = self._refusal(event, now)
        if refusal:
            actions.append(refusal)
            return
        count = len(event.lengths)
        self._requests[event.request] = _Request(event.lengths, bytearray(count), count)
        self._items += count
        if not count:
            self._finish(event.request, actions)
        for index, length in enumerate(event.lengths):
            self._queue_for(length).push(Item(event.request, index, length))

    def _refusal(self, event: Arrived, now: float) -> Reject | None:
        count, limit = len(event.lengths), self._limits.queue_items
        if event.request in self._requests:
            raise ValueError(f"request {event.request} arrived twice")
        if self._draining:
            return Reject(event.request, 503, "draining", "the server is shutting down")
        if self._gone is not None:
            return Reject(event.request, 503, "no_instance", self._gone)
        if count > limit:
            reason = f"the request has {count} inputs, more than the queue ever holds ({limit}); send fewer at once"
            return Reject(event.request, 413, "too_many_items", reason)
        if not any(instance.ready for instance in self._instances.values()):
            return Reject(event.request, 503, "not_ready", "no model instance is ready yet", 1.0)
        if self._items + count > limit:
            wait = max(1.0, self.load(now).seconds)
            reason = f"the queue holds {self._items} inputs and takes at most {limit}; retry in about {wait:.0f} s"
            return Reject(event.request, 429, "queue_full", reason, wait)
        return None

    def _instance_ready(self, event: InstanceReady) -> None:
        instance = self._instances[event.instance]
        if instance.ready:
            raise ValueError(f"instance {event.instance} became ready twice")
        instance.ready, instance.replaced = True, False
        if event.measured:
            instance.cost = CostModel(fit(event.measured))

    def _instance_lost(self, instance_id: int, now: float, actions: list[Action]) -> None:
        instance = self._instances[instance_id]
        instance.ready = False
        batches, instance.batches = list(instance.batches), deque()
        for position, batch in enumerate(batches):
            self._running -= len(batch.items)
            if position == 0:
                self._retry(batch, f"instance {instance_id} was lost while computing it", actions)
            else:  # it had not begun: nothing speaks against its items
                self._requeue(batch)

    def _batch_done(self, event: BatchDone, now: float, actions: list[Action]) -> None:
        batch = self._take_back(event.instance, event.batch, now)
        if batch is None:
            return
        self._instances[event.instance].cost.observe(len(batch.items), batch.items[0].length, event.seconds)
        for item in batch.items:
            request = self._requests.get(item.request)
            if request is None:
                continue
            request.states[item.index] = _COMPUTED
            request.remaining -= 1
            if not request.remaining:
                self._finish(item.request, actions)

    def _batch_failed(self, event: BatchFailed, now: float, actions: list[Action]) -> None:
        batch = self._take_back(event.instance, event.batch, now)
        if batch is not None:
            self._retry(batch, event.reason, actions)

    def _take_back(self, instance_id: int, batch_id: int, now: float) -> _Batch | None:
        """End the reservation of a batch; None when it is not there any more (a late message)."""
        instance = self._instances[instance_id]
        if not instance.batches or instance.batches[0].id != batch_id:
            return None
        batch = instance.batches.popleft()
        instance.started = now
        self._running -= len(batch.items)
        return batch

    def _retry(self, batch: _Batch, reason: str, actions: list[Action]) -> None:
        for item in batch.items:
            request = self._requests.get(item.request)
            if request is None:
                continue
            attempts = request.attempts[item.index] = request.attempts.get(item.index, 0) + 1
            if attempts < MAX_ATTEMPTS:
                request.states[item.index] = _WAITING
                self._suspects.append(item)
            else:
                where = f"input {item.index} could not be computed, tried {attempts} times"
                self._reject(item.request, 500, "instance_failed", f"{where}: {reason}", actions)

    def _requeue(self, batch: _Batch) -> None:
        for item in batch.items:
            request = self._requests.get(item.request)
            if request is None:
                continue
            request.states[item.index] = _WAITING
            if item.index in request.attempts:
                self._suspects.append(item)
            else:
                self._queue_for(item.length).push(item)

    # ---------------------------------------------------------------- requests

    def _is_waiting(self, item: Item) -> bool:
        request = self._requests.get(item.request)
        return request is not None and request.states[item.index] == _WAITING

    def _finish(self, request_id: int, actions: list[Action]) -> None:
        self._items -= len(self._requests.pop(request_id).lengths)
        actions.append(Finish(request_id))

    def _reject(self, request_id: int, status: int, code: str, reason: str, actions: list[Action]) -> None:
        self._forget(request_id)
        actions.append(Reject(request_id, status, code, reason))

    def _forget(self, request_id: int) -> None:
        """Drop a request; what waits is not computed, what runs is thrown away when it is done."""
        request = self._requests.get(request_id)
        if request is None:
            return
        for index, state in enumerate(request.states):
            if state == _WAITING and index not in request.attempts:
                item = Item(request_id, index, request.lengths[index])
                self._queue_for(item.length).forget(item)
        del self._requests[request_id]
        self._items -= len(request.lengths)
        if request.attempts:
            self._suspects = deque(item for item in self._suspects if item.request != request_id)

    # ---------------------------------------------------------------- dispatch

    def _queue_for(self, length: int) -> LengthQueue:
        for length_class, queue in self._routes:
            if length_class is None or length_class.admits(length):
                return queue
        return self._routes[-1][1]

    def _dispatch(self, now: float, actions: list[Action]) -> None:
        idle = [i for i in self._instances.values() if i.ready and not i.batches and not i.replaced]
        while self._suspects and idle:
            self._send_suspect(idle.pop(0), now, actions)
        for queue in self._queues.values():
            self._share_out(queue, [i for i in idle if i.queue is queue], now, actions)
        for instance in idle:
            if not instance.batches:
                self._spill(instance, now, actions)
        for instance in self._instances.values():
            if instance.ready and len(instance.batches) == 1 and not instance.replaced:
                self._prepare(instance, now, actions)

    def _send_suspect(self, instance: _Instance, now: float, actions: list[Action]) -> None:
        item = self._suspects.popleft()
        self._send(instance, (item,), now, actions)

    def _share_out(self, queue: LengthQueue, idle: list[_Instance], now: float, actions: list[Action]) -> None:
        """Give each idle instance of a class its share of what waits, by predicted seconds."""
        for position, instance in enumerate(idle):
            if not queue.count:
                return
            self._cut(instance, queue, self._share(instance, queue, len(idle) - position), now, actions)

    def _share(self, instance: _Instance, queue: LengthQueue, takers: int) -> float:
        """Predicted seconds that one of ``takers`` instances is to take of what waits."""
        if takers == 1:
            return float("inf")
        waiting = instance.cost.item_seconds(queue.count, queue.tokens, queue.squares)
        return max(waiting / takers, SHARE_OVER_OVERHEAD * instance.cost.overhead)

    def _spill(self, instance: _Instance, now: float, actions: list[Action]) -> None:
        """Let an idle instance take work of another class where it finishes that earlier than its owners would."""
        for queue in self._queues.values():
            item = None if queue is instance.queue else queue.oldest()
            if item is None:
                continue
            owners = [o for o in self._instances.values() if o.ready and o.queue is queue]
            gain = float("inf")
            if owners:
                finish = min(o.finish(now) + o.cost.seconds(1, item.length) for o in owners)
                gain = finish - now - instance.cost.seconds(1, item.length)
            if gain > 0:
                share = gain + instance.cost.seconds(1, item.length)
                self._cut(instance, queue, share, now, actions)
                return

    def _prepare(self, instance: _Instance, now: float, actions: list[Action]) -> None:
        """Cut the ready batch when a full one waits, or when the running one is about to end."""
        due = now >= instance.lead_time()
        if self._suspects:
            if due:
                self._send_suspect(instance, now, actions)
        elif instance.queue.tokens >= self._limits.batch_tokens or (due and instance.queue.count):
            peers = sum(1 for i in self._instances.values() if i.ready and i.queue is instance.queue)
            self._cut(instance, instance.queue, self._share(instance, instance.queue, peers), now, actions)

    def _cut(self, instance: _Instance, queue: LengthQueue, share: float, now: float, actions: list[Action]) -> None:
        items = queue.cut(instance.cost, self._limits.batch_tokens, share)
        if items:
            self._send(instance, items, now, actions)

    def _send(self, instance: _Instance, items: tuple[Item, ...], now: float, actions: list[Action]) -> None:
        for item in items:
            self._requests[item.request].states[item.index] = _SENT
        predicted = instance.cost.seconds(len(items), items[0].length)
        if not instance.batches:
            instance.started = now
        instance.batches.append(_Batch(self._next_batch, items, predicted))
        self._running += len(items)
        actions.append(Send(instance.spec.id, self._next_batch, items))
        self._next_batch += 1

    # -------------------------------------------------------------- inspection

    def load(self, now: float) -> Load:
        """What waits and runs, and how long the instances that are ready are predicted to need for it."""
        ready = [i for i in self._instances.values() if i.ready]
        seconds = 0.0
        for queue in self._queues.values():
            owners = [i for i in ready if i.queue is queue] or ready
            waits = [i.cost.item_seconds(queue.count, queue.tokens, queue.squares) for i in owners]
            busy = min((i.finish(now) - now for i in owners), default=0.0)
            seconds = max(seconds, busy + (1 / sum(1 / w for w in waits) if waits and min(waits) > 0 else 0.0))
        queued = sum(queue.count for queue in self._queues.values()) + len(self._suspects)
        tokens = sum(queue.tokens for queue in self._queues.values()) + sum(i.length for i in self._suspects)
        return Load(queued, tokens, self._running, len(self._requests), seconds)

    @property
    def idle(self) -> bool:
        """Whether no request is left; a drain is over then."""
        return not self._requests

    def cost(self, instance: int) -> CostModel:
        """The cost model in use for an instance, for reports."""
        return self._instances[instance].cost

    def queued_by_class(self) -> dict[str, int]:
        """Items waiting, by the name of their class."""
        return {c.name if c else "all": queue.count for c, queue in self._routes}

    def check(self) -> None:
        """Raise ``AssertionError`` unless all that is recorded fits together; for tests, after each event."""
        sent: list[tuple[int, int]] = []
        for instance in self._instances.values():
            assert len(instance.batches) <= 2, f"{instance.spec} has more than a running and a ready batch"
            assert instance.ready or not instance.batches, f"{instance.spec} is not ready and has batches"
            for batch in instance.batches:
                assert batch.items, "an empty batch"
                lengths = [item.length for item in batch.items]
                assert lengths == sorted(lengths, reverse=True), "a batch is not sorted"
                padded = lengths[0] * len(lengths)
                assert len(lengths) == 1 or padded <= self._limits.batch_tokens, "a batch is over its budget"
                sent += [(i.request, i.index) for i in batch.items]
        assert len(sent) == len(set(sent)), "an item is in two batches"
        assert self._running == len(sent), "running items are miscounted"
        live_sent = {place for place in sent if place[0] in self._requests}
        waiting = 0
        for request_id, request in self._requests.items():
            assert request.remaining == sum(s != _COMPUTED for s in request.states) > 0
            for index, state in enumerate(request.states):
                assert (state == _SENT) == ((request_id, index) in live_sent), "an item's state is not where it is"
            waiting += sum(s == _WAITING for s in request.states)
        queued = sum(queue.count for queue in self._queues.values())
        assert waiting == queued + len(self._suspects), "waiting items are miscounted"
        assert self._items == sum(len(r.lengths) for r in self._requests.values())
        assert self._items <= self._limits.queue_items, "the queue is over its bound"
