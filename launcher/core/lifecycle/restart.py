"""The restart policy of both lifecycles: how failures in a row are counted, and how long a restart is delayed."""

from __future__ import annotations

from typing import Protocol


class RestartPolicy(Protocol):
    """What ``options.SuperviseOptions`` says about restarts. Core may not import options, which know files."""

    @property
    def max_failures(self) -> int:
        """After that many failures in a row there is no restart."""

    @property
    def backoff_seconds(self) -> float:
        """The delay after the first failure; it doubles with each further one in a row."""

    @property
    def backoff_limit_seconds(self) -> float:
        """The longest delay."""

    @property
    def settled_seconds(self) -> float:
        """A process that was healthy for so long starts a new series of failures."""


def count_failure(failures: int, healthy_seconds: float | None, policy: RestartPolicy) -> int:
    """The failures in a row, with one more after ``failures``.

    ``healthy_seconds`` is how long the process served or ran before it failed; None: it never did.
    """
    settled = healthy_seconds is not None and healthy_seconds >= policy.settled_seconds
    return 1 if settled else failures + 1


def restart_delay(failures: int, policy: RestartPolicy) -> float:
    """Seconds to wait after that many failures in a row (1 = the first): exponential back-off with a limit."""
    # The exponent is bounded because a float overflows at 2**1024.
    return min(policy.backoff_limit_seconds, policy.backoff_seconds * 2.0 ** min(failures - 1, 64))
