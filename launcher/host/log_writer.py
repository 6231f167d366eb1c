"""Writes log lines to a descriptor in a thread of its own, so that no caller ever waits for the reader of the log.

Separate from ``host.log``, which formats records. The queue is bounded: while the descriptor accepts nothing (a pipe
that is not read, a full disk, a reader that is gone), further lines are dropped and counted, and the count is written
as soon as writing is possible again. The order of lines is kept. What a line contains does not matter here.
"""

from __future__ import annotations

import os
import select
import threading
from collections import deque
from collections.abc import Callable
from typing import NamedTuple

QUEUE_BYTES = 1024 * 1024
# Lines that are written with one system call, as long as they are queued.
WRITE_BYTES = 64 * 1024


class _Entry(NamedTuple):
    """A line; one that reports dropped lines has their number."""

    data: bytes
    reported: int = 0


class LogWriter:
    """Writes lines to ``descriptor``. ``describe_dropped`` returns the line that reports a number of dropped lines."""

    def __init__(self, descriptor: int, describe_dropped: Callable[[int], str]) -> None:
        self._descriptor = descriptor
        self._describe_dropped = describe_dropped
        self._lines: deque[_Entry] = deque()
        self._queued_bytes = 0
        self._unreported = 0
        self._dropped = 0
        self._writing = False
        self._closed = False
        self._cut = False
        self._changed = threading.Condition()
        # A daemon: a thread that is blocked by a pipe must not delay the end of the process.
        self._thread = threading.Thread(target=self._run, name="log writer", daemon=True)
        self._thread.start()

    @property
    def dropped(self) -> int:
        """The number of lines dropped so far."""
        return self._dropped

    def put(self, line: str) -> None:
        """Queue a line, which may contain further lines; a terminator is added. Drops it if the queue is full."""
        data = _encode(line)
        with self._changed:
            if self._queued_bytes + len(data) > QUEUE_BYTES or self._closed:
                self._drop(_Entry(data))
                return
            self._report_dropped()
            self._append(_Entry(data))
            self._changed.notify_all()

    def flush(self, seconds: float) -> bool:
        """Wait until all lines are written, at most ``seconds``; returns whether they are."""
        with self._changed:
            return self._changed.wait_for(lambda: not self._lines and not self._writing, seconds)

    def close(self, seconds: float) -> None:
        """Flush as ``flush`` does, and end the thread."""
        self.flush(seconds)
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    def _append(self, entry: _Entry) -> None:
        self._lines.append(entry)
        self._queued_bytes += len(entry.data)

    def _drop(self, entry: _Entry) -> None:
        self._dropped += not entry.reported
        self._unreported += entry.reported or 1

    def _report_dropped(self) -> None:
        """Queue the report of dropped lines at their place in the order of lines."""
        if self._unreported:
            self._append(_Entry(_encode(self._describe_dropped(self._unreported)), self._unreported))
            self._unreported = 0

    def _run(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._lines or self._closed)
                if not self._lines:
                    return
                batch = self._take()
                self._writing = True
            written = self._write(batch)
            with self._changed:
                self._writing = False
                self._queued_bytes -= sum(len(entry.data) for entry in batch)
                for entry in batch[written:]:
                    self._drop(entry)
                # After a failure, the report waits for the next line: an immediate one would fail as well.
                if written and not self._lines:
                    self._report_dropped()
                self._changed.notify_all()

    def _take(self) -> list[_Entry]:
        batch = [self._lines.popleft()]
        size = len(batch[0].data)
        while self._lines and size + len(self._lines[0].data) <= WRITE_BYTES:
            batch.append(self._lines.popleft())
            size += len(batch[-1].data)
        return batch

    def _write(self, batch: list[_Entry]) -> int:
        """Write the lines; returns how many of them were written completely."""
        separator = b"\n" if self._cut else b""
        left = self._write_bytes(separator + b"".join(entry.data for entry in batch)) - len(separator)
        self._cut = self._cut and left < 0
        for count, entry in enumerate(batch):
            if left < len(entry.data):
                self._cut = self._cut or left > 0  # the next line must not continue this one
                return count
            left -= len(entry.data)
        return len(batch)

    def _write_bytes(self, data: bytes) -> int:
        view = memoryview(data)
        while view:
            try:
                view = view[os.write(self._descriptor, view) :]
            except BlockingIOError:  # another process has made the terminal or pipe non-blocking
                select.select([], [self._descriptor], [])
            except OSError:
                break
        return len(data) - len(view)


def _encode(line: str) -> bytes:
    # A lone surrogate becomes \udcff, which is also its form in JSON.
    return (line + "\n").encode("utf-8", "backslashreplace")
