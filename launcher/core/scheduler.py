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
from heapq import heappop, heappush

from launcher.core.batching import Item, LengthQueue
from launcher.core.cost import CostModel, fit, work_of
from launcher.core.events import (
    Action,
    AllGone,
    Arrived,
    BatchDone,
    BatchFailed,
    Cancelled,
    DrainStarted,
    Event,
    Finish,
    InstanceLost,
    InstanceReady,
    InstanceSpec,
    Load,
    Reject,
    Replace,
    SchedulerLimits,
    Send,
)
from launcher.core.instances import Batch, Group, Instance

__all__ = [
    "Action",
    "AllGone",
    "Arrived",
    "BatchDone",
    "BatchFailed",
    "Cancelled",
    "DrainStarted",
    "Event",
    "Finish",
    "InstanceLost",
    "InstanceReady",
    "InstanceSpec",
    "Load",
    "Reject",
    "Replace",
    "Scheduler",
    "SchedulerLimits",
    "Send",
]

MAX_ATTEMPTS = 2
# A share must be worth this many times the overhead of the batch that carries it.
SHARE_OVER_OVERHEAD = 3.0

_WAITING, _SENT, _COMPUTED = 0, 1, 2


@dataclass(slots=True)
class _Request:
    lengths: tuple[int, ...]
    states: bytearray
    remaining: int
    arrived: float
    attempts: dict[int, int] = field(default_factory=dict)


