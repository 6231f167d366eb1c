"""Copies the folder of a model with other values in one of its files. Separate because several test files do that."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

ABSENT = object()
"""As a value of ``copy_with``: the file does not have the key."""


def copy_with(folder: Path, copy: Path, file: str, values: Mapping[str, Any]) -> Path:
    """Copy a folder, with these ``values`` of the object in ``file``, which is made if there is none. Files that are
    not changed are links to the originals. Returns ``copy``."""
    shutil.copytree(folder, copy, copy_function=os.link)
    path = copy / file
    known = json.loads(path.read_text()) if path.exists() else {}
    path.unlink(missing_ok=True)
    path.write_text(json.dumps({key: value for key, value in {**known, **values}.items() if value is not ABSENT}))
    return copy
