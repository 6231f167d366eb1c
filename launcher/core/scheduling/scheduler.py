"""Decides which items run on which instance, when, and in which batch: events in, actions out.

The dispatcher feeds events and carries out the actions; there is no clock and no I/O here. ``batching`` cuts batches,
``admission`` accepts or rejects requests. The rules:

* The clients that have items in a queue share its instances by predicted seconds of work, whatever they send; so do
  the large requests of one client (``batching``, ``client_queue``).
* Items wait in the queue of their length class, not at instances. Each instance has at most one running and one ready
  batch; the ready batch is cut as late as possible, so that it is as full as possible.
* If several instances are idle, each takes a share of the waiting work by predicted seconds, unless a share would be
  so small that the overhead of another batch outweighs the gain.
* An idle instance takes work of another class if it would finish it earlier than the instances of that class, but not
  items far longer than its own while its own keep arriving.
* Bulk uses idle time only. An instance gets bulk when it is idle, or about to be, and no interactive item waits in its
  class, and only in short batches, since a sent batch cannot be recalled. Interactive items never wait for queued
  bulk, and a part of the queue is closed to bulk. Bulk therefore waits as long as there is no idle time.
* A request with a deadline is rejected at once if its predicted finish, less the error of predictions, is after the
  deadline. A request whose deadline passes while any of its items waits is answered at that time, and none of its
  waiting items is sent.
* The batch that an instance was running when it was lost is retried once, item by item, so that one bad input cannot
  fail the other inputs of its batch. An item that fails twice fails its request.
* A batch that takes far longer than predicted is overdue: its items are offered to other instances, one by one, and the
  first result counts. Its worker is replaced if it hangs (``hang_detection``).

* Instances and classes can change: a retiring instance finishes its batches, and the items that wait move to the queues
  of the classes that there are.

Request ids come from the dispatcher, and batches are numbered here. Neither is reused, so that a late message about a
finished batch is recognized and dropped.
"""

from __future__ import annotations

from array import array
from collections import deque
from collections.abc import Iterable, MutableSequence, Sequence
from heapq import heapify, heappop, heappush
from itertools import accumulate, islice
from math import inf

from launcher.core.cost.cost_model import CostModel, Work, fit, work_of
from launcher.core.planning.length_classes import LengthClass
from launcher.core.scheduling.admission import Admission
from launcher.core.scheduling.batching import Item, LengthQueue
from launcher.core.scheduling.events import (
    PRIORITIES,
    Action,
    Arrived,
    BatchDone,
    BatchFailed,
    Cancelled,
    ChangeEnded,
    ChangeStarted,
    DrainStarted,
    Event,
    Finish,
    InspectWorker,
    InstanceAdded,
    InstanceChange,
    InstanceLost,
    InstanceReady,
    InstanceRemoved,
    InstanceRetiring,
    InstanceSpec,
    NoInstancesLeft,
    Priority,
    ProbeRequested,
    Reject,
    ReplaceWorker,
    SchedulerLimits,
    Send,
    WorkerActivity,
)
from launcher.core.scheduling.hang_detection import CopyCounts, describe_hang, hangs_after, overdue_after
from launcher.core.scheduling.instance_state import SCAN_LIMIT, Batch, Group, Instance, group_for, serving_instance
from launcher.core.scheduling.requests import COMPUTED, SENT, WAITING, Deadlines, Request
from launcher.core.scheduling.water_filling import SHARE_OVER_OVERHEAD, common_finish

__all__ = [
    "Action",
    "Arrived",
    "BatchDone",
    "BatchFailed",
    "Cancelled",
    "ChangeEnded",
    "ChangeStarted",
    "DrainStarted",
    "Event",
    "Finish",
    "InspectWorker",
    "InstanceAdded",
    "InstanceLost",
    "InstanceReady",
    "InstanceRemoved",
    "InstanceRetiring",
    "InstanceSpec",
    "NoInstancesLeft",
    "Priority",
    "ProbeRequested",
    "Reject",
    "ReplaceWorker",
    "Scheduler",
    "SchedulerLimits",
    "Send",
    "WorkerActivity",
]

# An instance slower than this fraction of the average leaves an item to a faster one that finishes it earlier.
SLOW_FRACTION = 0.75
# A worker that is probed computes a sample of one token.
PROBE_WORK = Work(1, 1, 1)
# Keeps a share that should include the last item from missing it by a rounding error.
ROUNDING = 1 + 1e-9


