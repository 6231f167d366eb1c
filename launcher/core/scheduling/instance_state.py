"""The scheduler's state of the instances: their batches, when these should end, and the groups that share a queue.

Reservations are kept here and nowhere else. ``scheduler`` decides who gets what.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import islice
from math import inf

from launcher.core.cost.cost_model import CostModel, Work
from launcher.core.planning.length_classes import LengthClass
from launcher.core.scheduling.batching import Item, LengthQueue
from launcher.core.scheduling.events import InstanceSpec, Priority
from launcher.core.scheduling.water_filling import Candidate

# Lead time of the ready batch: it is cut this long before the running one should end (seconds, and fraction of the
# running batch). Longer than a message to the worker takes, short compared with the batch.
LEAD_SECONDS = 1e-3
LEAD_FRACTION = 0.05
# Nothing more is sent to an instance whose batch takes this many times its prediction, and at least the floor
# (seconds).
OVERDUE_FACTOR = 2.0
OVERDUE_FLOOR = 0.5
# A class helps others with items that take up to this many times as long as the longest of its own; with longer items
# only if none of its own has arrived for ``QUIET_FACTOR`` times their duration.
FAR_LONGER_FACTOR = 2.0
QUIET_FACTOR = 2.0
# This many idle and this many busy instances of a group are examined individually and the rest in aggregate, so that
# an event costs the same with hundreds of instances.
SCAN_LIMIT = 4
# Speed is the number of work units of this size (tokens, pairs of tokens) that an instance computes per second.
WORK_UNIT = (1024, 1024 * 64)


@dataclass(slots=True)
class Batch:
    """A batch that was sent, and its predicted duration in seconds. ``overdue``: it takes far longer."""

    id: int
    items: tuple[Item, ...]
    work: Work
    predicted: float
    priority: Priority
    overdue: bool = False


@dataclass(slots=True)
class Group:
    """The instances of a length class and their queues, by priority.

    ``idle`` holds instances that can take a batch at once, in the order in which they became idle; ``busy`` those that
    compute, in the order in which they started. ``speed`` is the sum over the ready instances. ``leads`` is a heap of
    (time at which the ready batch is to be cut, running batch, instance); an entry is stale if its batch no longer
    runs or already has a ready batch after it. All batches sent are predicted to be done by ``busy_until``.
    ``arrived`` is the arrival of the last item of the class.
    """

    length_class: LengthClass | None
    queues: dict[Priority, LengthQueue]
    ready: dict[int, Instance] = field(default_factory=dict)
    idle: dict[int, Instance] = field(default_factory=dict)
    busy: dict[int, Instance] = field(default_factory=dict)
    leads: list[tuple[float, int, int]] = field(default_factory=list)
    speed: float = 0.0
    busy_until: float = 0.0
    arrived: float = -inf

    def fastest_idle(self, tokens: int, pairs: int) -> Instance:
        """The fastest for this work among the most recently idle instances, whose caches are warm."""
        if len(self.idle) == 1:
            return next(iter(self.idle.values()))
        last = islice(reversed(self.idle.values()), SCAN_LIMIT)
        return min(last, key=lambda i: i.cost.seconds(tokens, pairs))

    def declines(self, length: int, seconds: float, instance: Instance, now: float) -> bool:
        """Whether an instance of this class should not take an item of another class that would run for ``seconds``:
        the item is far longer than the class's own, which keep arriving and would have to wait."""
        own = self.length_class
        if own is None or own.max_length is None or length <= own.max_length:
            return False
        longest = instance.cost.seconds(own.max_length, own.max_length**2)
        return seconds > FAR_LONGER_FACTOR * longest and now - self.arrived < QUIET_FACTOR * seconds

    def responds(self) -> bool:
        """Whether any of its instances is ready and not overdue."""
        return any(instance.responds() for instance in self.ready.values())

    def candidates(self, now: float) -> list[Candidate]:
        """The instances that could take a share of the waiting work. Those not examined individually form one
        aggregate candidate, free when the last examined one is."""
        idle, busy = list(islice(self.idle.values(), SCAN_LIMIT)), list(islice(self.busy.values(), SCAN_LIMIT))
        candidates = [Candidate(0.0, i.speed, i.cost.overhead) for i in idle]
        candidates += [
            Candidate(i.seconds_until_free(now), i.speed, i.cost.overhead) for i in busy if not i.is_stuck(now)
        ]
        if candidates and len(self.ready) > len(idle) + len(busy):
            free = 0.0 if len(self.idle) > SCAN_LIMIT else max([candidate.free for candidate in candidates])
            others = self.speed - sum([i.speed for i in (*idle, *busy)])
            candidates.append(Candidate(free, max(others, candidates[0].speed), candidates[0].overhead))
        return candidates


@dataclass(slots=True)
class Instance:
    """State of one instance. ``batches`` holds the running and the ready batch, and is the only record of
    reservations. ``drift`` is the initial drift of its cost model when it becomes ready, and ``measured`` says whether
    that model was fitted to measurements. ``finished`` is when its worker last finished a batch, or became ready.
    ``retiring``: it gets no more batches, and will be removed."""

    spec: InstanceSpec
    group: Group
    cost: CostModel = field(default_factory=CostModel)
    packed: bool = False
    ready: bool = False
    batches: deque[Batch] = field(default_factory=deque)
    started: float = 0.0
    finished: float = 0.0
    replaced: bool = False
    retiring: bool = False
    speed: float = 0.0
    drift: float = 1.0
    measured: bool = False

    def seconds_until_free(self, now: float) -> float:
        """Predicted seconds until its batches are done. An overdue batch is assumed to take as long again as it is
        overdue."""
        if not self.batches:
            return 0.0
        rest = abs(self.started + self.batches[0].predicted - now)
        return rest + self.batches[1].predicted if len(self.batches) > 1 else rest

    def update_speed(self) -> None:
        """Recompute the speed after a change of the cost model or the loss of the worker."""
        before, self.speed = self.speed, 0.0
        if self.ready and not self.retiring:
            self.speed = 1 / max(1e-9, self.cost.seconds(*WORK_UNIT) - self.cost.overhead)
        self.group.speed = self.group.speed + self.speed - before if self.group.ready else 0.0

    def overdue(self, now: float) -> bool:
        """Whether its running batch is so late that nothing should be queued after it."""
        return now > self.started + max(OVERDUE_FLOOR, OVERDUE_FACTOR * self.batches[0].predicted)

    def is_stuck(self, now: float) -> bool:
        """Whether this busy instance cannot be expected to take more: it is being replaced, retiring, or overdue."""
        return self.replaced or self.retiring or self.overdue(now)

    def lead_time(self) -> float:
        """When the ready batch is to be cut."""
        predicted = self.batches[0].predicted
        return self.started + predicted - max(LEAD_SECONDS, LEAD_FRACTION * predicted)

    def responds(self) -> bool:
        """Whether it is ready, and its running batch is not so late that it may hang."""
        return self.ready and not self.replaced and not (self.batches and self.batches[0].overdue)


def group_for(groups: Sequence[Group], length: int) -> Group:
    """The group whose class includes this length; the last group if the length is above all classes."""
    for group in groups:
        if group.length_class is None or group.length_class.admits(length):
            return group
    return groups[-1]


def serving_instance(groups: Iterable[Group], first: Group | None = None) -> Instance | None:
    """A ready instance, of group ``first`` if it has one; for estimates that hardly depend on the instance."""
    if first is not None and first.ready:
        return next(iter(first.ready.values()))
    for group in groups:
        if group.ready:
            return next(iter(group.ready.values()))
    return None
