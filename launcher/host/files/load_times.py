"""Stores how long workers took to load a model, next to the cost tables.

Separate from these because the times hold for any number of cores. What follows from them is decided in
``core.lifecycle.start_limit``.
"""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

import msgspec

from launcher.core.cost.cost_table import CostKey, file_stem
from launcher.errors import UsageError


def load_times_path(folder: Path, key: CostKey) -> Path:
    """The file for the model and the settings of ``key``."""
    return folder / f"{file_stem(key)}.load-times"


def read_load_times(path: Path) -> tuple[float, ...]:
    """Seconds, the latest last; empty if there is no file. Raises ``UsageError`` if it cannot be used."""
    try:
        found = msgspec.json.decode(path.read_bytes(), type=tuple[float, ...])
    except FileNotFoundError:
        return ()
    except OSError as error:
        raise UsageError(f"{path} cannot be read: {error.strerror}") from error
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise UsageError(f"{path} is damaged: {error}") from error
    if not all(0 < seconds < 1e6 for seconds in found):
        raise UsageError(f"{path} is damaged: the times {found} are impossible")
    return found


def write_load_times(path: Path, seconds: tuple[float, ...]) -> None:
    """Write the file atomically. Raises ``UsageError`` if it cannot be written."""
    temporary = path.with_name(f".{path.name}-{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            temporary.write_bytes(msgspec.json.encode(seconds))
            temporary.replace(path)
        finally:
            with contextlib.suppress(FileNotFoundError):
                temporary.unlink()
    except OSError as error:
        raise UsageError(f"{path} cannot be written: {error.strerror}") from error
