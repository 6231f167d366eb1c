"""Where cost tables lie between runs, and the marks of what they depend on. What is in one is decided in
``core.cost.table``.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import tempfile
from collections.abc import Iterable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from launcher.core.cost.table import CostKey, CostTable, decode_table, encode_table, name_of, stem_of
from launcher.core.protocol.model_info import ModelInfo
from launcher.errors import UsageError
from launcher.host.model.tokenizer_files import cache_folder

MAX_BYTES = 1024 * 1024
WEIGHT_FILES = (".safetensors", ".bin", ".py")


def cost_folder() -> Path:
    """The folder of the tables, in the user's cache."""
    return cache_folder() / "costs"


def package_version(name: str) -> str:
    """The version of an installed package, without importing it."""
    try:
        return version(name)
    except PackageNotFoundError:
        return "none"


def weights_mark(model_info: ModelInfo) -> str:
    """A mark that changes with the model's files: its configuration, and names, sizes and times of its weights."""
    digest = hashlib.sha256(repr((model_info.folder, model_info.shape)).encode())
    if model_info.shape is None:
        for path in sorted(Path(model_info.folder).iterdir()):
            with contextlib.suppress(OSError):
                if path.name == "config.json":
                    digest.update(path.read_bytes())
                elif path.suffix in WEIGHT_FILES:
                    status = path.stat()
                    digest.update(repr((path.name, status.st_size, status.st_mtime_ns)).encode())
    return digest.hexdigest()[:16]


def read_table(folder: Path, key: CostKey) -> CostTable | None:
    """The table that lies where that of ``key`` belongs, whatever its own key is; None where there is none.

    Raises ``UsageError`` when the file cannot be read, or is damaged.
    """
    return _read(folder / name_of(key))


def read_relatives(folder: Path, key: CostKey) -> tuple[CostTable, ...]:
    """All readable tables of the same model, run in the same way on any part of any machine."""
    return tuple(_readable(sorted(folder.glob(f"{stem_of(key)}-*.json"))))


def _readable(paths: Iterable[Path]) -> Iterable[CostTable]:
    for path in paths:
        with contextlib.suppress(UsageError):
            if (table := _read(path)) is not None:
                yield table


def _read(path: Path) -> CostTable | None:
    try:
        with path.open("rb") as file:
            data = file.read(MAX_BYTES + 1)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise UsageError(f"{path} cannot be read: {error.strerror}") from error
    try:
        if len(data) > MAX_BYTES:
            raise UsageError(f"it is damaged: it has more than {MAX_BYTES} bytes")
        return decode_table(data)
    except UsageError as error:
        raise UsageError(f"{path}: {error}") from error


def write_table(folder: Path, table: CostTable) -> Path:
    """Write a table over the one that is there: whole or not at all. Raises ``UsageError`` when it cannot be."""
    path = folder / name_of(table.key)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        descriptor, name = tempfile.mkstemp(prefix=f".{path.stem[-20:]}-", dir=folder)
        try:
            with os.fdopen(descriptor, "wb") as file:
                file.write(encode_table(table))
            Path(name).replace(path)
        except BaseException:
            Path(name).unlink(missing_ok=True)
            raise
    except OSError as error:
        raise UsageError(f"the cost table cannot be written to {folder}: {error.strerror or error}") from error
    return path
