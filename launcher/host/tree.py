"""Reads small files of `/sys` and `/proc` under a root, and never outside it.

Separate because a recorded machine may hold symbolic links that point to absolute paths: followed blindly they
would mix facts of this machine into those of the recorded one. What a file means must not enter.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from pathlib import Path

from launcher.core.cpuset import parse_cpu_list, parse_cpu_mask
from launcher.core.oddities import Oddities

Parse = Callable[[str], tuple[int, ...]]

MAX_FILE = 16 * 1024 * 1024  # /proc/cpuinfo of 4,096 cpus has about 6 MB
_CHUNK = 64 * 1024


class Tree:
    """The files under ``root``; a missing, unreadable or malformed one is None, as nothing in `/sys` is certain.

    ``odd`` collects the files that are there and make no sense.
    """

    def __init__(self, root: Path) -> None:
        self.root = Path(os.path.realpath(root))
        self.live = self.root == Path("/")
        self.odd = Oddities()
        self._base = "" if self.live else str(self.root)
        self._folders: dict[str, str | None] = {"": self._base}
        self._parsed: dict[tuple[Parse, str], tuple[int, ...]] = {}

    def text(self, path: str) -> str | None:
        """The file's text without NUL bytes and outer white space; None when there is nothing to read."""
        place = self._file(path)
        if place is None:
            return None
        try:
            descriptor = os.open(place, os.O_RDONLY | os.O_CLOEXEC)
        except OSError:
            return None
        try:
            raw = _read_all(descriptor)
        except OSError:
            return None  # an offline cpu's files answer so
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
            self._malformed(path, f"{text[:40]!r} is no number")
            return None

    def cpu_list(self, path: str) -> tuple[int, ...] | None:
        """The file as a kernel list (``0-3,8``); ``()`` for an empty file."""
        return self._ids(path, parse_cpu_list)

    def cpus(self, mask_path: str, list_path: str) -> tuple[int, ...] | None:
        """The set that a kernel file states twice: as a mask, which every kernel writes, and as a list."""
        by_mask = self._ids(mask_path, parse_cpu_mask)
        by_list = self._ids(list_path, parse_cpu_list)
        if by_mask is not None and by_list is not None and by_mask != by_list:
            files = f"{_pattern(list_path)} against {_pattern(mask_path).rpartition('/')[2]}"
            self.odd.add(
                f"lists that are not what their masks say ({files}), of which the masks are taken: {{}}",
                _short(list_path),
            )
        return by_list if by_mask is None else by_mask

    def numbered(self, folder: str, prefix: str) -> list[int]:
        """The N of all ``folder/prefixN``, ascending."""
        start = len(prefix)
        tails = (name[start:] for name in self.names(folder) if name.startswith(prefix))
        return sorted(int(tail) for tail in tails if tail.isascii() and tail.isdigit())

    def names(self, folder: str) -> list[str]:
        """The names in a folder, none when it is not there."""
        place = self._folder(folder)
        try:
            return [] if place is None else os.listdir(place)  # noqa: PTH208  # names only, for thousands of folders
        except OSError:
            return []

    def exists(self, folder: str) -> bool:
        """Whether this folder is there."""
        place = self._folder(folder)
        return place is not None and Path(place).is_dir()

    def _ids(self, path: str, parse: Parse) -> tuple[int, ...] | None:
        text = self.text(path)
        if text is None:
            return None
        # Thousands of cpus carry the same few lists; each is parsed once.
        found = self._parsed.get((parse, text))
        if found is None:
            try:
                found = self._parsed[parse, text] = parse(text)
            except ValueError as error:
                self._malformed(path, str(error))
        return found

    def _malformed(self, path: str, reason: str) -> None:
        self.odd.add(
            f"files that make no sense ({_pattern(path)}) and are ignored: {{}}", f"{_short(path)}: {reason}"
        )

    def _file(self, path: str) -> str | None:
        folder, _, name = path.rpartition("/")
        return self._entry(self._folder(folder), name)

    def _folder(self, path: str) -> str | None:
        """Where a folder is, itself and all above it followed as links inside the root."""
        if path not in self._folders:
            above, _, name = path.rpartition("/")
            self._folders[path] = self._entry(self._folder(above), name)
        return self._folders[path]

    def _entry(self, folder: str | None, name: str) -> str | None:
        if folder is None:
            return None
        place = f"{folder}/{name}"
        # os.path, as Path objects would double the time of reading a large machine.
        if self.live or not os.path.islink(place):  # noqa: PTH114
            return place
        real = os.path.realpath(place)
        return real if real.startswith(self._base + "/") else None


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
