"""The scheduler's records of instances: what each runs, when that should end, and who shares a queue with it.

Reservations live here and nowhere else. Who gets what is decided in ``scheduler``.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import islice
from math import inf

from launcher.core.cost.model import CostModel, Work
from launcher.core.planning.length_classes import LengthClass
from launcher.core.scheduling.batching import Item, LengthQueue
from launcher.core.scheduling.events import InstanceSpec, Priority
from launcher.core.scheduling.water_filling import Taker

# The ready batch is cut this long (seconds, and part of the running batch) before the running one should end:
# longer than a message takes to the worker, short against the batch.
LEAD_SECONDS = 1e-3
LEAD_PART = 0.05
# Nothing more is sent to an instance whose batch runs this many times longer than predicted, and at least the floor.
OVERDUE_FACTOR = 2.0
OVERDUE_FLOOR = 0.5
# A batch is a hang when it runs this many times longer than predicted, and at least the floor (seconds).
HANG_FACTOR = 5.0
HANG_FLOOR = 30.0


# A class helps with items that take this many times as long as the longest of its own; with longer ones only when no
# item of its own has come for so many times as long as they take.
FAR_LONGER = 2.0
QUIET = 2.0
# So many idle and so many busy instances of a group are looked at one by one, the others taken together, so that an
# event costs the same with hundreds of them.
LOOKED_AT = 4
# Speed is measured in pieces of so many tokens, and pairs of them that attend to each other, a second.
PIECE = (1024, 1024 * 64)


@dataclass(slots=True)
class Batch:
    """A batch that was sent, and what it was predicted to take."""

    id: int
    items: tuple[Item, ...]
    work: Work
    predicted: float
    priority: Priority


@dataclass(slots=True)
class Group:
    """The instances of a length class and their queues, by priority.

    ``idle`` has those that may take a batch at once, the one that has been idle longest first, ``busy`` those that
    compute, the one that began first first. ``speed`` is that of all that are ready. ``leads`` is a heap of (when the
    ready batch is to be cut, running batch, instance); an entry whose batch is not running any more, or has a ready
    one behind it, is stale. By ``busy_until`` all that was ever sent is predicted to be done. ``arrived`` is when the
    last item of the class came.
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
        """Of those that have been idle shortest, whose caches are warm, the one that does so much work first."""
        if len(self.idle) == 1:
            return next(iter(self.idle.values()))
        last = islice(reversed(self.idle.values()), LOOKED_AT)
        return min(last, key=lambda i: i.cost.seconds(tokens, pairs))

    def spared(self, length: int, seconds: float, instance: Instance, now: float) -> bool:
        """Whether an instance of this class is to be spared an item of another class that takes it so long, since
        items of its own would have to wait behind it: it is far longer than those, and they keep coming."""
        own = self.length_class
        if own is None or own.max_length is None or length <= own.max_length:
            return False
        longest = instance.cost.seconds(own.max_length, own.max_length**2)
        return seconds > FAR_LONGER * longest and now - self.arrived < QUIET * seconds

    def takers(self, now: float) -> list[Taker]:
        """Those that could take a share of what waits. Those that are not looked at are one taker together, free when
        the last that is looked at is."""
        idle, busy = list(islice(self.idle.values(), LOOKED_AT)), list(islice(self.busy.values(), LOOKED_AT))
        takers = [Taker(0.0, i.speed, i.cost.overhead) for i in idle]
        takers += [Taker(i.free(now), i.speed, i.cost.overhead) for i in busy if not i.stuck(now)]
        if takers and len(self.ready) > len(idle) + len(busy):
            free = 0.0 if len(self.idle) > LOOKED_AT else max([taker.free for taker in takers])
            others = self.speed - sum([i.speed for i in (*idle, *busy)])
            takers.append(Taker(free, max(others, takers[0].speed), takers[0].overhead))
        return takers


@dataclass(slots=True)
class Instance:
    """Reservations live here and nowhere else: ``batches`` holds the running one and the ready one. ``drift`` is what
    its cost model begins with when it becomes ready."""

    spec: InstanceSpec
    group: Group
    cost: CostModel = field(default_factory=CostModel)
    packed: bool = False
    ready: bool = False
    batches: deque[Batch] = field(default_factory=deque)
    started: float = 0.0
    replaced: bool = False
    speed: float = 0.0
    drift: float = 1.0

    def free(self, now: float) -> float:
        """Seconds until all that it has is predicted to be done. What is overdue is taken to need as long again."""
        if not self.batches:
            return 0.0
        rest = abs(self.started + self.batches[0].predicted - now)
        return rest + self.batches[1].predicted if len(self.batches) > 1 else rest

    def measure(self) -> None:
        """Take the speed from the cost model, which has changed, or from the loss of the worker."""
        before, self.speed = self.speed, 0.0
        if self.ready:
            self.speed = 1 / max(1e-9, self.cost.seconds(*PIECE) - self.cost.overhead)
        self.group.speed = self.group.speed + self.speed - before if self.group.ready else 0.0

    def overdue(self, now: float) -> bool:
        """Whether its running batch takes so much longer than predicted that nothing should wait behind it."""
        return now > self.started + max(OVERDUE_FLOOR, OVERDUE_FACTOR * self.batches[0].predicted)

    def stuck(self, now: float) -> bool:
        """Whether nothing can be expected of it, which is busy, before something happens to it."""
        return self.replaced or self.overdue(now)

    def lead_time(self) -> float:
        """When the ready batch is to be cut."""
        predicted = self.batches[0].predicted
        return self.started + predicted - max(LEAD_SECONDS, LEAD_PART * predicted)

    def hang_time(self) -> float:
        """When the running batch counts as hanging."""
        return self.started + max(HANG_FLOOR, HANG_FACTOR * self.batches[0].predicted)


def group_for(groups: Sequence[Group], length: int) -> Group:
    """The group whose class has sequences of this length; the last one where the length is over all classes."""
    for group in groups:
        if group.length_class is None or group.length_class.admits(length):
            return group
    return groups[-1]


def serving_instance(groups: Iterable[Group], first: Group | None = None) -> Instance | None:
    """An instance that is ready, of ``first`` where one is; for measures that hardly depend on which one it is."""
    if first is not None and first.ready:
        return next(iter(first.ready.values()))
    for group in groups:
        if group.ready:
            return next(iter(group.ready.values()))
    return None
