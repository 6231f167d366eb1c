"""Makes the standard streams safe to use: closed, full or abandoned by their reader, they cause no traceback.

Separate because it concerns the process, not a command, and must happen before anything is opened. A descriptor 0, 1 or
2 that is closed would be given to the next file or socket. Only modules that load fast may be imported here.
"""

from __future__ import annotations

import contextlib
import errno
import io
import os
import sys
from typing import Any, TextIO

from launcher.errors import LauncherError

STDIN, STDOUT, STDERR = 0, 1, 2


class OutputError(LauncherError):
    """Standard output cannot be written. ``broken`` is True if its reader has gone, as in ``launch topology | head``:
    nobody waits for a message then."""

    def __init__(self, error: OSError) -> None:
        super().__init__(f"standard output cannot be written: {error.strerror or error}")
        self.broken = error.errno == errno.EPIPE


class _Output(io.FileIO):
    def write(self, data: Any) -> int:
        """Write as the base class does. Raises ``OutputError``."""
        try:
            return super().write(data)
        except OSError as error:
            raise OutputError(error) from error


class _Messages(io.FileIO):
    def write(self, data: Any) -> int:
        """Write as the base class does, or discard: there is no other place to report that to."""
        with contextlib.suppress(OSError):
            return super().write(data)
        return len(data)


def set_up() -> None:
    """Open what is closed, and replace ``sys.stdout`` and ``sys.stderr`` unless something else has replaced them.

    Writing to a standard output that was closed raises ``OutputError``, standard error discards what it cannot write.
    Characters that the encoding lacks are escaped.
    """
    for descriptor in (STDIN, STDOUT, STDERR):
        try:
            os.fstat(descriptor)
        except OSError:
            # The lowest free descriptor is this one. Output that was closed must not appear to be written.
            os.open(os.devnull, os.O_WRONLY if descriptor == STDERR else os.O_RDONLY)
            os.set_inheritable(descriptor, True)
    if sys.stdout is sys.__stdout__:
        sys.stdout = _text(_Output(STDOUT, "w", closefd=False), sys.stdout, lines=os.isatty(STDOUT))
    if sys.stderr is sys.__stderr__:
        sys.stderr = _text(_Messages(STDERR, "w", closefd=False), sys.stderr, lines=True)


def _text(raw: io.FileIO, replaced: TextIO | None, *, lines: bool) -> TextIO:
    encoding = "utf-8" if replaced is None else replaced.encoding
    return io.TextIOWrapper(io.BufferedWriter(raw), encoding, errors="backslashreplace", line_buffering=lines)


def flush_output() -> None:
    """Write what is buffered for standard output. Raises ``OutputError``."""
    if sys.stdout is not None:
        sys.stdout.flush()


def discard_output() -> None:
    """Discard what is buffered for standard output, and what follows, because it cannot be written."""
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, STDOUT)
    os.close(null)
