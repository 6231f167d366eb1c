"""Real control groups of this machine (version 1), to run programs in. Tests are skipped if none can be created."""

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
    """A group in each controller, with the same name."""

    name: str

    def folder(self, controller: str) -> Path:
        """The folder of the group of a controller."""
        return ROOT / controller / self.name

    def set(self, file: str, value: str) -> None:
        """Write a file such as ``cpu.cfs_quota_us``."""
        (self.folder(file.partition(".")[0]) / file).write_text(value)

    def get(self, file: str) -> str:
        """The text of such a file."""
        return (self.folder(file.partition(".")[0]) / file).read_text().strip()

    def quota(self, cpus: float, *, period: int = 100_000) -> None:
        """Limit the group to this many cpus."""
        self.set("cpu.cfs_period_us", str(period))
        self.set("cpu.cfs_quota_us", str(int(cpus * period)))

    def cpu_stat(self) -> dict[str, int]:
        """``nr_periods``, ``nr_throttled`` and ``throttled_time`` (ns) so far."""
        return {name: int(value) for name, value in map(str.split, self.get("cpu.stat").splitlines())}

    def prefix(self) -> tuple[str, ...]:
        """The prefix of a command: a shell that enters the group first, so that the whole program is inside."""
        enter = "; ".join(f"echo $$ > {self.folder(one)}/cgroup.procs" for one in CONTROLLERS)
        return "sh", "-c", f'set -e; {enter}; exec "$@"', "sh"


@contextlib.contextmanager
def made(name: str) -> Iterator[Group]:
    """A new group without limits, removed afterwards. ``name`` may be inside another group. Skips if that is denied."""
    group = Group(name)
    folders: list[Path] = []
    try:
        try:
            for controller in CONTROLLERS:
                group.folder(controller).mkdir()
                folders.append(group.folder(controller))
            for what in ("cpus", "mems"):
                group.set(f"cpuset.{what}", (group.folder("cpuset").parent / f"cpuset.effective_{what}").read_text())
            # Other programs of the machine must not prevent it from reaching its limits.
            group.set("cpu.shares", str(MOST_SHARES))
        except OSError as error:
            pytest.skip(f"control groups of version 1 cannot be created here: {error}")
        yield group
    finally:
        for folder in reversed(folders):
            _remove(folder)


def _remove(folder: Path) -> None:
    """Killed processes leave their group after a short delay."""
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
    """A name that no other test process uses."""
    return f"launcher-test-{os.getpid()}"
