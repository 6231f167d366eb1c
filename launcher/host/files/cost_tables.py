"""Stores cost tables between runs, and fingerprints what they depend on.

``core.cost.cost_table`` defines their contents.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import Iterable
from pathlib import Path

from launcher.core.cost.cost_table import CostKey, CostTable, decode_table, encode_table, file_name, file_stem
from launcher.core.protocol.model_info import ModelInfo
from launcher.custom_task import custom_task_file
from launcher.errors import UsageError
from launcher.host.model.tokenizer_files import cache_folder

MAX_BYTES = 1024 * 1024
WEIGHT_FILES = (".safetensors", ".bin", ".py")


def cost_folder() -> Path:
    """The folder of the tables, in the user's cache folder."""
    return cache_folder() / "costs"


def package_version(name: str) -> str:
    """The version of an installed package, without importing it; ``none`` if it is not installed."""
    from importlib.metadata import PackageNotFoundError, version  # slow to import, and most reports need no version

    try:
        return version(name)
    except PackageNotFoundError:
        return "none"


def weights_fingerprint(model_info: ModelInfo) -> str:
    """A fingerprint of the model's files: its configuration, and the names, sizes and times of its weights. Another one
    if they cannot be read."""
    digest = hashlib.sha256(repr((model_info.folder, model_info.shape, model_info.custom_class)).encode())
    if model_info.custom_class:
        for path in (custom_task_file(model_info.custom_class), Path(model_info.folder)):
            with contextlib.suppress(OSError):
                status = path.stat()
                digest.update(repr((path.name, status.st_size, status.st_mtime_ns)).encode())
    elif model_info.shape is None:
        for path in _files(Path(model_info.folder)):
            with contextlib.suppress(OSError):
                if path.name == "config.json":
                    digest.update(path.read_bytes())
                elif path.suffix in WEIGHT_FILES:
                    status = path.stat()
                    digest.update(repr((path.name, status.st_size, status.st_mtime_ns)).encode())
    return digest.hexdigest()[:16]


def _files(folder: Path) -> list[Path]:
    """The files of a folder; none if it cannot be read: a running server needs fingerprints whatever happens to it."""
    try:
        return sorted(folder.iterdir())
    except OSError:
        return []


def read_table(folder: Path, key: CostKey) -> CostTable | None:
    """The table in the file of ``key``, whatever its own key is; None if there is no file.

    Raises ``UsageError`` if the file cannot be read or is damaged.
    """
    return _read(folder / file_name(key))


def read_related_tables(folder: Path, key: CostKey) -> tuple[CostTable, ...]:
    """All readable tables of the same model with the same settings, for any instance and any machine."""
    return tuple(_readable(sorted(folder.glob(f"{file_stem(key)}-*.json"))))


def _readable(paths: Iterable[Path]) -> Iterable[CostTable]:
    for path in paths:
        with contextlib.suppress(UsageError):
            if (table := _read(path)) is not None:
                yield table


def _read(path: Path) -> CostTable | None:
    try:
        with path.open("rb") as file:
            data = file.read(MAX_BYTES + 1)
    except (FileNotFoundError, NotADirectoryError):  # the latter without a home folder
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
    """Write a table atomically, replacing an existing one. Raises ``UsageError`` if it cannot be written."""
    import tempfile  # only here, and slow to import

    path = folder / file_name(table.key)
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
