"""Reads small files of `/sys` and `/proc` under a root, and never outside it.

Separate because a recorded machine may hold symbolic links that point to absolute paths: followed blindly they
would mix facts of this machine into those of the recorded one. What a file means must not enter.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

from launcher.core.cpuset import parse_cpu_list, parse_cpu_mask

Value = TypeVar("Value")

MAX_FILE = 16 * 1024 * 1024  # /proc/cpuinfo of 4,096 cpus has about 6 MB
_CHUNK = 64 * 1024


class Tree:
    """The files under ``root``; a missing, unreadable or malformed one is None, as nothing in `/sys` is certain.

    ``problems`` collects one sentence for each file that is there and makes no sense.
    """

    def __init__(self, root: Path) -> None:
        self.root = Path(os.path.realpath(root))
        self.live = self.root == Path("/")
        self.problems: list[str] = []
        self._base = "" if self.live else str(self.root)
        self._folders: dict[str, str | None] = {}
        self._lists: dict[str, tuple[int, ...]] = {}
        self._masks: dict[str, tuple[int, ...]] = {}

    def text(self, path: str) -> str | None:
        """The file's text without NUL bytes and outer white space; None when there is nothing to read."""
        place = self._place(path)
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
            self.problems.append(f"{path} holds {text[:40]!r}, which is no number; it is ignored")
            return None

    def cpu_list(self, path: str) -> tuple[int, ...] | None:
        """The file as a kernel list (``0-3,8``); ``()`` for an empty file."""
        return self._ids(path, parse_cpu_list, self._lists)

    def cpu_mask(self, path: str) -> tuple[int, ...] | None:
        """The file as a kernel hex mask."""
        return self._ids(path, parse_cpu_mask, self._masks)

    def list_or_mask(self, list_path: str, mask_path: str) -> tuple[int, ...] | None:
        """The list, or where an older kernel has none the mask."""
        found = self.cpu_list(list_path)
        return self.cpu_mask(mask_path) if found is None else found

    def numbered(self, folder: str, prefix: str) -> list[int]:
        """The N of all ``folder/prefixN``, ascending."""
        pattern = re.compile(re.escape(prefix) + r"(\d+)")
        matches = (pattern.fullmatch(name) for name in self.names(folder))
        return sorted(int(match.group(1)) for match in matches if match)

    def names(self, folder: str) -> Iterator[str]:
        """The names in a folder, none when it is not there."""
        place = self._folder(folder)
        if place is None:
            return
        try:
            yield from os.listdir(place)  # noqa: PTH208  # names only, for thousands of folders
        except OSError:
            return

    def exists(self, folder: str) -> bool:
        """Whether this folder is there."""
        place = self._folder(folder)
        return place is not None and Path(place).is_dir()

    def _ids(
        self, path: str, parse: Callable[[str], tuple[int, ...]], known: dict[str, tuple[int, ...]]
    ) -> tuple[int, ...] | None:
        text = self.text(path)
        if text is None:
            return None
        # Thousands of cpus carry the same few lists; each is parsed once.
        if text not in known:
            try:
                known[text] = parse(text)
            except ValueError as error:
                self.problems.append(f"{path} is ignored: {error}")
                return None
        return known[text]

    def _place(self, path: str) -> str | None:
        if self.live:
            return "/" + path
        folder_path, _, name = path.rpartition("/")
        folder = self._folder(folder_path)
        if folder is None:
            return None
        place = f"{folder}/{name}"
        # os.path, as Path objects would double the time of reading a large machine.
        return self._inside(place) if os.path.islink(place) else place  # noqa: PTH114

    def _folder(self, path: str) -> str | None:
        if self.live:
            return "/" + path
        if path not in self._folders:
            self._folders[path] = self._inside(f"{self._base}/{path}")
        return self._folders[path]

    def _inside(self, place: str) -> str | None:
        real = os.path.realpath(place)
        return real if real == self._base or real.startswith(self._base + "/") else None


def _read_all(descriptor: int) -> bytes:
    chunks = [os.read(descriptor, _CHUNK)]
    size = len(chunks[0])
    while chunks[-1] and size < MAX_FILE:
        chunks.append(os.read(descriptor, _CHUNK))
        size += len(chunks[-1])
    return b"".join(chunks)
