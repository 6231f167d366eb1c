"""The scheduler's records of requests: which of their items wait, are sent or are computed, and their deadlines.

Separate from the rules of who is served when. Nothing in here looks at instances.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from heapq import heapify, heappop, heappush

import msgspec

from launcher.core.scheduling.events import Priority

WAITING, SENT, COMPUTED = 0, 1, 2
# The heap of deadlines is cleaned of requests that are gone when it is this much longer than those that are here.
STALE_DEADLINES = 1000


class Request(msgspec.Struct, gc=False):
    """One that is admitted. ``states`` and ``ranks`` (times) are by item; ``deadline`` is a time, or None."""

    lengths: tuple[int, ...]
    ranks: Sequence[float]
    priority: Priority
    arrived: float
    deadline: float | None
    states: bytearray
    remaining: int
    attempts: dict[int, int] = {}  # each has its own

    @property
    def waits(self) -> bool:
        """Whether any of its items waits."""
        return WAITING in self.states


class Deadlines:
    """The deadlines of requests that have items waiting, the earliest first.

    A heap with lazy deletion: the entry of a request that is gone, or has nothing waiting, is stale and dropped when
    it comes up. Items that wait again after they were sent need ``add`` again.
    """

    def __init__(self, requests: Mapping[int, Request]) -> None:
        self._requests = requests
        self._heap: list[tuple[float, int]] = []

    def add(self, request_id: int) -> None:
        """Watch the deadline of a request, if it has one."""
        deadline = self._requests[request_id].deadline
        if deadline is None:
            return
        if len(self._heap) > 2 * len(self._requests) + STALE_DEADLINES:
            self._heap = list({entry for entry in self._heap if self._holds(entry)})
            heapify(self._heap)
        heappush(self._heap, (deadline, request_id))

    def next(self) -> tuple[float, int] | None:
        """The earliest deadline and its request."""
        while self._heap:
            if self._holds(self._heap[0]):
                return self._heap[0]
            heappop(self._heap)
        return None

    def passed(self, now: float) -> int | None:
        """A request whose deadline is not later than ``now``."""
        while self._heap and self._heap[0][0] <= now:
            if self._holds(self._heap[0]):
                return self._heap[0][1]
            heappop(self._heap)
        return None

    def _holds(self, entry: tuple[float, int]) -> bool:
        request = self._requests.get(entry[1])
        return request is not None and request.waits

    def check(self) -> None:
        """Raise ``AssertionError`` unless each deadline that matters is watched; for tests."""
        watched = set(self._heap)
        for request_id, request in self._requests.items():
            if request.deadline is not None and request.waits:
                assert (request.deadline, request_id) in watched, f"nobody watches the deadline of {request_id}"
