"""Reads the JSON files of a model folder, and creates the errors about one model.

Separate from ``folder`` because every reader of a model folder needs both. What the files mean is decided elsewhere.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from launcher.errors import UsageError

Json = Mapping[str, Any]


class ModelErrors:
    """Creates the errors about one model, each starting with the requested name."""

    def __init__(self, asked: str) -> None:
        self._asked = asked

    def __call__(self, text: str) -> UsageError:
        return UsageError(f"--model {self._asked}: {text}")


def read_object(path: Path, refuse: ModelErrors) -> Json:
    """The object in a JSON file. Raises ``UsageError`` if the file is missing, unreadable, or contains another type."""
    value = read_value(path, refuse)
    if not isinstance(value, dict):
        raise refuse(f"{path} contains a JSON {type(value).__name__}, but must contain an object")
    return value


def read_value(path: Path, refuse: ModelErrors) -> Any:
    """The value in a JSON file, of any type. Raises ``UsageError`` if the file is missing or unreadable."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise refuse(f"{path.parent} has no {path.name}; {inventory(path.parent)}") from error
    except (ValueError, RecursionError) as error:
        raise refuse(f"{path} is not valid JSON: {error}") from error
    except OSError as error:
        raise refuse(f"{path} cannot be read: {error.strerror}") from error


def inventory(folder: Path) -> str:
    """The first names in a folder, for messages."""
    names = sorted(entry.name for entry in folder.iterdir()) if folder.is_dir() else []
    more = f" and {len(names) - 8} more" if len(names) > 8 else ""
    return f"it contains {', '.join(names[:8])}{more}" if names else "it is empty"
