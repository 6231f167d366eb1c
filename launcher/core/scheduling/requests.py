"""The scheduler's state of the requests: which of their items are waiting, sent or computed, and their deadlines.

Separate from the rules that decide who is served when. Nothing here knows instances.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from heapq import heapify, heappop, heappush

import msgspec

from launcher.core.scheduling.events import Priority

WAITING, SENT, COMPUTED = 0, 1, 2
# The heap of deadlines is purged of finished requests when it exceeds twice the live ones by this many entries.
STALE_DEADLINES = 1000


class Request(msgspec.Struct, gc=False):
    """An admitted request of a client. ``states`` and ``ranks`` (see ``client_queue``) are by item; ``deadline`` is a
    time, or None."""

    lengths: tuple[int, ...]
    ranks: Sequence[float]
    priority: Priority
    arrived: float
    deadline: float | None
    states: bytearray
    remaining: int
    client: str = ""
    attempts: dict[int, int] = {}  # msgspec copies it for each request

    @property
    def has_waiting(self) -> bool:
        """Whether any of its items is waiting."""
        return WAITING in self.states


class Deadlines:
    """The deadlines of requests with waiting items, earliest first.

    A heap with lazy deletion: an entry is stale if its request is gone or has no waiting items, and is dropped when it
    is reached. If items wait again after they were sent, ``add`` must be called again.
    """

    def __init__(self, requests: Mapping[int, Request]) -> None:
        self._requests = requests
        self._heap: list[tuple[float, int]] = []

    def add(self, request_id: int) -> None:
        """Track the deadline of a request, if it has one."""
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
        """A request whose deadline has been reached at ``now``."""
        while self._heap and self._heap[0][0] <= now:
            if self._holds(self._heap[0]):
                return self._heap[0][1]
            heappop(self._heap)
        return None

    def _holds(self, entry: tuple[float, int]) -> bool:
        request = self._requests.get(entry[1])
        return request is not None and request.has_waiting

    def check(self) -> None:
        """Raise ``AssertionError`` unless the deadline of each waiting request is tracked; for tests."""
        tracked = set(self._heap)
        for request_id, request in self._requests.items():
            if request.deadline is not None and request.has_waiting:
                assert (request.deadline, request_id) in tracked, f"the deadline of {request_id} is not tracked"