class Scheduler:
    """See the module docstring. Not thread-safe."""

    def __init__(self, instances: Sequence[InstanceSpec], limits: SchedulerLimits) -> None:
        self._limits = limits
        self._requests: dict[int, Request] = {}
        self._deadlines = Deadlines(self._requests)
        self._suspects: dict[Priority, deque[Item]] = {priority: deque() for priority in PRIORITIES}
        self._groups_by_class = self._make_groups({spec.length_class for spec in instances})
        self._groups = tuple(self._groups_by_class.values())
        self._instances = {s.id: Instance(s, self._groups_by_class[s.length_class]) for s in instances}
        # When each running batch is to be checked for a hang: a heap of (time, batch, instance), with stale entries as
        # in leads.
        self._hangs: list[tuple[float, int, int]] = []
        self._copies = CopyCounts()
        self._admission = Admission(limits, self._groups)
        self._next_batch = 1

    # ------------------------------------------------------------------ events

    def handle(self, event: Event, now: float) -> list[Action]:
        """Process an event; the actions must be carried out in order. ``now`` is in seconds and never decreases."""
        actions: list[Action] = []
        match event:
            case Arrived():
                self._arrived(event, now, actions)
            case BatchDone():
                self._batch_done(event, now, actions)
            case Cancelled():
                self._drop_request(event.request)
            case InstanceReady():
                self._instance_ready(event, now)
            case InstanceLost():
                self._instance_lost(event, actions)
            case BatchFailed():
                self._batch_failed(event, now, actions)
            case DrainStarted():
                self._admission.draining = True
            case WorkerActivity() | ProbeRequested():
                self._overdue_or_probed(event, now, actions)
            case NoInstancesLeft():
                self._admission.no_instances = event.reason
                for request in list(self._requests):
                    self._reject(request, 503, "no_instance", event.reason, actions)
            case _:
                self._change_instances(event, now, actions)
        self._expire(now, actions)
        self._dispatch(now, actions)
        return actions

    def _overdue_or_probed(self, event: WorkerActivity | ProbeRequested, now: float, actions: list[Action]) -> None:
        if isinstance(event, WorkerActivity):
            self._worker_inspected(event, now, actions)
        else:
            self._probe(event.instance, now, actions)

    def tick(self, now: float) -> list[Action]:
        """Must be called at ``next_deadline()``."""
        actions: list[Action] = []
        while (hang := self._next_hang()) and now >= hang[0]:
            heappop(self._hangs)
            self._check_overdue(self._instances[hang[2]], now, actions)
        self._expire(now, actions)
        self._dispatch(now, actions)
        return actions

    def next_deadline(self) -> float | None:
        """The latest time at which ``tick`` must be called; None if nothing is scheduled."""
        earliest = inf
        for entry in (self._next_hang(), self._deadlines.next()):
            if entry and entry[0] < earliest:
                earliest = entry[0]
        for group in self._groups:
            lead = self._next_lead(group)  # called unconditionally, because it drops stale entries
            if lead and lead[0] < earliest and self._has_waiting(group):
                earliest = lead[0]
        return None if earliest == inf else earliest

    def _next_hang(self) -> tuple[float, int, int] | None:
        """The earliest time at which a running batch becomes overdue, or must be inspected again."""
        while self._hangs:
            _, batch, instance_id = self._hangs[0]
            instance = self._instances[instance_id]
            if instance.batches and instance.batches[0].id == batch and not instance.replaced:
                return self._hangs[0]
            heappop(self._hangs)
        return None

    def _next_lead(self, group: Group) -> tuple[float, int, int] | None:
        """The earliest time at which a ready batch must be cut in a group."""
        while group.leads:
            _, batch, instance_id = group.leads[0]
            instance = self._instances[instance_id]
            alone = len(instance.batches) == 1 and instance.batches[0].id == batch
            if alone and instance.ready and not instance.replaced and not instance.retiring:
                return group.leads[0]
            heappop(group.leads)
        return None

    def _expire(self, now: float, actions: list[Action]) -> None:
        """Reject the requests whose deadlines have passed while they wait."""
        while (passed := self._deadlines.passed(now)) is not None:
            request = self._requests[passed]
            waiting, count = request.states.count(WAITING), len(request.lengths)
            reason = (
                f"the deadline passed after {now - request.arrived:.3f} s in the queue; "
                f"{waiting} of {count} inputs were still waiting"
            )
            self._reject(passed, 504, "deadline_exceeded", reason, actions)

    def _arrived(self, event: Arrived, now: float, actions: list[Action]) -> None:
        if event.request in self._requests:
            raise ValueError(f"request {event.request} arrived twice")
        rejection = self._admission.check(event, now)
        if rejection:
            actions.append(rejection)
            return
        count, client, priority = len(event.lengths), event.client, event.priority
        ranks = self._offsets(event.lengths)
        states = bytearray(count)
        request = Request(event.lengths, ranks, priority, now, event.deadline, states, count, client)
        self._requests[event.request] = request
        self._admission.hold(client, count)
        if not count:
            self._finish(event.request, actions)
            return
        for index in event.suspects:
            request.attempts[index] = self._limits.max_attempts - 1
            self._suspects[event.priority].append(Item(event.request, index, event.lengths[index]))
        last = None
        for index, length in enumerate(event.lengths):
            if event.suspects and index in event.suspects:
                continue
            group = group_for(self._groups, length)
            if group is not last:
                last, group.arrived = group, now
                queue = group.queues[priority]
                waiting = queue.client(client)
            rank = ranks[index] = waiting.clock + ranks[index]
            queue.push(waiting, Item(event.request, index, length), rank)
        self._deadlines.add(event.request)

    def _offsets(self, lengths: tuple[int, ...]) -> MutableSequence[float]:
        """The seconds of work before each item in its own request."""
        if len(lengths) == 1:
            return [0.0]
        serving = serving_instance(self._groups)
        cost = serving.cost if serving else CostModel()
        overhead = cost.overhead
        seconds = [cost.seconds(length, length * length) - overhead for length in lengths]
        return array("d", accumulate(seconds[:-1], initial=0.0))

    def check_admission(
        self, count: int, now: float, *, client: str = "", priority: Priority = "interactive"
    ) -> Reject | None:
        """The rejection of a request of ``count`` items, as far as it is known before their lengths; None: admitted."""
        return self._admission.check_items(Arrived(0, (0,) * count, priority, client=client), now)

    def hold(self, count: int, client: str) -> None:
        """Count ``count`` items of a client as queued, until ``release``: inputs that are being tokenized."""
        self._admission.hold(client, count)

    def release(self, count: int, client: str) -> None:
        """The items counted by ``hold`` arrived, or never will."""
        self._admission.release(client, count)

    def set_initial_drift(self, instance: int, drift: float) -> None:
        """Set the initial drift of an instance's cost model (actual over measured time), from the next time it becomes
        ready."""
        self._instances[instance].drift = drift

    def knows(self, instance: int) -> bool:
        """Whether there is an instance with this id."""
        return instance in self._instances

    def _instance_ready(self, event: InstanceReady, now: float) -> None:
        instance = self._instances[event.instance]
        if instance.ready:
            raise ValueError(f"instance {event.instance} became ready twice")
        instance.ready, instance.replaced, instance.packed = True, False, event.packed
        instance.finished = now
        if not instance.retiring:
            instance.group.ready[event.instance] = instance
            instance.group.idle[event.instance] = instance
        if event.measured:
            instance.measured = True
            instance.cost = CostModel(fit(event.measured), instance.drift)
        instance.update_speed()

    def _instance_lost(self, event: InstanceLost, actions: list[Action]) -> None:
        for request in event.dropped:
            self._drop_request(request)
        instance_id = event.instance
        instance = self._instances[instance_id]
        instance.ready = False
        instance.group.ready.pop(instance_id, None)
        instance.group.idle.pop(instance_id, None)
        instance.group.busy.pop(instance_id, None)
        instance.update_speed()
        batches, instance.batches = list(instance.batches), deque()
        for position, batch in enumerate(batches):
            if position == 0:
                self._retry(batch, f"instance {instance_id} was lost while computing it", actions)
            else:  # it had not started, so its items are not suspect
                self._requeue_batch(batch)

    def _batch_done(self, event: BatchDone, now: float, actions: list[Action]) -> None:
        batch = self._release_batch(event.instance, event.batch, now)
        if batch is None:
            return
        instance = self._instances[event.instance]
        if batch.items:  # a probe may compute more than its token, for the shapes that a backend has
            instance.cost.observe(batch.work, event.seconds)
            instance.update_speed()
        if self._copies:
            self._withdraw_copies(batch)
        for item in batch.items:
            request = self._requests.get(item.request)
            if request is None or request.states[item.index] == COMPUTED:
                continue
            request.states[item.index] = COMPUTED
            request.remaining -= 1
            if not request.remaining:
                self._finish(item.request, actions)

    def _withdraw_copies(self, batch: Batch) -> None:
        """Remove the computed items from the queue if they wait there to be computed a second time."""
        self._copies.ended(batch.items)
        if batch.overdue:
            for priority, suspects in self._suspects.items():
                done = set(batch.items).intersection(suspects)
                if done:
                    self._suspects[priority] = deque(item for item in suspects if item not in done)

    def _batch_failed(self, event: BatchFailed, now: float, actions: list[Action]) -> None:
        batch = self._release_batch(event.instance, event.batch, now)
        if batch is not None:
            self._retry(batch, event.reason, actions)

    def _release_batch(self, instance_id: int, batch_id: int, now: float) -> Batch | None:
        """End the reservation of a batch; None if there is none any more (a late message)."""
        instance = self._instances[instance_id]
        if not instance.batches or instance.batches[0].id != batch_id:
            return None
        batch = instance.batches.popleft()
        instance.finished = now
        del instance.group.busy[instance_id]
        if instance.batches:
            self._begin(instance, now)
        elif not instance.replaced and not instance.retiring:
            instance.group.idle[instance_id] = instance
        return batch

    def _begin(self, instance: Instance, now: float) -> None:
        """Start the first batch of an instance."""
        instance.started = now
        instance.group.busy[instance.spec.id] = instance
        batch = instance.batches[0].id
        overdue = now + overdue_after(instance.batches[0].predicted, self._limits)
        heappush(self._hangs, (overdue, batch, instance.spec.id))
        heappush(instance.group.leads, (instance.lead_time(), batch, instance.spec.id))

    def _retry(self, batch: Batch, reason: str, actions: list[Action]) -> None:
        self._copies.ended(batch.items)
        for item in batch.items:
            request = self._requests.get(item.request)
            if request is None or request.states[item.index] == COMPUTED:
                continue
            attempts = request.attempts[item.index] = request.attempts.get(item.index, 0) + 1
            if attempts >= self._limits.max_attempts:
                what = f"input {item.index} failed {attempts} times"
                self._reject(item.request, 500, "instance_failed", f"{what}; the last time: {reason}", actions)
            elif request.states[item.index] == SENT and self._may_send_again(item, request):
                self._requeue_item(item, request)

    def _may_send_again(self, item: Item, request: Request) -> bool:
        """Whether the attempts so far, and those that still run, leave another one."""
        return request.attempts.get(item.index, 0) + self._copies.of(item) < self._limits.max_attempts

    def _requeue_batch(self, batch: Batch) -> None:
        self._copies.ended(batch.items)
        for item in batch.items:
            request = self._requests.get(item.request)
            if request is not None and request.states[item.index] == SENT:
                self._requeue_item(item, request)

    def _requeue_item(self, item: Item, request: Request) -> None:
        if not request.has_waiting:
            request.states[item.index] = WAITING
            self._deadlines.add(item.request)
        request.states[item.index] = WAITING
        if item.index in request.attempts:
            self._suspects[request.priority].append(item)
        else:
            queue = group_for(self._groups, item.length).queues[request.priority]
            queue.push(queue.client(request.client), item, request.ranks[item.index])

    # ----------------------------------------------------------------- changes

    def _change_instances(self, event: InstanceChange, now: float, actions: list[Action]) -> None:
        match event:
            case InstanceAdded():
                self._instance_added(event.spec)
            case InstanceRetiring():
                self._instance_retiring(self._instances[event.instance])
            case InstanceRemoved():
                self._instance_lost(InstanceLost(event.instance), actions)
                self._instance_removed(event.instance)
            case ChangeStarted():
                self._admission.changing = True
            case ChangeEnded():
                self._admission.changing = False

    def _make_groups(self, classes: Iterable[LengthClass | None], rank: float = 0.0) -> dict[LengthClass | None, Group]:
        """A group for each class, in the order in which `group_for` searches them."""
        ordered = sorted(set(classes), key=_order_of_class)
        return {c: Group(c, {p: LengthQueue(self._is_waiting, rank) for p in PRIORITIES}) for c in ordered}

    def _instance_added(self, spec: InstanceSpec) -> None:
        if spec.id in self._instances:
            raise ValueError(f"instance {spec.id} was added twice")
        groups = self._groups_by_class
        if spec.length_class not in groups:
            self._set_groups({*groups, spec.length_class})
        self._instances[spec.id] = Instance(spec, self._groups_by_class[spec.length_class])
        # A class that only existed because there must be one.
        self._drop_unused_groups()

    def _instance_retiring(self, instance: Instance) -> None:
        instance.retiring = True
        instance.group.ready.pop(instance.spec.id, None)
        instance.group.idle.pop(instance.spec.id, None)
        instance.update_speed()

    def _instance_removed(self, instance_id: int) -> None:
        removed = self._instances.pop(instance_id)
        self._hangs = [entry for entry in self._hangs if entry[2] != instance_id]
        heapify(self._hangs)
        removed.group.leads = [entry for entry in removed.group.leads if entry[2] != instance_id]
        heapify(removed.group.leads)
        self._drop_unused_groups()

    def _drop_unused_groups(self) -> None:
        """Classes without an instance are dropped, unless that would leave none: items must be able to wait."""
        used = {instance.spec.length_class for instance in self._instances.values()}
        if used and used != set(self._groups_by_class):
            self._set_groups(used)

    def _set_groups(self, classes: set[LengthClass | None]) -> None:
        """Change the classes. Those that stay keep their instances; all waiting items are queued again, in order."""
        before = self._groups_by_class
        latest = max([queue.latest_clock() for queue in self._queues()])
        self._groups_by_class = self._make_groups(classes, latest)
        for kept in before.keys() & classes:
            before[kept].queues = self._groups_by_class[kept].queues
            self._groups_by_class[kept] = before[kept]
        self._groups = self._admission.groups = tuple(self._groups_by_class.values())
        for id, request in self._requests.items():
            for index, (state, length) in enumerate(zip(request.states, request.lengths, strict=True)):
                if state == WAITING and index not in request.attempts:
                    queue = group_for(self._groups, length).queues[request.priority]
                    queue.push(queue.client(request.client), Item(id, index, length), request.ranks[index])

    # ------------------------------------------------------------------- hangs

    def _check_overdue(self, instance: Instance, now: float, actions: list[Action]) -> None:
        """Inspect the worker of an overdue batch, or replace it if it had its time."""
        batch, running = instance.batches[0], now - instance.started
        if batch.overdue and running >= hangs_after(batch.predicted, self._limits):
            self._replace(instance, describe_hang(running, batch.predicted), actions)
            return
        if not batch.overdue:
            batch.overdue = True
            self._offer_to_others(instance)
        heappush(self._hangs, (now + overdue_after(batch.predicted, self._limits), batch.id, instance.spec.id))
        actions.append(InspectWorker(instance.spec.id, batch.id))

    def _offer_to_others(self, instance: Instance) -> None:
        """Queue the items of an overdue batch a second time, and take back the ready batch, which has not started.

        If the worker computes the ready batch nevertheless, its number is not known any more, and it is dropped.
        """
        if len(instance.batches) > 1:
            self._requeue_batch(instance.batches.pop())
        for item in instance.batches[0].items:
            request = self._requests.get(item.request)
            if request is None or request.states[item.index] != SENT:
                continue
            self._copies.offered(item)
            if self._may_send_again(item, request):
                request.attempts.setdefault(item.index, 0)  # it is sent alone, and counted among the suspects
                self._requeue_item(item, request)

    def _worker_inspected(self, event: WorkerActivity, now: float, actions: list[Action]) -> None:
        instance = self._instances.get(event.instance)
        running = instance is not None and instance.batches and instance.batches[0].id == event.batch
        if instance is not None and running and event.state != "active" and not instance.replaced:
            reason = describe_hang(now - instance.started, instance.batches[0].predicted, event)
            self._replace(instance, reason, actions)

    def _replace(self, instance: Instance, reason: str, actions: list[Action]) -> None:
        instance.replaced = True
        actions.append(ReplaceWorker(instance.spec.id, reason))

    def _probe(self, instance_id: int, now: float, actions: list[Action]) -> None:
        instance = self._instances[instance_id]
        if instance.ready and not instance.batches and not instance.replaced and not instance.retiring:
            predicted = instance.cost.seconds(PROBE_WORK.tokens, PROBE_WORK.pairs)
            self._append(instance, Batch(self._next_batch, (), PROBE_WORK, predicted, "interactive"), now, actions)

    def responds(self, instance: int) -> bool:
        """Whether an instance is ready, and its running batch is not overdue."""
        return self._instances[instance].responds()

    def ages(self, instance: int, now: float) -> tuple[float | None, float | None]:
        """Seconds since the worker of an instance last finished a batch (or became ready), and since its running batch
        started; None if it is not ready, or runs none."""
        state = self._instances[instance]
        finished = now - state.finished if state.ready else None
        return finished, now - state.started if state.batches else None

    # ---------------------------------------------------------------- requests

    def _is_waiting(self, item: Item) -> bool:
        request = self._requests.get(item.request)
        return request is not None and request.states[item.index] == WAITING

    def _finish(self, request_id: int, actions: list[Action]) -> None:
        request = self._requests.pop(request_id)
        self._admission.release(request.client, len(request.lengths))
        actions.append(Finish(request_id))

    def _reject(self, request_id: int, status: int, code: str, reason: str, actions: list[Action]) -> None:
        self._drop_request(request_id)
        actions.append(Reject(request_id, status, code, reason))

    def _drop_request(self, request_id: int) -> None:
        """Drop a request: its waiting items are not computed, results of its running items are discarded."""
        request = self._requests.get(request_id)
        if request is None:
            return
        for index, state in enumerate(request.states):
            if state == WAITING and index not in request.attempts:
                item = Item(request_id, index, request.lengths[index])
                queue = group_for(self._groups, item.length).queues[request.priority]
                queue.discard(request.client, item, request.ranks[index])
        del self._requests[request_id]
        self._admission.release(request.client, len(request.lengths))
        if request.attempts:
            suspects = self._suspects[request.priority]
            self._suspects[request.priority] = deque(item for item in suspects if item.request != request_id)

    # ---------------------------------------------------------------- dispatch

    def _dispatch(self, now: float, actions: list[Action]) -> None:
        """Assign interactive work first, to any class; bulk gets what is left."""
        for priority in PRIORITIES:
            if self._can_assign(priority):
                self._assign(priority, now, actions)
        for group in self._groups:
            if group.leads:
                self._fill_ready_slots(group, now, actions)

    def _can_assign(self, priority: Priority) -> bool:
        """Whether any item of a priority waits, in any class, and any instance is idle."""
        waits, idle = bool(self._suspects[priority]), False
        for group in self._groups:
            waits, idle = waits or group.queues[priority].count > 0, idle or bool(group.idle)
        return waits and idle

    def _assign(self, priority: Priority, now: float, actions: list[Action]) -> None:
        """Give waiting work of one priority to idle instances."""
        suspects = self._suspects[priority]
        for group in self._groups:
            if not group.idle or (priority == "bulk" and group.queues["interactive"].count):
                continue
            while suspects and group.idle:
                length = suspects[0].length
                self._send_suspect(group.fastest_idle(length, length**2), suspects, now, actions)
            if group.queues[priority].count:
                self._distribute(group, priority, now, actions)
        if len(self._groups_by_class) > 1:
            self._steal_across_classes(priority, now, actions)

    def _send_suspect(self, instance: Instance, suspects: deque[Item], now: float, actions: list[Action]) -> None:
        item = suspects.popleft()
        self._copies.sent(item)
        self._send(instance, (item,), now, actions)

    def _distribute(self, group: Group, priority: Priority, now: float, actions: list[Action]) -> None:
        """Give each idle instance of a class its share of the waiting work, by predicted seconds."""
        queue = group.queues[priority]
        while queue.count and group.idle:
            instance = group.fastest_idle(queue.tokens, queue.pairs)
            if priority == "interactive" and self._leaves_to_faster(instance, queue, now):
                return
            self._cut(instance, queue, priority, self._share_of(instance, queue, now), now, actions)

    def _leaves_to_faster(self, instance: Instance, queue: LengthQueue, now: float) -> bool:
        """Whether a slow instance should leave the next item to a busy one that will finish it earlier."""
        group = instance.group
        if not group.busy or instance.speed * len(group.ready) >= SLOW_FRACTION * group.speed:
            return False
        item = queue.peek()
        if item is None:
            return False
        length, pairs = item.length, item.length**2
        own = instance.cost.seconds(length, pairs)
        return any(
            other.seconds_until_free(now) + other.cost.seconds(length, pairs) < own
            for other in islice(group.busy.values(), SCAN_LIMIT)
            if len(other.batches) == 1 and not other.is_stuck(now)
        )

    def _share_of(self, instance: Instance, queue: LengthQueue, now: float) -> float:
        """The share of an instance in the waiting work of its class, in predicted seconds, such that all participants
        finish together; infinite if no other instance should get a share."""
        cost, group = instance.cost, instance.group
        own = cost.seconds(queue.tokens, queue.pairs) - cost.overhead
        least = SHARE_OVER_OVERHEAD * cost.overhead
        alone = own < 2 * (least - cost.overhead)  # too little for two equal instances
        if alone or len(group.ready) == 1 or queue.tokens > self._limits.batch_tokens * (len(group.ready) + 1):
            return inf
        end = common_finish(own * instance.speed, group.candidates(now))
        share = end - instance.seconds_until_free(now)
        return inf if share >= own + cost.overhead else max(share, least) * ROUNDING

    def _steal_across_classes(self, priority: Priority, now: float, actions: list[Action]) -> None:
        """Let idle instances steal work of other classes if they finish it earlier than the instances of that class."""
        for behind in self._groups:
            for group in self._groups if behind.queues[priority].count else ():
                if priority == "bulk" and group.queues["interactive"].count:
                    continue
                while group is not behind and group.idle and behind.queues[priority].count:
                    if not self._steal(group, behind, priority, now, actions):
                        break

    def _steal(self, group: Group, behind: Group, priority: Priority, now: float, actions: list[Action]) -> bool:
        queue = behind.queues[priority]
        item = queue.peek()
        if item is None:
            return False
        length, pairs = item.length, item.length**2
        instance = group.fastest_idle(length, pairs)
        own, gain = instance.cost.seconds(length, pairs), inf
        if priority == "interactive" or not behind.queues["interactive"].count:
            gain = self._earliest_finish(behind, length, pairs, now) - own
        if gain <= 0 or (behind.responds() and group.declines(length, own, instance, now)):
            return False
        self._cut(instance, queue, priority, gain + own, now, actions)
        return True

    def _earliest_finish(self, group: Group, length: int, pairs: int, now: float) -> float:
        """Seconds until an item would be done by its own class: by one of the instances that are idle or started first,
        or the one whose ready batch is cut next; infinite if none is ready."""
        busy = [instance for instance in islice(group.busy.values(), SCAN_LIMIT) if not instance.retiring]
        owners = [*islice(group.idle.values(), SCAN_LIMIT), *busy]
        if lead := self._next_lead(group):
            owners.append(self._instances[lead[2]])
        return min([owner.seconds_until_free(now) + owner.cost.seconds(length, pairs) for owner in owners], default=inf)

    def _fill_ready_slots(self, group: Group, now: float, actions: list[Action]) -> None:
        """Cut ready batches if enough work for a full one waits, or if the running batch is about to end.

        Bulk is only cut in the second case: a sent batch cannot be recalled, and interactive items would wait for it.
        """
        while self._has_waiting(group) and (lead := self._next_lead(group)):
            instance, due = self._instances[lead[2]], now >= lead[0]
            if instance.overdue(now):
                heappop(group.leads)
            elif not self._fill_ready_slot(instance, due, now, actions):
                return

    def _has_waiting(self, group: Group) -> bool:
        queues, suspects = group.queues, self._suspects
        queued = queues["interactive"].count or queues["bulk"].count
        return bool(queued or suspects["interactive"] or suspects["bulk"])

    def _fill_ready_slot(self, instance: Instance, due: bool, now: float, actions: list[Action]) -> bool:
        """Send the ready batch of an instance if it is time; returns whether it was sent."""
        queues = instance.group.queues
        queue = queues["interactive"]
        if self._suspects["interactive"] and due:
            self._send_suspect(instance, self._suspects["interactive"], now, actions)
        elif queue.count and (due or queue.tokens >= self._limits.batch_tokens):
            self._cut(instance, queue, "interactive", self._share_of(instance, queue, now), now, actions)
        elif queue.count or not due:
            return False
        elif self._suspects["bulk"]:
            self._send_suspect(instance, self._suspects["bulk"], now, actions)
        elif queues["bulk"].count:
            self._cut(instance, queues["bulk"], "bulk", self._share_of(instance, queues["bulk"], now), now, actions)
        else:
            return False
        return True

    def _cut(
        self,
        instance: Instance,
        queue: LengthQueue,
        priority: Priority,
        share: float,
        now: float,
        actions: list[Action],
    ) -> None:
        max_seconds = self._limits.bulk_batch_seconds if priority == "bulk" else inf
        budget, fifo_items = self._limits.batch_tokens, self._limits.fifo_items
        if fifo_items:
            items = queue.cut_fifo(fifo_items)
        else:
            items = queue.cut(instance.cost, budget, share, packed=instance.packed, max_seconds=max_seconds)
        self._send(instance, items, now, actions)

    def _send(self, instance: Instance, items: tuple[Item, ...], now: float, actions: list[Action]) -> None:
        for item in items:
            self._requests[item.request].states[item.index] = SENT
        work = work_of([item.length for item in items], packed=instance.packed)
        predicted = instance.cost.seconds(work.tokens, work.pairs)
        priority = self._requests[items[0].request].priority
        self._append(instance, Batch(self._next_batch, items, work, predicted, priority), now, actions)

    def _append(self, instance: Instance, batch: Batch, now: float, actions: list[Action]) -> None:
        """Send a batch: it runs, or is ready to run."""
        instance.batches.append(batch)
        if len(instance.batches) == 1:
            del instance.group.idle[instance.spec.id]
            self._begin(instance, now)
        instance.group.busy_until = max(instance.group.busy_until, now + instance.seconds_until_free(now))
        actions.append(Send(instance.spec.id, batch.id, batch.items, batch.predicted))
        self._next_batch += 1

    # -------------------------------------------------------------- inspection

    def _queues(self) -> list[LengthQueue]:
        return [queue for group in self._groups for queue in group.queues.values()]

    @property
    def idle(self) -> bool:
        """Whether no request is left, so that a drain is complete."""
        return not self._requests

    def cost(self, instance: int) -> CostModel:
        """The cost model of an instance, for reports."""
        return self._instances[instance].cost

    def queued_by_class(self) -> dict[str, int]:
        """Items waiting, by the name of their class."""
        return {
            c.name if c else "all": sum(q.count for q in group.queues.values())
            for c, group in self._groups_by_class.items()
        }

    def check(self) -> None:
        """Raise ``AssertionError`` unless the state is consistent; for tests, after each event."""
        sent: list[tuple[int, int]] = []
        for instance in self._instances.values():
            assert len(instance.batches) <= 2, f"{instance.spec} has more than a running and a ready batch"
            assert instance.ready or not instance.batches, f"{instance.spec} is not ready and has batches"
            serves = instance.ready and not instance.retiring
            free = serves and not instance.batches and not instance.replaced
            assert free == (instance.spec.id in instance.group.idle), f"{instance.spec}: wrong idle state"
            assert serves == (instance.spec.id in instance.group.ready)
            assert bool(instance.batches) == (instance.spec.id in instance.group.busy)
            assert serves == (instance.speed > 0)
            assert any(instance.group is group for group in self._groups), f"{instance.spec}: its class has no queue"
            for batch in instance.batches:
                lengths = [item.length for item in batch.items]
                assert lengths == sorted(lengths, reverse=True), "a batch is not sorted"
                unbound = len(lengths) <= 1 or self._limits.fifo_items
                assert unbound or batch.work.tokens <= self._limits.batch_tokens, "a batch exceeds its token budget"
                sent += [(i.request, i.index) for i in batch.items]
                requests = [self._requests[i.request] for i in batch.items if i.request in self._requests]
                assert {request.priority for request in requests} <= {batch.priority}, "a batch mixes priorities"
                short = len(lengths) <= 1 or batch.predicted <= self._limits.bulk_batch_seconds
                assert short or batch.priority == "interactive", "a bulk batch is long"
        copied = self._copies.check(sent)
        single = [place for place in sent if place not in copied]
        assert len(single) == len(set(single)), "an item is in two batches"
        live_sent = {place for place in single if place[0] in self._requests}
        for request_id, request in self._requests.items():
            assert request.remaining == sum(s != COMPUTED for s in request.states) > 0
            for index, state in enumerate(request.states):
                if (request_id, index) not in copied:
                    assert (state == SENT) == ((request_id, index) in live_sent), (
                        "an item's state contradicts its batch"
                    )
        self._check_waiting()
        for group in self._groups:
            speeds = sum(instance.speed for instance in group.ready.values())
            assert abs(group.speed - speeds) <= 1e-6 * speeds, "the speed of a class is not the sum over its instances"
        self._deadlines.check()
        self._admission.check_held((r.client, len(r.lengths)) for r in self._requests.values())

    def _check_waiting(self) -> None:
        suspects = {(item.request, item.index) for items in self._suspects.values() for item in items}
        waiting: dict[int, dict[str, list[Item]]] = {id(queue): {} for queue in self._queues()}
        for id_, request in self._requests.items():
            for index, (state, length) in enumerate(zip(request.states, request.lengths, strict=True)):
                if state == WAITING and (id_, index) not in suspects:
                    queue = group_for(self._groups, length).queues[request.priority]
                    waiting[id(queue)].setdefault(request.client, []).append(Item(id_, index, length))
        for queue in self._queues():
            queue.check(waiting[id(queue)])
        for id_, index in suspects:
            assert self._requests[id_].states[index] == WAITING, "a suspect item is not waiting"


def _order_of_class(length_class: LengthClass | None) -> tuple[bool, int, float]:
    """Shorter classes first; of classes with the same minimum (those of two plans) the narrower; then no class."""
    if length_class is None:
        return True, 0, 0.0
    most = length_class.max_length
    return False, length_class.min_length, inf if most is None else most
