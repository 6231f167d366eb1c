"""Real control groups of this machine (version 1), to run programs in. Tests skip where none can be made."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path("/sys/fs/cgroup")
CONTROLLERS = ("cpu", "cpuset", "memory")
MOST_SHARES = 262144
END_SECONDS = 10.0


@dataclass(frozen=True)
class Group:
    """A group of each controller, named alike in each."""

    name: str

    def folder(self, controller: str) -> Path:
        """Where the group of a controller is."""
        return ROOT / controller / self.name

    def set(self, file: str, value: str) -> None:
        """Write a file such as ``cpu.cfs_quota_us``."""
        (self.folder(file.partition(".")[0]) / file).write_text(value)

    def get(self, file: str) -> str:
        """The text of such a file."""
        return (self.folder(file.partition(".")[0]) / file).read_text().strip()

    def quota(self, cpus: float, *, period: int = 100_000) -> None:
        """Limit the group to that many cpus."""
        self.set("cpu.cfs_period_us", str(period))
        self.set("cpu.cfs_quota_us", str(int(cpus * period)))

    def cpu_stat(self) -> dict[str, int]:
        """``nr_periods``, ``nr_throttled`` and ``throttled_time`` (ns) so far."""
        return {name: int(value) for name, value in map(str.split, self.get("cpu.stat").splitlines())}

    def prefix(self) -> tuple[str, ...]:
        """What to put before a command: a shell that enters the group first, so that all of the program is inside."""
        enter = "; ".join(f"echo $$ > {self.folder(one)}/cgroup.procs" for one in CONTROLLERS)
        return "sh", "-c", f'set -e; {enter}; exec "$@"', "sh"


@contextlib.contextmanager
def made(name: str) -> Iterator[Group]:
    """A new group without limits, gone afterwards. ``name`` may lie in another group. Skips where that is denied."""
    group = Group(name)
    folders: list[Path] = []
    try:
        try:
            for controller in CONTROLLERS:
                group.folder(controller).mkdir()
                folders.append(group.folder(controller))
            for what in ("cpus", "mems"):
                group.set(f"cpuset.{what}", (group.folder("cpuset").parent / f"cpuset.effective_{what}").read_text())
            # Other programs of the machine must not keep it from coming near its limits.
            group.set("cpu.shares", str(MOST_SHARES))
        except OSError as error:
            pytest.skip(f"no control groups of version 1 can be made here: {error}")
        yield group
    finally:
        for folder in reversed(folders):
            _remove(folder)


def _remove(folder: Path) -> None:
    """Processes that were killed leave their group a little later."""
    deadline = time.monotonic() + END_SECONDS
    while True:
        try:
            folder.rmdir()
        except OSError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.02)
        else:
            return


def fresh_name() -> str:
    """A name that no other test process takes."""
    return f"launcher-test-{os.getpid()}"
