"""Decides which item goes to which instance, when, and with which others: events in, actions out.

The dispatcher feeds events and carries out the actions; there is no clock and no I/O in here.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Arrived:
    """A request came in; ``lengths`` are its items' lengths in tokens, in the order of the request."""

    request: int
    lengths: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Cancelled:
    """The client of this request is gone, or nobody waits for it any more."""

    request: int


@dataclass(frozen=True, slots=True)
class InstanceReady:
    """An instance has a warm worker that takes batches."""

    instance: int


@dataclass(frozen=True, slots=True)
class InstanceLost:
    """The worker of this instance is gone, with what it was running."""

    instance: int


@dataclass(frozen=True, slots=True)
class BatchDone:
    """A worker has computed a batch in ``seconds``."""

    instance: int
    batch: int
    seconds: float


@dataclass(frozen=True, slots=True)
class BatchFailed:
    """A worker raised on a batch, and lives on."""

    instance: int
    batch: int
    reason: str


@dataclass(frozen=True, slots=True)
class DrainStarted:
    """No more requests are admitted; what is here is finished."""


@dataclass(frozen=True, slots=True)
class Item:
    """One sequence: item ``index`` of ``request``, ``length`` tokens long."""

    request: int
    index: int
    length: int


@dataclass(frozen=True, slots=True)
class Send:
    """Send these items to this instance as one batch, longest first."""

    instance: int
    batch: int
    items: tuple[Item, ...]


@dataclass(frozen=True, slots=True)
class Reject:
    """Answer this request with an error; none of its items is computed any more."""

    request: int
    status: int
    code: str
    reason: str
    retry_after: float | None = None


@dataclass(frozen=True, slots=True)
class Finish:
    """All items of this request are computed."""

    request: int


Event = Arrived | Cancelled | InstanceReady | InstanceLost | BatchDone | BatchFailed | DrainStarted
Action = Send | Reject | Finish
