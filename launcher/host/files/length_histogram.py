"""Reads a histogram of lengths from a file; what one is, is decided in ``core.cost.length_histogram``."""

from __future__ import annotations

from pathlib import Path

from launcher.core.cost.length_histogram import Histogram, parse_histogram
from launcher.errors import UsageError

MAX_BYTES = 16 * 1024 * 1024  # a line for each of a million lengths


def read_histogram(path: Path, option: str = "--lengths") -> Histogram:
    """The histogram in a file that was given with ``option``. Raises ``UsageError`` when there is none in it."""
    try:
        with path.open("rb") as file:
            data = file.read(MAX_BYTES + 1)
    except OSError as error:
        raise UsageError(f"{option} {path}: the file cannot be read: {error.strerror or error}") from error
    if len(data) > MAX_BYTES:
        raise UsageError(f"{option} {path}: the file has more than {MAX_BYTES} bytes, so it is no histogram of lengths")
    try:
        return parse_histogram(data.decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        raise UsageError(f"{option} {path}: a UTF-8 text was expected; {error}") from error
    except UsageError as error:
        raise UsageError(f"{option} {path} is no histogram of lengths: {error}") from error
