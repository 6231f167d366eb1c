"""Decides whether requests are admitted, from the memory that is left under the limit of the control group.

Separate from ``admission``, which knows the queue: a process that exceeds its limit is killed by the kernel with all
its requests, so new ones are refused while those that were admitted are finished. Nothing is read here.
"""

from __future__ import annotations

MIB = 1024 * 1024

# The reserve if none is given: this share of the limit, within these bounds.
AUTO_SHARE = 0.05
AUTO_BYTES = (32 * MIB, 512 * MIB)
# Opens again when this many times the reserve is left, so that it does not alternate with each request.
OPENING_FACTOR = 1.5


class MemoryGate:
    """``reason`` is why requests are refused, or None. ``reserve`` is in bytes; None derives it from the limit.

    A derived reserve is at most half of what is left when the server becomes ready: a server that fits its limit
    barely must not be closed for good. Until then, the gate is open. The same holds for other instances, and for a
    limit that changes later.
    """

    def __init__(self, reserve: int | None = None) -> None:
        self.reason: str | None = None
        self._asked = reserve
        self._ready = False
        self._used_when_ready: int | None = None  # None: unknown, because there was no limit

    def became_ready(self, limit: int | None, used: int) -> None:
        """The server is ready, with this use of its memory; only the first call counts, until ``instances_changed``."""
        self._ready = True
        if self._used_when_ready is None and limit is not None:
            self._used_when_ready = used

    def instances_changed(self, limit: int | None, used: int) -> None:
        """Another number of instances is ready, with this use of the memory."""
        self._used_when_ready = None
        self.became_ready(limit, used)

    def update(self, limit: int | None, used: int) -> bool:
        """Decide again, for this limit (None: there is none) and use in bytes; returns whether the decision changed."""
        if self._ready and self._used_when_ready is None and limit is not None:  # the limit is new
            self._used_when_ready = used
        closed = self.reason is not None
        reserve = 0 if limit is None else self._reserve(limit)
        if limit is None or limit - used >= reserve * (OPENING_FACTOR if closed else 1):
            self.reason = None
            return closed
        if not closed:
            self.reason = (
                f"memory is short: {used // MIB} MiB of {limit // MIB} MiB are used, and {-(-reserve // MIB)} MiB are "
                "kept free (--memory-reserve); retry later"
            )
        return not closed

    def _reserve(self, limit: int) -> int:
        if self._asked is not None:
            return self._asked
        if self._used_when_ready is None:
            return 0
        left = max(0, limit - self._used_when_ready)
        low, high = AUTO_BYTES
        return min(max(low, min(high, int(limit * AUTO_SHARE))), left // 2)