class Scheduler:
    """See the module's head. Every method but the properties is to be called from one thread."""

    def __init__(self, instances: Sequence[InstanceSpec], limits: SchedulerLimits) -> None:
        self._limits = limits
        self._requests: dict[int, _Request] = {}
        self._suspects: deque[Item] = deque()
        classes = {spec.length_class for spec in instances}
        ordered = sorted(classes, key=lambda c: (c is None, c.min_length if c else 0))
        self._groups = {c: Group(c, LengthQueue(self._is_waiting)) for c in ordered}
        self._instances = {s.id: Instance(s, self._groups[s.length_class]) for s in instances}
        # When each running batch counts as a hang: a heap of (time, batch, instance), stale entries as in the leads.
        self._hangs: list[tuple[float, int, int]] = []
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
        while (hang := self._next_hang()) and now >= hang[0]:
            instance = self._instances[hang[2]]
            instance.replaced = True
            running, expected = now - instance.started, instance.batches[0].predicted
            reason = f"a batch has been running for {running:.1f} s, {expected:.3f} s were predicted"
            actions.append(Replace(instance.spec.id, reason))
        self._dispatch(now, actions)
        return actions

    def next_deadline(self) -> float | None:
        """When ``tick`` is to be called at the latest; None when nothing is to happen by itself."""
        hang = self._next_hang()
        deadline = hang[0] if hang else None
        for group in self._groups.values():
            lead = self._next_lead(group)  # asked for in any case: it is what drops stale entries
            if lead and (group.queue.count or self._suspects):
                deadline = lead[0] if deadline is None else min(deadline, lead[0])
        return deadline

    def _next_hang(self) -> tuple[float, int, int] | None:
        """The earliest time at which a running batch counts as a hang."""
        while self._hangs:
            _, batch, instance_id = self._hangs[0]
            instance = self._instances[instance_id]
            if instance.batches and instance.batches[0].id == batch and not instance.replaced:
                return self._hangs[0]
            heappop(self._hangs)
        return None

    def _next_lead(self, group: Group) -> tuple[float, int, int] | None:
        """The earliest time at which a ready batch is to be cut in a group."""
        while group.leads:
            _, batch, instance_id = group.leads[0]
            instance = self._instances[instance_id]
            alone = len(instance.batches) == 1 and instance.batches[0].id == batch
            if alone and instance.ready and not instance.replaced:
                return group.leads[0]
            heappop(group.leads)
        return None

    def _arrived(self, event: Arrived, now: float, actions: list[Action]) -> None:
        if event.request in self._requests:
            raise ValueError(f"request {event.request} arrived twice")
        refusal = self.refusal(len(event.lengths), now, request=event.request)
        if refusal:
            actions.append(refusal)
            return
        count = len(event.lengths)
        self._requests[event.request] = _Request(event.lengths, bytearray(count), count, now)
        self._items += count
        if not count:
            self._finish(event.request, actions)
        cost, rank = self._any_cost(), now
        for index, length in enumerate(event.lengths):
            self._queue_for(length).push(Item(event.request, index, length), rank)
            rank += cost.seconds(length, length * length)

    def _any_cost(self) -> CostModel:
        """The cost model of an instance that serves; which one hardly matters for who is served before whom."""
        serving = next((i for group in self._groups.values() for i in group.ready), None)
        return self._instances[serving].cost if serving is not None else CostModel()

    def refusal(self, count: int, now: float, *, ahead: int = 0, request: int = 0) -> Reject | None:
        """How a request of ``count`` items would be refused if it came now, and ``ahead`` items came before it."""
        limit = self._limits.queue_items
        if self._draining:
            return Reject(request, 503, "draining", "the server is shutting down")
        if self._gone is not None:
            return Reject(request, 503, "no_instance", self._gone)
        if count > limit:
            reason = f"the request has {count} inputs, more than the queue ever holds ({limit}); send fewer at once"
            return Reject(request, 413, "too_many_items", reason)
        if not any(group.ready for group in self._groups.values()):
            return Reject(request, 503, "not_ready", "no model instance is ready yet", 1.0)
        held = self._items + ahead
        if held + count > limit:
            wait = max(1.0, self.load(now).seconds)
            reason = f"the queue holds {held} inputs and takes at most {limit}; retry in about {wait:.0f} s"
            return Reject(request, 429, "queue_full", reason, wait)
        return None

    def _instance_ready(self, event: InstanceReady) -> None:
        instance = self._instances[event.instance]
        if instance.ready:
            raise ValueError(f"instance {event.instance} became ready twice")
        instance.ready, instance.replaced, instance.packed = True, False, event.packed
        instance.group.ready.add(event.instance)
        instance.group.idle[event.instance] = instance
        if event.measured:
            instance.cost = CostModel(fit(event.measured))

    def _instance_lost(self, instance_id: int, now: float, actions: list[Action]) -> None:
        instance = self._instances[instance_id]
        instance.ready = False
        instance.group.ready.discard(instance_id)
        instance.group.idle.pop(instance_id, None)
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
        self._instances[event.instance].cost.observe(batch.work, event.seconds)
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

    def _take_back(self, instance_id: int, batch_id: int, now: float) -> Batch | None:
        """End the reservation of a batch; None when it is not there any more (a late message)."""
        instance = self._instances[instance_id]
        if not instance.batches or instance.batches[0].id != batch_id:
            return None
        batch = instance.batches.popleft()
        self._running -= len(batch.items)
        if instance.batches:
            self._begin(instance, now)
        elif not instance.replaced:
            instance.group.idle[instance_id] = instance
        return batch

    def _begin(self, instance: Instance, now: float) -> None:
        """The first batch of an instance runs from now on."""
        instance.started = now
        batch = instance.batches[0].id
        heappush(self._hangs, (instance.hang_time(), batch, instance.spec.id))
        heappush(instance.group.leads, (instance.lead_time(), batch, instance.spec.id))

    def _retry(self, batch: Batch, reason: str, actions: list[Action]) -> None:
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

    def _requeue(self, batch: Batch) -> None:
        for item in batch.items:
            request = self._requests.get(item.request)
            if request is None:
                continue
            request.states[item.index] = _WAITING
            if item.index in request.attempts:
                self._suspects.append(item)
            else:
                self._queue_for(item.length).push(item, request.arrived)

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
        queue = None
        for group in self._groups.values():
            queue = group.queue
            if group.length_class is None or group.length_class.admits(length):
                return queue
        assert queue is not None, "there is at least one instance"
        return queue

    def _dispatch(self, now: float, actions: list[Action]) -> None:
        groups = self._groups.values()
        for group in groups:
            while self._suspects and group.idle:
                self._send_suspect(next(iter(group.idle.values())), now, actions)
            if group.queue.count and group.idle:
                self._share_out(group, now, actions)
        if len(groups) > 1:
            self._spill(now, actions)
        for group in groups:
            self._prepare(group, now, actions)

    def _send_suspect(self, instance: Instance, now: float, actions: list[Action]) -> None:
        item = self._suspects.popleft()
        self._send(instance, (item,), now, actions)

    def _share_out(self, group: Group, now: float, actions: list[Action]) -> None:
        """Give each idle instance of a class its share of what waits, by predicted seconds."""
        idle = list(group.idle.values())
        for position, instance in enumerate(idle):
            if not group.queue.count:
                return
            self._cut(instance, group.queue, self._share(instance, group.queue, len(idle) - position), now, actions)

    def _share(self, instance: Instance, queue: LengthQueue, takers: int) -> float:
        """Predicted seconds that one of ``takers`` instances is to take of what waits."""
        if takers == 1:
            return float("inf")
        waiting = instance.cost.seconds(queue.tokens, queue.pairs)
        return max(waiting / takers, SHARE_OVER_OVERHEAD * instance.cost.overhead)

    def _spill(self, now: float, actions: list[Action]) -> None:
        """Let idle instances take work of other classes where they finish it earlier than its owners would."""
        for behind in self._groups.values():
            for group in self._groups.values():
                while group is not behind and group.idle and behind.queue.count:
                    if not self._help(next(iter(group.idle.values())), behind, now, actions):
                        break

    def _help(self, instance: Instance, behind: Group, now: float, actions: list[Action]) -> bool:
        item = behind.queue.oldest()
        if item is None:
            return False
        length, pairs = item.length, item.length**2
        own = instance.cost.seconds(length, pairs)
        owners = [self._instances[owner] for owner in behind.ready]
        gain = min((o.finish(now) + o.cost.seconds(length, pairs) - now - own for o in owners), default=float("inf"))
        if gain <= 0:
            return False
        self._cut(instance, behind.queue, gain + own, now, actions)
        return True

    def _prepare(self, group: Group, now: float, actions: list[Action]) -> None:
        """Cut ready batches when a full one waits, or when the running one is about to end."""
        while (group.queue.count or self._suspects) and (lead := self._next_lead(group)):
            instance, due = self._instances[lead[2]], now >= lead[0]
            if instance.overdue(now):
                heappop(group.leads)
                continue
            if self._suspects and due:
                self._send_suspect(instance, now, actions)
            elif group.queue.count and (due or group.queue.tokens >= self._limits.batch_tokens):
                self._cut(instance, group.queue, self._share(instance, group.queue, len(group.ready)), now, actions)
            else:
                return

    def _cut(self, instance: Instance, queue: LengthQueue, share: float, now: float, actions: list[Action]) -> None:
        items = queue.cut(instance.cost, self._limits.batch_tokens, share, packed=instance.packed)
        if items:
            self._send(instance, items, now, actions)

    def _send(self, instance: Instance, items: tuple[Item, ...], now: float, actions: list[Action]) -> None:
        for item in items:
            self._requests[item.request].states[item.index] = _SENT
        work = work_of([item.length for item in items], packed=instance.packed)
        predicted = instance.cost.seconds(work.tokens, work.pairs)
        instance.batches.append(Batch(self._next_batch, items, work, predicted))
        if len(instance.batches) == 1:
            del instance.group.idle[instance.spec.id]
            self._begin(instance, now)
        self._running += len(items)
        actions.append(Send(instance.spec.id, self._next_batch, items))
        self._next_batch += 1

    # -------------------------------------------------------------- inspection

    def load(self, now: float) -> Load:
        """What waits and runs, and how long the instances that are ready are predicted to need for it."""
        ready = [i for i in self._instances.values() if i.ready]
        seconds = 0.0
        for group in self._groups.values():
            queue = group.queue
            owners = [i for i in ready if i.group is group] or ready
            waits = [i.cost.seconds(queue.tokens, queue.pairs) if queue.count else 0.0 for i in owners]
            busy = min((i.finish(now) - now for i in owners), default=0.0)
            seconds = max(seconds, busy + (1 / sum(1 / w for w in waits) if waits and min(waits) > 0 else 0.0))
        queued = sum(group.queue.count for group in self._groups.values()) + len(self._suspects)
        tokens = sum(group.queue.tokens for group in self._groups.values()) + sum(i.length for i in self._suspects)
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
        return {c.name if c else "all": group.queue.count for c, group in self._groups.items()}

    def check(self) -> None:
        """Raise ``AssertionError`` unless all that is recorded fits together; for tests, after each event."""
        sent: list[tuple[int, int]] = []
        for instance in self._instances.values():
            assert len(instance.batches) <= 2, f"{instance.spec} has more than a running and a ready batch"
            assert instance.ready or not instance.batches, f"{instance.spec} is not ready and has batches"
            free = instance.ready and not instance.batches and not instance.replaced
            assert free == (instance.spec.id in instance.group.idle), f"{instance.spec} is wrongly listed as idle"
            assert instance.ready == (instance.spec.id in instance.group.ready)
            for batch in instance.batches:
                assert batch.items, "an empty batch"
                lengths = [item.length for item in batch.items]
                assert lengths == sorted(lengths, reverse=True), "a batch is not sorted"
                assert len(lengths) == 1 or batch.work.tokens <= self._limits.batch_tokens, (
                    "a batch is over its budget"
                )
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
        queued = sum(group.queue.count for group in self._groups.values())
        assert waiting == queued + len(self._suspects), "waiting items are miscounted"
        assert self._items == sum(len(r.lengths) for r in self._requests.values())
        assert self._items <= self._limits.queue_items, "the queue is over its bound"
