"""The restart policy of both lifecycles: how consecutive failures are counted, and how long a restart is delayed."""

from __future__ import annotations

from typing import Protocol


class RestartPolicy(Protocol):
    """The part of ``options.SuperviseOptions`` that concerns restarts. Core must not import options."""

    @property
    def max_failures(self) -> int:
        """After this many consecutive failures there is no restart."""

    @property
    def backoff_seconds(self) -> float:
        """The delay after the first failure; it doubles with each further consecutive failure."""

    @property
    def backoff_limit_seconds(self) -> float:
        """The maximum delay."""

    @property
    def settled_seconds(self) -> float:
        """After a process was healthy for this long, earlier failures no longer count."""


# The system may have what it lacked at any moment, and another attempt costs little.
SHORTAGE_LIMIT_SECONDS = 5.0


def count_failure(failures: int, healthy_seconds: float | None, policy: RestartPolicy) -> int:
    """The number of consecutive failures, after one more than ``failures``.

    ``healthy_seconds`` is how long the process served or ran before it failed; None: it never did.
    """
    settled = healthy_seconds is not None and healthy_seconds >= policy.settled_seconds
    return 1 if settled else failures + 1


def restart_delay(failures: int, policy: RestartPolicy) -> float:
    """Seconds to wait after this many consecutive failures (1 = the first): exponential back-off with a limit."""
    # The exponent is bounded because a float overflows at 2**1024.
    return min(policy.backoff_limit_seconds, policy.backoff_seconds * 2.0 ** min(failures - 1, 64))


def shortage_delay(attempts: int, policy: RestartPolicy) -> float:
    """Seconds to wait after this many consecutive attempts for which the system lacked a resource."""
    return min(SHORTAGE_LIMIT_SECONDS, restart_delay(attempts, policy))
