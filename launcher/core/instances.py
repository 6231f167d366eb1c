"""The scheduler's records of instances: what each runs, when that should end, and who shares a queue with it.

Reservations live here and nowhere else. Who gets what is decided in ``scheduler``.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field

from launcher.core.batching import Item, LengthQueue
from launcher.core.cost import CostModel, Work
from launcher.core.events import InstanceSpec
from launcher.core.lengths import LengthClass

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


@dataclass(slots=True)
class Batch:
    """A batch that was sent, and what it was predicted to take."""

    id: int
    items: tuple[Item, ...]
    work: Work
    predicted: float


@dataclass(slots=True)
class Group:
    """The instances of a length class and their queue. ``idle`` has those that may take a batch at once, the one that
    has been idle longest first. ``leads`` is a heap of (when the ready batch is to be cut, running batch, instance);
    an entry whose batch is not running any more, or has a ready one behind it, is stale."""

    length_class: LengthClass | None
    queue: LengthQueue
    ready: set[int] = field(default_factory=set)
    idle: dict[int, Instance] = field(default_factory=dict)
    leads: list[tuple[float, int, int]] = field(default_factory=list)


@dataclass(slots=True)
class Instance:
    """Reservations live here and nowhere else: ``batches`` holds the running one and the ready one."""

    spec: InstanceSpec
    group: Group
    cost: CostModel = field(default_factory=CostModel)
    packed: bool = False
    ready: bool = False
    batches: deque[Batch] = field(default_factory=deque)
    started: float = 0.0
    replaced: bool = False

    def finish(self, now: float) -> float:
        """When all that it has is predicted to be done. What is overdue is taken to need as long again."""
        if not self.batches:
            return now
        overdue = max(0.0, now - self.started - self.batches[0].predicted)
        return max(now, self.started + self.batches[0].predicted) + overdue + self._behind()

    def _behind(self) -> float:
        return self.batches[1].predicted if len(self.batches) > 1 else 0.0

    def overdue(self, now: float) -> bool:
        """Whether its running batch takes so much longer than predicted that nothing should wait behind it."""
        return now > self.started + max(OVERDUE_FLOOR, OVERDUE_FACTOR * self.batches[0].predicted)

    def lead_time(self) -> float:
        """When the ready batch is to be cut."""
        predicted = self.batches[0].predicted
        return self.started + predicted - max(LEAD_SECONDS, LEAD_PART * predicted)

    def hang_time(self) -> float:
        """When the running batch counts as hanging."""
        return self.started + max(HANG_FLOOR, HANG_FACTOR * self.batches[0].predicted)
