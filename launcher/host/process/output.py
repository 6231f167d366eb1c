"""Relays the output of several programs to the launcher's own outputs and to log files, line by line.

Output stays bytes: nothing is decoded, so any encoding passes unchanged. Writes happen in threads, so that a slow
reader blocks only the programs that write. The launcher's own log does not pass through here but through ``host.log``.
"""

from __future__ import annotations

import errno
import logging
import os
import select
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

import anyio
import anyio.to_thread

from launcher.errors import UsageError

log = logging.getLogger("launcher.run")

STDERR = 2
# The reader of a pipe or terminal is gone.
CLOSED = frozenset({errno.EPIPE, errno.EIO})

LINE_BYTES = 64 * 1024  # a longer line is split, so that a program cannot fill the launcher's memory


class LineSplitter:
    """Splits a stream of bytes into lines, terminators included. A line over ``limit`` bytes is returned in pieces."""

    def __init__(self, limit: int = LINE_BYTES) -> None:
        self._limit = limit
        self._rest = b""

    def feed(self, data: bytes) -> list[bytes]:
        """The lines that ``data`` completes. A final ``\\r`` waits for the next byte, since it may begin ``\\r\\n``."""
        # A carriage return ends a line, too: progress bars write no other terminator.
        lines = (self._rest + data).splitlines(keepends=True)
        self._rest = b"" if not lines or lines[-1].endswith(b"\n") else lines.pop()
        *pieces, self._rest = self._pieces(self._rest)
        return [*(piece for line in lines for piece in self._pieces(line)), *pieces]

    def end(self) -> list[bytes]:
        """The rest of a stream that ends without a line terminator."""
        rest, self._rest = self._rest, b""
        return [rest] if rest else []

    def _pieces(self, line: bytes) -> list[bytes]:
        return [line[start : start + self._limit] for start in range(0, max(len(line), 1), self._limit)]


class Output:
    """One of the launcher's own outputs. `write` returns when everything is written; writes never interleave."""

    def __init__(self, descriptor: int, on_closed: Callable[[], None]) -> None:
        self._descriptor = descriptor
        self._on_closed = on_closed
        self._lock = anyio.Lock()
        self._closed = False
        self._full = False

    async def write(self, data: bytes) -> None:
        """Write all of ``data``. When the output is closed, report that once and discard the data. What a full disk
        does not accept is discarded, too, and logged once."""
        async with self._lock:
            if self._closed or not data:
                return
            # The thread is abandoned on cancellation: a reader that does not read must not delay the exit.
            error = await anyio.to_thread.run_sync(_write_all, self._descriptor, data, abandon_on_cancel=True)
            if error is not None and error.errno in CLOSED and not self._closed:
                self._closed = True
                self._on_closed()
            elif error is not None and error.errno not in CLOSED and not self._full:
                self._full = True
                _warn_of_loss("standard error" if self._descriptor == STDERR else "standard output", error)


def _write_all(descriptor: int, data: bytes) -> OSError | None:
    """Write all of the data; returns the error that prevented it, if any."""
    view = memoryview(data)
    while view:
        try:
            view = view[os.write(descriptor, view) :]
        except BlockingIOError:  # a terminal that another process has made non-blocking
            select.select([], [descriptor], [])
        except OSError as error:
            return error
    return None


def _warn_of_loss(where: str, error: OSError) -> None:
    message = "output of the programs is lost, because %s cannot be written: %s"
    log.warning(message, where, error.strerror or error, extra={"event": "output_lost"})


class Relay:
    """The destinations of one instance's output: the launcher's outputs and its log file.

    Lines are prefixed with ``prefix``. None, for a single instance, relays the bytes as they arrive, so that a prompt
    without a line terminator is shown.
    """

    def __init__(self, prefix: bytes | None, outputs: tuple[Output, Output] | None, file: BinaryIO | None) -> None:
        self._prefix = prefix
        self._outputs = outputs
        self._file = file
        self._file_full = False
        self._splitters = (LineSplitter(), LineSplitter())

    async def feed(self, stream: int, data: bytes) -> None:
        """Relay what was read from stream 0 (standard output) or 1 (standard error)."""
        await self._relay(stream, self._splitters[stream].feed(data), data)

    async def end(self, stream: int) -> None:
        """The stream has ended."""
        await self._relay(stream, self._splitters[stream].end(), b"")

    async def _relay(self, stream: int, lines: list[bytes], data: bytes) -> None:
        if self._file is not None and lines:
            # Unbuffered whole lines, because both streams share the file.
            error = _write_all(self._file.fileno(), b"".join(lines))
            if error is not None and not self._file_full:
                self._file_full = True
                _warn_of_loss(str(self._file.name), error)
        if self._outputs is not None:
            prefix = self._prefix
            shown = data if prefix is None else b"".join(_prefixed(prefix, line) for line in lines)
            await self._outputs[stream].write(shown)


def _prefixed(prefix: bytes, line: bytes) -> bytes:
    return prefix + line.rstrip(b"\r\n") + b"\n"


def open_log(folder: Path, instance: int) -> BinaryIO:
    """The log file of the instance in ``folder``, empty and unbuffered. Raises ``UsageError``."""
    path = folder / f"instance-{instance}.log"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        return path.open("wb", buffering=0)
    except OSError as error:
        raise UsageError(f"--log-dir {folder}: {path} cannot be written: {error.strerror or error}") from error
