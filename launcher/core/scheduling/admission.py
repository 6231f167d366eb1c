"""Admission control: how much each client may queue, its Retry-After, and deadlines that cannot be met.

Separate from the scheduler because it decides before anything is queued: it inspects the queued and running work and
either rejects a request or does not. Retry-After is computed here, in seconds; the HTTP layer formats it.

A client may queue up to a limit, less half of what the others have queued. Alone, it has the whole limit; beside one
other that is greedy each gets two thirds of it; and however many there are, one more finds room. Together they queue
less than twice the limit. A part of the limit beyond that is for small requests only, so that a client that has filled
its queue with large ones still gets small ones answered.

There are two limits. The predicted seconds of queued work limit how long requests wait. The number of items limits the
memory that they take, whatever they cost; it also applies while costs are not known. The program that uses the Python
API is the client with the empty name: it has the queue to itself, and only the number of items limits it.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from launcher.core.cost.cost_model import CostModel
from launcher.core.scheduling.batching import LengthQueue
from launcher.core.scheduling.completion_estimate import (
    CompletionEstimate,
    QueuedWork,
    completion_upper_bound,
    predict_completion,
)
from launcher.core.scheduling.events import PRIORITIES, Arrived, Priority, Reject, SchedulerLimits
from launcher.core.scheduling.instance_state import Group, Instance, group_for, serving_instance

# The part of a limit that only small requests may use, beyond the limit. A request is small if it fits into one batch.
SMALL_SHARE = 1 / 8
# Before its lengths are known, a request is small if it has at most this many items.
SMALL_ITEMS = 16
# The costs of an instance without measurements are known after this many batches.
KNOWN_BATCHES = 16


class Admission:
    """See the module docstring. ``no_instances`` is the reason why no instance will be restarted, once none is left.
    ``changing``: instances are being replaced, and requests wait if none is ready."""

    def __init__(self, limits: SchedulerLimits, groups: Sequence[Group]) -> None:
        reserved = int(limits.queue_items * limits.interactive_share)
        self._limit: dict[Priority, int] = {"interactive": limits.queue_items, "bulk": limits.queue_items - reserved}
        self._limits = limits
        self.groups = groups
        self._held = 0  # queued and running items
        self._held_by: dict[str, int] = {}  # the same by client
        self.draining = False
        self.changing = False
        self.no_instances: str | None = None

    def hold(self, client: str, items: int) -> None:
        """Items of a client are queued from now on."""
        self._held += items
        self._held_by[client] = self._held_by.get(client, 0) + items

    def release(self, client: str, items: int) -> None:
        """Items of a client are neither queued nor running any more."""
        self._held -= items
        left = self._held_by.get(client, 0) - items
        if left:
            self._held_by[client] = left
        else:
            self._held_by.pop(client, None)

    def check_held(self, held: Iterable[tuple[str, int]]) -> None:
        """Raise ``AssertionError`` unless these items, by client, are held; for tests without ``hold`` of their own."""
        expected: dict[str, int] = {}
        for client, items in held:
            expected[client] = expected.get(client, 0) + items
        assert {c: n for c, n in expected.items() if n} == {c: n for c, n in self._held_by.items() if n}
        assert self._held == sum(expected.values()), "held items are miscounted"
        limit = self._limits.queue_items
        assert self._held <= 2 * (limit + int(SMALL_SHARE * limit)), "the queue exceeds its limit"

    def check(self, event: Arrived, now: float) -> Reject | None:
        """The rejection of a request; None: admitted."""
        rejection = self.check_items(event, now)
        if rejection is None and event.client and not self._is_short(event):
            rejection = self._check_seconds(event)
        if rejection is None and event.deadline is not None:
            rejection = self._check_deadline(event, event.deadline, now)
        return rejection

    def _is_short(self, event: Arrived) -> bool:
        """Whether a single item meets a queue that is certainly shorter than the limit: the usual case."""
        lengths = event.lengths
        if len(lengths) != 1:
            return False
        length = lengths[0]
        group = self.groups[0] if len(self.groups) == 1 else group_for(self.groups, length)
        queue = group.queues["interactive"]
        tokens = queue.tokens + length
        if event.priority == "bulk" or not group.ready:
            return False
        served = next(iter(group.ready.values()))
        return served.cost.seconds(tokens, queue.pairs + length * length) <= self._limits.queue_seconds

    def check_items(self, event: Arrived, now: float) -> Reject | None:
        """The rejection of a request because of the number of its items; None: admitted."""
        request, count, priority = event.request, len(event.lengths), event.priority
        limit = self._limit[priority]
        if self.draining:
            return Reject(request, 503, "draining", "the server is shutting down")
        if self.no_instances is not None:
            return Reject(request, 503, "no_instance", self.no_instances)
        if count > limit:
            what = "the queue holds" if priority == "interactive" else "the queue holds for bulk requests"
            reason = f"the request has {count} inputs, but {what} at most {limit}; send fewer inputs per request"
            return Reject(request, 413, "too_many_items", reason)
        if serving_instance(self.groups) is None and not self.changing:
            return Reject(request, 503, "not_ready", "no model instance is ready yet", 1.0)
        if self._held + count <= limit:
            return None  # whoever holds them
        return self._check_shares(event, limit, now)

    def _check_shares(self, event: Arrived, limit: int, now: float) -> Reject | None:
        """The rejection of a request that exceeds the limit together with the items of all clients."""
        client, count, priority = event.client, len(event.lengths), event.priority
        if not client:
            wait = max(1.0, self.seconds_until_empty(priority, now))
            most = "at most" if priority == "interactive" else "bulk requests up to"
            reason = f"the queue holds {self._held} inputs and accepts {most} {limit}; retry in about {wait:.0f} s"
            return Reject(event.request, 429, "queue_full", reason, wait)
        own = self._held_by.get(client, 0)
        others = self._held - own
        room = limit - own - others // 2
        if count <= SMALL_ITEMS:
            room += int(SMALL_SHARE * limit)
        if count <= room:
            return None
        seconds = sum(_own_wait(self.groups, group, client, priority) for group in self.groups)
        if not own:
            seconds = self.seconds_until_empty(priority, now)
        wait = max(1.0, seconds * min(1.0, (count - room) / max(1, own)))
        more = "more" if priority == "interactive" else "more bulk inputs"
        reason = (
            f"{own} inputs of this client and {others} of others are queued or running, which leaves room for "
            f"{max(0, room)} {more}, but the request has {count}; retry in about {wait:.0f} s"
        )
        return Reject(event.request, 429, "queue_full", reason, wait)

    def _check_seconds(self, event: Arrived) -> Reject | None:
        """The rejection of a request because of the predicted seconds of its work; None: admitted."""
        limit = self._limits.queue_seconds
        for group, lengths in self._by_group(event.lengths) if event.lengths else ():
            served = serving_instance(self.groups, group)
            if served is None or not _costs_are_known(served):
                continue
            queues = _queues_before(group, event.priority)
            tokens, pairs = sum(lengths), sum([length * length for length in lengths])
            all_tokens, all_pairs = tokens, pairs
            for queue in queues:
                all_tokens += queue.tokens
                all_pairs += queue.pairs
            if _seconds(served, all_tokens, all_pairs) > limit:
                rejection = self._check_shares_of_seconds(event, queues, served, (tokens, pairs))
                if rejection:
                    return rejection
        return None

    def _check_shares_of_seconds(
        self, event: Arrived, queues: Sequence[LengthQueue], served: Instance, work: tuple[int, int]
    ) -> Reject | None:
        """The rejection of a request that exceeds the limit together with the work of all clients."""
        limit, request = self._limits.queue_seconds, _seconds(served, *work)
        small = work[0] <= self._limits.batch_tokens
        if request > limit and not small:
            reason = (
                f"the request is predicted to take {request:.0f} s, but the queue accepts at most {limit:g} s of work "
                "for each client; send fewer inputs per request"
            )
            return Reject(event.request, 413, "too_much_work", reason)
        own = _seconds_of(served, queues, event.client)
        others = sum([_seconds(served, queue.tokens, queue.pairs) for queue in queues]) - own
        room = limit - own - others / 2 + (SMALL_SHARE * limit if small else 0.0)
        if request <= room:
            return None
        # Own work shrinks at the rate of the client's share, and what others leave at half the rate of theirs.
        clients = max(1, *[queue.waiting_clients() for queue in queues])
        rate = (clients + 1) / (2 * clients) if own else 0.5
        wait = max(1.0, (request - room) / rate)
        reason = (
            f"{own:.0f} s of predicted work of this client and {others:.0f} s of others are queued, which leaves room "
            f"for {max(0.0, room):.1f} s, but the request takes {request:.1f} s; retry in about {wait:.0f} s"
        )
        return Reject(event.request, 429, "queue_full", reason, wait)

    def _check_deadline(self, event: Arrived, deadline: float, now: float) -> Reject | None:
        """The rejection of a request that cannot be finished before its deadline; None: admitted.

        A request is rejected if its predicted finish, less the error of predictions (as observed by the cost model,
        between 10 and 50 %), is after the deadline. The prediction covers its own work and the work ahead of it in its
        class (for bulk, all interactive work too), divided over the instances that would share it, from when they are
        predicted to be free. Work is ahead if it is predicted to be taken before the request's last item.
        """
        if not event.lengths:
            return None
        left = deadline - now
        if left <= 0:
            reason = f"the deadline passed {-left:.3f} s before the inputs could be queued"
            return Reject(event.request, 504, "deadline_exceeded", reason)
        for group, own in self._by_group(event.lengths):
            predicted = self._predict(group, own, event, now)
            if predicted and predicted.lower_bound > left:
                return _unreachable(event.request, left, predicted)
        return None

    def _by_group(self, lengths: tuple[int, ...]) -> Iterable[tuple[Group, Sequence[int]]]:
        if len(lengths) == 1 or len(self.groups) == 1:
            return ((group_for(self.groups, lengths[0]), lengths),)
        own: dict[int, tuple[Group, list[int]]] = {}
        for length in lengths:
            group = group_for(self.groups, length)
            own.setdefault(id(group), (group, []))[1].append(length)
        return own.values()

    def _predict(self, group: Group, own: Sequence[int], event: Arrived, now: float) -> CompletionEstimate | None:
        """When items of these lengths would be done if they arrived now; None if they are certain to be in time."""
        assert event.deadline is not None
        priority, left = event.priority, event.deadline - now
        served = serving_instance(self.groups, group)
        if served is None:
            return None
        queue, tokens, longest = group.queues[priority], sum(own), max(own)
        pairs = sum([length * length for length in own])
        work = tokens, pairs
        if priority == "bulk":
            tokens += group.queues["interactive"].tokens
            pairs += group.queues["interactive"].pairs
        if completion_upper_bound(QueuedWork(tokens + queue.tokens, pairs + queue.pairs, longest), served, now) <= left:
            return None  # even after everything in the queue
        ahead_tokens, ahead_pairs = queue.work_ahead(event.client, work, served.cost)
        queued = QueuedWork(tokens + ahead_tokens, pairs + ahead_pairs, longest)
        return (
            None
            if completion_upper_bound(queued, served, now) <= left
            else predict_completion(queued, group, self.groups, served, now)
        )

    def seconds_until_empty(self, priority: Priority, now: float) -> float:
        """Predicted seconds until no work of this priority or a higher one is left: the Retry-After of a full queue."""
        seconds = 0.0
        for group in self.groups:
            queues = _queues_before(group, priority)
            work = QueuedWork(sum(q.tokens for q in queues), sum(q.pairs for q in queues), 0)
            served = serving_instance(self.groups, group)
            if served and (work.tokens or group.busy):
                seconds = max(seconds, predict_completion(work, group, (), served, now).seconds)
        return seconds


def _queues_before(group: Group, priority: Priority) -> Sequence[LengthQueue]:
    """The queues of a class whose work is done before that of this priority, or with it."""
    return [group.queues[p] for p in PRIORITIES[: PRIORITIES.index(priority) + 1]]


def _costs_are_known(served: Instance) -> bool:
    """Whether the costs of an instance were measured or observed, and are not only the defaults."""
    return served.measured or served.cost.observed >= KNOWN_BATCHES


def _seconds(served: Instance, tokens: int, pairs: int) -> float:
    """Predicted seconds until work is done if all instances of the class of ``served`` compute nothing else."""
    cost: CostModel = served.cost
    return max(0.0, cost.seconds(tokens, pairs) - cost.overhead) * served.speed / served.group.speed


def _seconds_of(served: Instance, queues: Sequence[LengthQueue], client: str) -> float:
    """The same for the waiting work of a client."""
    backlogs = [queue.backlog(client) for queue in queues]
    return _seconds(served, sum([b[0] for b in backlogs]), sum([b[1] for b in backlogs]))


def _own_wait(groups: Sequence[Group], group: Group, client: str, priority: Priority) -> float:
    """Predicted seconds until the waiting work of a client in a class is done, while the clients there share it."""
    served = serving_instance(groups, group)
    queues = _queues_before(group, priority)
    if served is None or not served.group.speed:
        return 0.0
    everything = sum([_seconds(served, queue.tokens, queue.pairs) for queue in queues])
    clients = max([queue.waiting_clients() for queue in queues])
    return min(everything, clients * _seconds_of(served, queues, client))


def _unreachable(request: int, left: float, predicted: CompletionEstimate) -> Reject:
    reason = (
        f"the deadline is in {left:.3f} s, but the result is predicted in {predicted.seconds:.3f} s "
        f"(± {predicted.error:.0%}); allow more time or send fewer inputs"
    )
    return Reject(request, 504, "deadline_unreachable", reason)
