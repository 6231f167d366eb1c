"""The scheduler's input and output: events, in the past tense, and actions, in the imperative.

Separate from the rules so that the code that feeds events and carries out actions does not depend on how the scheduler
decides. At least one is created per item: a frozen struct takes a fifth of the time of a frozen dataclass.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import msgspec

from launcher.core.cost.cost_model import Measurement
from launcher.core.planning.length_classes import LengthClass
from launcher.core.scheduling.batching import Item

Priority = Literal["interactive", "bulk"]
ActivityState = Literal["stopped", "inactive", "active"]
PRIORITIES: tuple[Priority, ...] = ("interactive", "bulk")


@dataclass(frozen=True, slots=True)
class InstanceSpec:
    """An instance as the scheduler sees it; ``length_class`` None serves every length."""

    id: int
    threads: int
    length_class: LengthClass | None = None


class Arrived(msgspec.Struct, frozen=True, gc=False):
    """A request arrived; ``lengths`` are the lengths of its items in tokens, in the order of the request.

    ``deadline`` is a time on the scheduler's clock after which the result is no longer needed. ``client`` is who shares
    the instances with others; the empty name is for a program that has the queue to itself. ``suspects`` are the
    indices of items with which a worker was lost in an earlier request: they are sent alone, for a last attempt.
    """

    request: int
    lengths: tuple[int, ...]
    priority: Priority = "interactive"
    deadline: float | None = None
    client: str = ""
    suspects: tuple[int, ...] = ()


class Cancelled(msgspec.Struct, frozen=True, gc=False):
    """The client of this request disconnected, or its result is no longer needed."""

    request: int


class InstanceReady(msgspec.Struct, frozen=True, gc=False):
    """An instance has a warmed-up worker that accepts batches; ``measured`` holds the timings of its warm-up,
    ``packed`` says whether it computes items concatenated, without padding.
    """

    instance: int
    measured: tuple[Measurement, ...] = ()
    packed: bool = False


class InstanceLost(msgspec.Struct, frozen=True, gc=False):
    """The worker of this instance is gone, together with its running batch.

    ``dropped`` are requests that were answered because of that; nothing more is computed for them.
    """

    instance: int
    dropped: tuple[int, ...] = ()


class InstanceAdded(msgspec.Struct, frozen=True, gc=False):
    """A change has added this instance; it gets batches after ``InstanceReady``."""

    spec: InstanceSpec


class InstanceRetiring(msgspec.Struct, frozen=True, gc=False):
    """A change will stop this instance: it finishes the batches that it has and gets no others."""

    instance: int


class InstanceRemoved(msgspec.Struct, frozen=True, gc=False):
    """This instance is gone and will not return. A batch that it had is computed by another one."""

    instance: int


class ChangeStarted(msgspec.Struct, frozen=True, gc=False):
    """Instances are about to be replaced: until ``ChangeEnded``, requests are admitted even if none is ready."""


class ChangeEnded(msgspec.Struct, frozen=True, gc=False):
    """No more instances are replaced."""


class BatchDone(msgspec.Struct, frozen=True, gc=False):
    """A worker computed a batch in ``seconds``."""

    instance: int
    batch: int
    seconds: float


class BatchFailed(msgspec.Struct, frozen=True, gc=False):
    """A worker raised an exception on a batch and keeps running."""

    instance: int
    batch: int
    reason: str


class WorkerActivity(msgspec.Struct, frozen=True, gc=False):
    """What the worker with an overdue batch does, in response to ``InspectWorker``: it is ``stopped`` (by a signal or a
    debugger), ``inactive`` (it waits, and uses no CPU time), or ``active`` (anything else)."""

    instance: int
    batch: int
    state: ActivityState


class ProbeRequested(msgspec.Struct, frozen=True, gc=False):
    """An idle instance is to show that it computes: it gets a batch without items."""

    instance: int


class NoInstancesLeft(msgspec.Struct, frozen=True, gc=False):
    """No instance is left and none will be restarted: all waiting requests are rejected."""

    reason: str


class DrainStarted(msgspec.Struct, frozen=True, gc=False):
    """No more requests are admitted; those already admitted are finished."""


class Send(msgspec.Struct, frozen=True, gc=False):
    """Send these items to this instance as one batch, longest first; ``predicted`` is its duration in seconds.

    A batch without items is a probe: the worker computes a sample of its own.
    """

    instance: int
    batch: int
    items: tuple[Item, ...]
    predicted: float


class Reject(msgspec.Struct, frozen=True, gc=False):
    """Answer this request with an error; none of its remaining items is computed."""

    request: int
    status: int
    code: str
    reason: str
    retry_after: float | None = None


class Finish(msgspec.Struct, frozen=True, gc=False):
    """All items of this request are computed: answer it."""

    request: int


class ReplaceWorker(msgspec.Struct, frozen=True, gc=False):
    """This instance hangs: end its worker, and report the loss with ``InstanceLost``."""

    instance: int
    reason: str


InstanceChange = InstanceAdded | InstanceRetiring | InstanceRemoved | ChangeStarted | ChangeEnded


class InspectWorker(msgspec.Struct, frozen=True, gc=False):
    """The batch of this instance is overdue: report what its process does with ``WorkerActivity``."""

    instance: int
    batch: int


Event = (
    Arrived
    | Cancelled
    | InstanceReady
    | InstanceLost
    | BatchDone
    | BatchFailed
    | WorkerActivity
    | ProbeRequested
    | NoInstancesLeft
    | DrainStarted
    | InstanceChange
)
Action = Send | Reject | Finish | ReplaceWorker | InspectWorker


@dataclass(frozen=True, slots=True)
class SchedulerLimits:
    """``queue_items``: the maximum number of queued and running items of a client, less half of those of others.
    ``queue_seconds``: the same for the predicted seconds of its queued work. ``batch_tokens``: the token budget of a
    batch, including padding. ``interactive_share``: the share of the queue that is reserved for interactive items, so
    that a queue full of bulk cannot shut them out. ``bulk_batch_seconds``: the predicted duration of the longest bulk
    batch, which is how long an interactive item may have to wait for it; short batches spend relatively more on their
    overhead (about 2 ms).

    A batch is overdue when it takes ``hang_factor`` times its prediction, and at least ``hang_seconds``. It counts as a
    hang then if its worker uses no CPU time, and otherwise after ``busy_hang_seconds`` (``hang_detection``).
    ``max_attempts``: the number of workers that an item is sent to before it fails.

    ``fifo_items`` makes FIFO batches of that many items, whatever their lengths and without a budget: for comparison.
    """

    queue_items: int
    queue_seconds: float
    batch_tokens: int
    interactive_share: float
    bulk_batch_seconds: float
    hang_factor: float
    hang_seconds: float
    busy_hang_seconds: float
    max_attempts: int
    fifo_items: int | None = None
