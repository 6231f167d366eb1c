"""The exception hierarchy, by who must act.

Each message states what was requested, what was found, and what would work. Nothing else belongs here: no logging, no
formatting of tracebacks.
"""

from __future__ import annotations


class LauncherError(Exception):
    """Base class of all errors that this program raises."""

    exit_code = 1


class UsageError(LauncherError):
    """The request is invalid or contradictory; the user must change it."""

    exit_code = 2


class ChangeInProgressError(UsageError):
    """The instances are being replaced already; only one change runs at a time."""


class ModelAbsentError(UsageError):
    """The model is not on this machine. A server cannot start without it; a report can be made."""


class MachineError(LauncherError):
    """The machine cannot satisfy the request; use another machine or request less."""

    exit_code = 3


class InstanceError(LauncherError):
    """An instance could not be started, or was lost permanently."""


class ResourceShortageError(InstanceError):
    """The operating system lacks descriptors, memory or processes at the moment; the same start may succeed later."""


class ModelRefusedError(UsageError, InstanceError):
    """The workers found when they loaded the model that it cannot be served; a restart would not help."""


class RequestError(LauncherError):
    """One request cannot be served; the server keeps running.

    ``status`` is the HTTP status of the reply, ``retry_after`` (seconds) the value of the Retry-After header, ``code``
    a short stable identifier for programs (``"too_long"``), ``param`` the offending field.
    """

    def __init__(
        self,
        message: str,
        *,
        status: int = 400,
        code: str = "invalid_request",
        param: str | None = None,
        retry_after: float | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.code = code
        self.param = param
        self.retry_after = retry_after
