"""The events that mean the same for a worker of a served instance and for a copy of ``launch run``.

Events whose contents differ (``Exited``, ``StopRequested``) are defined next to each table.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class StartRequested:
    """The process is to be started for the first time."""


@dataclass(frozen=True, slots=True)
class BackoffElapsed:
    """The delay before the next restart is over."""


@dataclass(frozen=True, slots=True)
class Spawned:
    """The process exists."""

    pid: int


@dataclass(frozen=True, slots=True)
class SpawnFailed:
    """The operating system refused to start the process. ``transient``: it lacks a resource at the moment."""

    reason: str
    transient: bool = False


@dataclass(frozen=True, slots=True)
class FailedPermanently:
    """The process cannot do its work here, and a restart would not help."""

    reason: str


@dataclass(frozen=True, slots=True)
class GracePeriodElapsed:
    """The process has not exited within its grace period."""


@dataclass(frozen=True, slots=True)
class KillRequested:
    """The process is to be killed without a grace period, and not restarted."""
