"""Brings the output of several programs to our own outputs and to log files: whole lines, each with its instance.

Bytes all the way: what a program writes in another encoding arrives as it was. Writing happens in threads, because
whoever reads our output may be slow, and then only the programs that write wait. Lines for the log are no matter of
this module; they go through ``host.log``.
"""

from __future__ import annotations

import errno
import os
import select
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

import anyio
import anyio.to_thread

from launcher.errors import UsageError

LINE_BYTES = 64 * 1024  # a longer line is shown in pieces, so that a program cannot fill our memory


class LineCutter:
    """Cuts a stream of bytes into pieces that are whole lines with their ends, as they came."""

    def __init__(self) -> None:
        self._rest = b""

    def feed(self, data: bytes) -> list[bytes]:
        """The lines that ``data`` completes. What ends with ``\\r`` waits for one byte more: it may be ``\\r\\n``."""
        # A carriage return ends a line as well: progress bars write nothing else.
        lines = (self._rest + data).splitlines(keepends=True)
        self._rest = b"" if not lines or lines[-1].endswith(b"\n") else lines.pop()
        while len(self._rest) > LINE_BYTES:
            lines.append(self._rest[:LINE_BYTES])
            self._rest = self._rest[LINE_BYTES:]
        return lines

    def end(self) -> list[bytes]:
        """What is left when the stream ends without the end of a line."""
        rest, self._rest = self._rest, b""
        return [rest] if rest else []


class Output:
    """One of our own outputs. `write` returns when everything is written; two writes never mix."""

    def __init__(self, descriptor: int, on_closed: Callable[[], None]) -> None:
        self._descriptor = descriptor
        self._on_closed = on_closed
        self._lock = anyio.Lock()
        self._closed = False

    async def write(self, data: bytes) -> None:
        """Write it all, or, when nobody reads any more, say so once and drop it."""
        async with self._lock:
            if self._closed or not data:
                return
            # Abandoned when all has to end: whoever does not read must not keep us.
            written = await anyio.to_thread.run_sync(_write_all, self._descriptor, data, abandon_on_cancel=True)
            if not written and not self._closed:
                self._closed = True
                self._on_closed()


def _write_all(descriptor: int, data: bytes) -> bool:
    """Whether all was written; False when the other side is closed, or the terminal is gone."""
    view = memoryview(data)
    while view:
        try:
            view = view[os.write(descriptor, view) :]
        except BlockingIOError:  # a terminal that somebody else has made non-blocking
            select.select([], [descriptor], [])
        except OSError as error:
            if error.errno in (errno.EPIPE, errno.EIO):
                return False
            raise
    return True


class Relay:
    """Where the output of one instance goes: prefixed lines (or plain bytes, for a single instance) and its log file.

    ``prefix`` None passes bytes on as they come, so that a prompt without the end of a line is seen.
    """

    def __init__(self, prefix: bytes | None, outputs: tuple[Output, Output] | None, file: BinaryIO | None) -> None:
        self._prefix = prefix
        self._outputs = outputs
        self._file = file
        self._cutters = (LineCutter(), LineCutter())

    async def feed(self, stream: int, data: bytes) -> None:
        """``data`` came from stream 0 (standard output) or 1 (standard error)."""
        await self._pass_on(stream, self._cutters[stream].feed(data), data)

    async def end(self, stream: int) -> None:
        """The stream has ended."""
        await self._pass_on(stream, self._cutters[stream].end(), b"")

    async def _pass_on(self, stream: int, lines: list[bytes], data: bytes) -> None:
        if self._file is not None:
            self._file.write(b"".join(lines))  # unbuffered, and by lines: the two streams share the file
        if self._outputs is not None:
            prefix = self._prefix
            shown = data if prefix is None else b"".join(_shown(prefix, line) for line in lines)
            await self._outputs[stream].write(shown)


def _shown(prefix: bytes, line: bytes) -> bytes:
    return prefix + line.rstrip(b"\r\n") + b"\n"


def open_log(folder: Path, instance: int) -> BinaryIO:
    """The log file of the instance in ``folder``, empty and unbuffered. Raises ``UsageError``."""
    path = folder / f"instance-{instance}.log"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        return path.open("wb", buffering=0)
    except OSError as error:
        raise UsageError(f"--log-dir {folder}: {path} cannot be written: {error.strerror or error}") from error
