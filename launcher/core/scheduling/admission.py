"""Decides which requests are let in: the bounds of the queue, and deadlines that cannot be met.

Separate from the scheduler because it changes nothing: it looks at what waits and runs, and says no or nothing.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from launcher.core.scheduling.completion import Prediction, Waiting, at_most, predict
from launcher.core.scheduling.events import PRIORITIES, Arrived, Priority, Reject, SchedulerLimits
from launcher.core.scheduling.instances import Group, group_for, serving_instance

# This part of the queue is for interactive items only: a queue full of bulk would turn them away.
INTERACTIVE_PART = 0.25


class Admission:
    """See the module's head. ``gone`` says why no instance will ever come back."""

    def __init__(self, limits: SchedulerLimits, groups: Sequence[Group]) -> None:
        self._limit = limits.queue_items
        self._groups = groups
        self.draining = False
        self.gone: str | None = None

    def refusal(self, request: int, count: int, priority: Priority, held: int, now: float) -> Reject | None:
        """How a request of ``count`` items is refused for what it is, or because ``held`` items are here already."""
        limit = self._limit
        if priority == "bulk":
            limit -= int(limit * INTERACTIVE_PART)
        if self.draining:
            return Reject(request, 503, "draining", "the server is shutting down")
        if self.gone is not None:
            return Reject(request, 503, "no_instance", self.gone)
        if count > limit:
            whose = "the queue ever holds" if priority == "interactive" else "bulk may ever have of the queue"
            reason = f"the request has {count} inputs, more than {whose} ({limit}); send fewer at once"
            return Reject(request, 413, "too_many_items", reason)
        if serving_instance(self._groups) is None:
            return Reject(request, 503, "not_ready", "no model instance is ready yet", 1.0)
        if held + count > limit:
            wait = max(1.0, self.drain_seconds(priority, now))
            takes = "takes at most" if priority == "interactive" else "takes bulk up to"
            reason = f"the queue holds {held} inputs and {takes} {limit}; retry in about {wait:.0f} s"
            return Reject(request, 429, "queue_full", reason, wait)
        return None

    def too_late(self, event: Arrived, now: float) -> Reject | None:
        """How a request is refused that cannot be done before its deadline.

        It is refused when even the predicted finish less the error of predictions (what its cost model shows, at
        least 10 and at most 50 %) is later. The prediction is of the work ahead of it in its class (for bulk all that
        is interactive too) and its own, over the instances that would take it, from when they are predicted to be
        free. Ahead is what has no later rank than its last item.
        """
        if event.deadline is None or not event.lengths:
            return None
        left = event.deadline - now
        if left <= 0:
            reason = f"the deadline passed {-left:.3f} s before the inputs could be queued"
            return Reject(event.request, 504, "deadline_exceeded", reason)
        for group, own in self._by_group(event.lengths):
            predicted = self._predict(group, own, event.priority, left, now)
            if predicted and predicted.at_least > left:
                return _unreachable(event.request, left, predicted)
        return None

    def _by_group(self, lengths: tuple[int, ...]) -> Iterable[tuple[Group, Sequence[int]]]:
        if len(lengths) == 1 or len(self._groups) == 1:
            return ((group_for(self._groups, lengths[0]), lengths),)
        own: dict[int, tuple[Group, list[int]]] = {}
        for length in lengths:
            group = group_for(self._groups, length)
            own.setdefault(id(group), (group, []))[1].append(length)
        return own.values()

    def _predict(
        self, group: Group, own: Sequence[int], priority: Priority, left: float, now: float
    ) -> Prediction | None:
        """When items of these lengths would be done if they came now; None when that is in time beyond doubt."""
        served = serving_instance(self._groups, group)
        if served is None:
            return None
        queue, tokens, longest = group.queues[priority], sum(own), max(own)
        pairs = sum([length * length for length in own])
        rank = now + served.cost.seconds(tokens, pairs)
        if priority == "bulk":
            tokens += group.queues["interactive"].tokens
            pairs += group.queues["interactive"].pairs
        if at_most(Waiting(tokens + queue.tokens, pairs + queue.pairs, longest), served, now) <= left:
            return None  # even behind all that waits
        ahead_tokens, ahead_pairs = queue.before(rank)
        work = Waiting(tokens + ahead_tokens, pairs + ahead_pairs, longest)
        return None if at_most(work, served, now) <= left else predict(work, group, self._groups, served, now)

    def drain_seconds(self, priority: Priority, now: float) -> float:
        """Predicted seconds until nothing is left of this priority, or of the one before it."""
        before = PRIORITIES[: PRIORITIES.index(priority) + 1]
        seconds = 0.0
        for group in self._groups:
            queues = [group.queues[p] for p in before]
            work = Waiting(sum(q.tokens for q in queues), sum(q.pairs for q in queues), 0)
            served = serving_instance(self._groups, group)
            if served and (work.tokens or group.busy):
                seconds = max(seconds, predict(work, group, (), served, now).seconds)
        return seconds


def _unreachable(request: int, left: float, predicted: Prediction) -> Reject:
    reason = (
        f"the deadline is in {left:.3f} s, and the answer is predicted in {predicted.seconds:.3f} s "
        f"(such predictions are off by {predicted.error:.0%}); ask for more time or send fewer inputs"
    )
    return Reject(request, 504, "deadline_unreachable", reason)
