"""The exception tree, sorted by who must act.

Every message says what was asked, what was found and what would work. Nothing else belongs here: no
logging, no formatting of tracebacks.
"""

from __future__ import annotations


class LauncherError(Exception):
    """Root of every error that this program raises on purpose."""

    exit_code = 1


class UsageError(LauncherError):
    """The user asked for something that makes no sense; asking differently helps."""

    exit_code = 2


class MachineError(LauncherError):
    """The machine cannot do what was asked; another machine or a smaller wish helps."""

    exit_code = 3


class InstanceError(LauncherError):
    """An instance could not be started, or was lost for good."""


class RequestError(LauncherError):
    """One request cannot be served; the server is unharmed.

    ``status`` is the HTTP status to answer with, ``retry_after`` (seconds) goes into the header of that
    name, ``code`` is a short stable word for programs (``"too_long"``), ``param`` names the offending field.
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
