"""Admission control: the bounds of the queue, the Retry-After of a full one, and deadlines that cannot be met.

Separate from the scheduler because it changes no state: it inspects the queued and running work and either rejects a
request or does not. Retry-After is computed here, in seconds; the HTTP layer formats it.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from launcher.core.scheduling.completion_estimate import (
    CompletionEstimate,
    QueuedWork,
    completion_upper_bound,
    predict_completion,
)
from launcher.core.scheduling.events import PRIORITIES, Arrived, Priority, Reject, SchedulerLimits
from launcher.core.scheduling.instance_state import Group, group_for, serving_instance


class Admission:
    """See the module docstring. ``no_instances`` is the reason why no instance will be restarted, once none is left.
    ``changing``: instances are being replaced, and requests wait if none is ready."""

    def __init__(self, limits: SchedulerLimits, groups: Sequence[Group]) -> None:
        reserved = int(limits.queue_items * limits.interactive_share)
        self._limit: dict[Priority, int] = {"interactive": limits.queue_items, "bulk": limits.queue_items - reserved}
        self.groups = groups
        self.draining = False
        self.changing = False
        self.no_instances: str | None = None

    def check(self, request: int, count: int, priority: Priority, held: int, now: float) -> Reject | None:
        """The rejection of a request of ``count`` items while ``held`` items are queued or running; None: admitted."""
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
        if held + count > limit:
            wait = max(1.0, self.seconds_until_empty(priority, now))
            most = "at most" if priority == "interactive" else "bulk requests up to"
            reason = f"the queue holds {held} inputs and accepts {most} {limit}; retry in about {wait:.0f} s"
            return Reject(request, 429, "queue_full", reason, wait)
        return None

    def check_deadline(self, event: Arrived, now: float) -> Reject | None:
        """The rejection of a request that cannot be finished before its deadline; None: admitted.

        A request is rejected if its predicted finish, less the error of predictions (as observed by the cost model,
        between 10 and 50 %), is after the deadline. The prediction covers its own work and the work ahead of it in its
        class (for bulk, all interactive work too), divided over the instances that would share it, from when they are
        predicted to be free. Work is ahead if its rank is not after that of the request's last item.
        """
        if event.deadline is None or not event.lengths:
            return None
        left = event.deadline - now
        if left <= 0:
            reason = f"the deadline passed {-left:.3f} s before the inputs could be queued"
            return Reject(event.request, 504, "deadline_exceeded", reason)
        for group, own in self._by_group(event.lengths):
            predicted = self._predict(group, own, event.priority, left, now)
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

    def _predict(
        self, group: Group, own: Sequence[int], priority: Priority, left: float, now: float
    ) -> CompletionEstimate | None:
        """When items of these lengths would be done if they arrived now; None if they are certain to be in time."""
        served = serving_instance(self.groups, group)
        if served is None:
            return None
        queue, tokens, longest = group.queues[priority], sum(own), max(own)
        pairs = sum([length * length for length in own])
        rank = now + served.cost.seconds(tokens, pairs)
        if priority == "bulk":
            tokens += group.queues["interactive"].tokens
            pairs += group.queues["interactive"].pairs
        if completion_upper_bound(QueuedWork(tokens + queue.tokens, pairs + queue.pairs, longest), served, now) <= left:
            return None  # even after everything in the queue
        ahead_tokens, ahead_pairs = queue.work_before(rank)
        work = QueuedWork(tokens + ahead_tokens, pairs + ahead_pairs, longest)
        return (
            None
            if completion_upper_bound(work, served, now) <= left
            else predict_completion(work, group, self.groups, served, now)
        )

    def seconds_until_empty(self, priority: Priority, now: float) -> float:
        """Predicted seconds until no work of this priority or a higher one is left: the Retry-After of a full queue."""
        before = PRIORITIES[: PRIORITIES.index(priority) + 1]
        seconds = 0.0
        for group in self.groups:
            queues = [group.queues[p] for p in before]
            work = QueuedWork(sum(q.tokens for q in queues), sum(q.pairs for q in queues), 0)
            served = serving_instance(self.groups, group)
            if served and (work.tokens or group.busy):
                seconds = max(seconds, predict_completion(work, group, (), served, now).seconds)
        return seconds


def _unreachable(request: int, left: float, predicted: CompletionEstimate) -> Reject:
    reason = (
        f"the deadline is in {left:.3f} s, but the result is predicted in {predicted.seconds:.3f} s "
        f"(± {predicted.error:.0%}); allow more time or send fewer inputs"
    )
    return Reject(request, 504, "deadline_unreachable", reason)
