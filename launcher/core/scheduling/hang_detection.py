"""When a running batch is overdue, what is known of its worker then, and when that makes it a hang.

A batch is overdue when it has taken ``hang_factor`` times its prediction, and at least ``hang_seconds``. That does not
prove a hang: on a loaded machine, a healthy worker is late too, and a new worker would be no faster. An overdue batch
therefore has two consequences. Its items are offered to other instances (``CopyCounts``), so that no client has to wait
until it is clear whether the worker hangs; and the worker's process is inspected. A stopped process, or one that waits
without using CPU time, is replaced at once. One that computes, or that the kernel does not let compute, is slow: it is
inspected again, and replaced only after ``busy_hang_seconds``.

Separate from the scheduler because these rules concern neither queues nor batching. Processes are inspected elsewhere.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from launcher.core.scheduling.batching import Item
from launcher.core.scheduling.events import SchedulerLimits, WorkerActivity

# A worker that uses CPU time gets at least this many times as long as one that does not.
BUSY_FACTOR = 2.0


def overdue_after(predicted: float, limits: SchedulerLimits) -> float:
    """Seconds after its start when a batch is overdue."""
    return max(limits.hang_seconds, limits.hang_factor * predicted)


def hangs_after(predicted: float, limits: SchedulerLimits) -> float:
    """Seconds after its start when a batch counts as hanging whatever its worker does."""
    return max(limits.busy_hang_seconds, BUSY_FACTOR * overdue_after(predicted, limits))


def describe_hang(running: float, predicted: float, activity: WorkerActivity | None = None) -> str:
    """Why a worker is replaced: ``running`` and ``predicted`` are the seconds of its batch."""
    reason = f"a batch has been running for {running:.1f} s; {predicted:.3f} s were predicted"
    if activity is None:
        return reason
    what = "stopped" if activity.state == "stopped" else "waiting without using CPU time"
    return f"{reason}, and the worker is {what}"


class CopyCounts:
    """In how many batches each item is that was offered to a second instance; other items are not counted.

    Empty unless a batch was overdue, so that it costs nothing to ask whether there are any.
    """

    def __init__(self) -> None:
        self._counts: dict[Item, int] = {}

    def __bool__(self) -> bool:
        return bool(self._counts)

    def __contains__(self, item: Item) -> bool:
        return item in self._counts

    def of(self, item: Item) -> int:
        """The number of batches with this item; 0 for an item that was not offered to a second instance."""
        return self._counts.get(item, 0)

    def offered(self, item: Item) -> None:
        """An item of an overdue batch waits for a second instance."""
        self._counts.setdefault(item, 1)

    def sent(self, item: Item) -> None:
        """The item was sent in another batch."""
        if item in self._counts:
            self._counts[item] += 1

    def ended(self, items: Iterable[Item]) -> None:
        """A batch with these items is over, whatever its result."""
        for item in items:
            if item in self._counts:
                self._counts[item] -= 1
                if not self._counts[item]:
                    del self._counts[item]

    def check(self, sent: Sequence[tuple[int, int]]) -> set[tuple[int, int]]:
        """Raise ``AssertionError`` unless the counts match the items (request, index) of all batches; for tests.

        Returns the items that are counted.
        """
        for item, count in self._counts.items():
            found = sent.count((item.request, item.index))
            assert found == count, f"{item} is in {found} batches, not in {count}"
        return {(item.request, item.index) for item in self._counts}
