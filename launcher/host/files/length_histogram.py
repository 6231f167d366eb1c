"""Reads a length histogram from a file; ``core.cost.length_histogram`` parses it."""

from __future__ import annotations

from pathlib import Path

from launcher.core.cost.length_histogram import Histogram, parse_histogram
from launcher.errors import UsageError

MAX_BYTES = 16 * 1024 * 1024  # enough for a line for each of a million lengths


def read_histogram(path: Path, option: str = "--lengths") -> Histogram:
    """The histogram in a file that was given with ``option``. Raises ``UsageError`` if it cannot be read or parsed."""
    try:
        with path.open("rb") as file:
            data = file.read(MAX_BYTES + 1)
    except OSError as error:
        raise UsageError(f"{option} {path}: the file cannot be read: {error.strerror or error}") from error
    if len(data) > MAX_BYTES:
        raise UsageError(f"{option} {path}: the file has more than {MAX_BYTES} bytes, so it is not a length histogram")
    try:
        return parse_histogram(data.decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        raise UsageError(f"{option} {path}: the file must be UTF-8 text: {error}") from error
    except UsageError as error:
        raise UsageError(f"{option} {path} is not a length histogram: {error}") from error
