"""What the scheduler is told and what it answers: events in the past tense, actions as commands.

Separate from the rules so that those who feed and obey the scheduler need to know nothing of how it decides. One or
more of them are made for each item: a frozen struct takes a fifth of the time that a frozen dataclass takes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import msgspec

from launcher.core.cost.model import Measurement
from launcher.core.planning.length_classes import LengthClass
from launcher.core.scheduling.batching import Item

Priority = Literal["interactive", "bulk"]
PRIORITIES: tuple[Priority, ...] = ("interactive", "bulk")


class Arrived(msgspec.Struct, frozen=True, gc=False):
    """A request came in; ``lengths`` are its items' lengths in tokens, in the order of the request.

    ``deadline`` is a time on the scheduler's clock after which nobody needs the answer.
    """

    request: int
    lengths: tuple[int, ...]
    priority: Priority = "interactive"
    deadline: float | None = None


class Cancelled(msgspec.Struct, frozen=True, gc=False):
    """The client of this request is gone, or nobody waits for it any more."""

    request: int


class InstanceReady(msgspec.Struct, frozen=True, gc=False):
    """An instance has a warm worker that takes batches; ``measured`` is what it was timed with, and ``packed`` says
    whether it computes items one behind the other, without padding."""

    instance: int
    measured: tuple[Measurement, ...] = ()
    packed: bool = False


class InstanceLost(msgspec.Struct, frozen=True, gc=False):
    """The worker of this instance is gone, with what it was running."""

    instance: int


class BatchDone(msgspec.Struct, frozen=True, gc=False):
    """A worker has computed a batch in ``seconds``."""

    instance: int
    batch: int
    seconds: float


class BatchFailed(msgspec.Struct, frozen=True, gc=False):
    """A worker raised on a batch, and lives on."""

    instance: int
    batch: int
    reason: str


class AllGone(msgspec.Struct, frozen=True, gc=False):
    """No instance is left and none will come back: whatever waits is answered with an error."""

    reason: str


class DrainStarted(msgspec.Struct, frozen=True, gc=False):
    """No more requests are admitted; what is here is finished."""


class Send(msgspec.Struct, frozen=True, gc=False):
    """Send these items to this instance as one batch, longest first; it is predicted to take so many seconds."""

    instance: int
    batch: int
    items: tuple[Item, ...]
    predicted: float


class Reject(msgspec.Struct, frozen=True, gc=False):
    """Answer this request with an error; none of its items is computed any more."""

    request: int
    status: int
    code: str
    reason: str
    retry_after: float | None = None


class Finish(msgspec.Struct, frozen=True, gc=False):
    """All items of this request are computed."""

    request: int


class Replace(msgspec.Struct, frozen=True, gc=False):
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
    """``queue_items``: the most items that wait or run. ``batch_tokens``: the budget of a batch, padding counted.

    ``first_come`` makes batches of so many items in the order in which they came, whatever their lengths and without
    a budget: for comparison.
    """

    queue_items: int
    batch_tokens: int
    first_come: int | None = None
