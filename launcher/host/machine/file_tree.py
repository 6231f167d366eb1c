"""Reads small files of `/sys` and `/proc` under a root, and never outside it.

Separate because a recorded machine may contain symbolic links with absolute targets: followed as they are, they would
mix facts of this machine into the recorded one. The meaning of files does not belong here.
"""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from launcher.core.machine.anomalies import Anomalies
from launcher.core.machine.cpuset import mask_bits, parse_cpu_list, parse_cpu_mask

Parsed = TypeVar("Parsed")

MAX_FILE = 16 * 1024 * 1024  # /proc/cpuinfo of 4,096 cpus has about 6 MB
READ = os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK
_CHUNK = 64 * 1024


class Tree:
    """The files under ``root``. A missing, unreadable or malformed file is None; no file of `/sys` is guaranteed.

    ``anomalies`` collects malformed and inconsistent files.
    """

    def __init__(self, root: Path) -> None:
        self.root = Path(os.path.realpath(root))
        self.live = self.root == Path("/")
        self.anomalies = Anomalies()
        self._base = "" if self.live else str(self.root)
        self._folders: dict[str, str | None] = {"": self._base}
        self._lists: dict[str, tuple[int, ...]] = {}
        self._masks: dict[str, tuple[int, ...]] = {}
        self._bits: dict[str, int] = {}

    def text(self, path: str) -> str | None:
        """The file's text without NUL bytes and surrounding whitespace; None when it cannot be read."""
        descriptor = self._open(path)
        if descriptor is None:
            return None
        try:
            raw = _read_all(descriptor)
        except OSError:
            return None  # the files of an offline cpu may fail to read
        finally:
            os.close(descriptor)
        return raw.decode("utf-8", "replace").replace("\0", "").strip()

    def number(self, path: str) -> int | None:
        """The file as one decimal number."""
        text = self.text(path)
        if text is None or text == "":
            return None
        try:
            return int(text)
        except ValueError:
            self._malformed(path, f"{text[:40]!r} is not a number")
            return None

    def cpu_list(self, path: str) -> tuple[int, ...] | None:
        """The file as a kernel list (``0-3,8``); ``()`` for an empty file."""
        return self._ids(path, parse_cpu_list)

    def cpus(self, mask_path: str, list_path: str) -> tuple[int, ...] | None:
        """The set that the kernel provides twice: as a mask, which every kernel has, and as a list."""
        by_list = self._ids(list_path, parse_cpu_list)
        bits = self._parse(mask_path, mask_bits, self._bits)
        # Compare as numbers first: expanding thousands of masks would take most of the time.
        if bits is None or (by_list is not None and bits == sum(1 << cpu for cpu in by_list)):
            return by_list
        if by_list is not None:
            files = f"{_pattern(list_path)} against {_pattern(mask_path).rpartition('/')[2]}"
            self.anomalies.add(
                f"lists that differ from their masks ({files}); the masks are used: {{}}",
                _short(list_path),
            )
        return self._ids(mask_path, parse_cpu_mask)

    def numbered(self, folder: str, prefix: str) -> list[int]:
        """The N of all ``folder/prefixN``, ascending."""
        start = len(prefix)
        tails = (name[start:] for name in self.names(folder) if name.startswith(prefix))
        return sorted(int(tail) for tail in tails if tail.isascii() and tail.isdigit())

    def names(self, folder: str) -> list[str]:
        """The names in a folder; none when it does not exist."""
        place = self._folder(folder)
        try:
            return [] if place is None else os.listdir(place)  # noqa: PTH208  # names only, for thousands of folders
        except OSError:
            return []

    def exists(self, folder: str) -> bool:
        """Whether this folder exists."""
        place = self._folder(folder)
        return place is not None and Path(place).is_dir()

    def _ids(self, path: str, parse: Callable[[str], tuple[int, ...]]) -> tuple[int, ...] | None:
        return self._parse(path, parse, self._lists if parse is parse_cpu_list else self._masks)

    def _parse(self, path: str, parse: Callable[[str], Parsed], known: dict[str, Parsed]) -> Parsed | None:
        text = self.text(path)
        if text is None:
            return None
        # Thousands of cpus share a few distinct texts; parse each once.
        if text not in known:
            try:
                known[text] = parse(text)
            except ValueError as error:
                self._malformed(path, str(error))
                return None
        return known[text]

    def _malformed(self, path: str, reason: str) -> None:
        self.anomalies.add(f"malformed files ({_pattern(path)}), which are ignored: {{}}", f"{_short(path)}: {reason}")

    def _open(self, path: str) -> int | None:
        folder_path, _, name = path.rpartition("/")
        folder = self._folder(folder_path)
        if folder is None:
            return None
        try:
            return os.open(f"{folder}/{name}", READ if self.live else READ | os.O_NOFOLLOW)
        except OSError as error:
            if error.errno != errno.ELOOP:
                return None
        try:
            place = self._entry(folder, name)
            return None if place is None else os.open(place, READ)
        except OSError:
            return None

    def _folder(self, path: str) -> str | None:
        """The path of a folder, with symbolic links in it resolved inside the root."""
        if path not in self._folders:
            above, _, name = path.rpartition("/")
            self._folders[path] = self._entry(self._folder(above), name)
        return self._folders[path]

    def _entry(self, folder: str | None, name: str) -> str | None:
        if folder is None:
            return None
        place = f"{folder}/{name}"
        # os.path: Path objects would double the time to read a large machine.
        if self.live or not os.path.islink(place):  # noqa: PTH114
            return place
        real = os.path.realpath(place)
        return real if real.startswith(self._base + "/") else None


def decimal(text: str | None) -> int | None:
    """The text as a decimal number of up to 20 digits, as the kernel prints it; None for anything else."""
    digits = (text or "").strip()
    return int(digits) if digits.isascii() and digits.isdigit() and len(digits) <= 20 else None


def _pattern(path: str) -> str:
    return re.sub(r"\d+", "*", _short(path))


def _short(path: str) -> str:
    return path.removeprefix("sys/devices/system/")


def _read_all(descriptor: int) -> bytes:
    chunks = [os.read(descriptor, _CHUNK)]
    size = len(chunks[0])
    while chunks[-1] and size < MAX_FILE:
        chunks.append(os.read(descriptor, _CHUNK))
        size += len(chunks[-1])
    return b"".join(chunks)
