"""Machines for tests: recorded ones with their ground truth, and trees of `/sys` and `/proc` made from a description.

The recorded machines are stored next to the repository; without them, tests that need them are skipped. Each is
unpacked once into a cache in the temporary folder, which later runs use again.
"""

from __future__ import annotations

import functools
import json
import os
import posixpath
import re
import shutil
import tarfile
import tempfile
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from launcher.core.machine.cpuset import format_cpu_list

TOPOLOGIES = Path(__file__).resolve().parents[2] / "shared" / "topologies"
MISSING = f"the recorded machines are missing ({TOPOLOGIES.parent.name}/{TOPOLOGIES.name} beside the repository)"

# Two thirds of the files, which neither the launcher nor lscpu reads: skipping them saves seconds.
UNREAD = re.compile(
    r"/(ways_of_associativity|number_of_sets|coherency_line_size|physical_line_partition|write_policy|allocation_policy"
    r"|device-tree|hugepages|pci[0-9a-f:]*|class|block|pmc\d|mmcr\w)(/|$)"
)


def recorded_names() -> list[str]:
    """The names of all recorded machines; empty if they are absent."""
    return sorted(path.name.removesuffix(".tar.xz") for path in (TOPOLOGIES / "dumps").glob("*.tar.xz"))


def each_recorded() -> Any:
    """Parametrizes a test's ``name`` over all recorded machines, or skips it."""
    names = recorded_names() or [pytest.param("none", marks=pytest.mark.skip(reason=MISSING))]
    return pytest.mark.parametrize("name", names)


def recorded(name: str) -> Path:
    """The root of a recorded machine's tree, unpacked. Skips the test if the recorded machines are absent."""
    archive = TOPOLOGIES / "dumps" / f"{name}.tar.xz"
    if not archive.exists():
        pytest.skip(MISSING)
    return _unpacked(archive)


def truth(name: str) -> dict[str, Any]:
    """The ground truth of a recorded machine."""
    loaded: dict[str, Any] = json.loads((TOPOLOGIES / "truth" / f"{name}.json").read_text())
    return loaded


@functools.cache
def _unpacked(archive: Path) -> Path:
    name = archive.name.removesuffix(".tar.xz")
    status = archive.stat()
    cache = Path(tempfile.gettempdir()) / f"launcher-machines-{os.getuid()}"
    cache.mkdir(mode=0o700, exist_ok=True)
    if cache.stat().st_uid != os.getuid():
        raise PermissionError(f"{cache} belongs to another user")
    place = cache / f"{name}-{status.st_size}-{int(status.st_mtime)}"
    if not place.exists():
        fresh = Path(tempfile.mkdtemp(dir=cache))
        _extract(archive, fresh)
        try:
            fresh.rename(place)
        except OSError:  # another test process was faster
            shutil.rmtree(fresh)
    return place / name


def _extract(archive: Path, target: Path) -> None:
    """Extract regular files and links that stay inside; anything else in the archive is skipped."""
    links: list[tuple[str, str]] = []
    folders: set[str] = set()
    with tarfile.open(archive) as tar:
        for member in tar:
            path = posixpath.normpath(member.name)
            if path.startswith(("/", "..")) or UNREAD.search(path):
                continue
            folder = path if member.isdir() else posixpath.dirname(path)
            if folder not in folders:
                folders.add(folder)
                (target / folder).mkdir(parents=True, exist_ok=True)
            if member.issym():
                links.append((path, member.linkname))
            elif member.isreg() and (stream := tar.extractfile(member)) is not None:
                (target / path).write_bytes(stream.read())
    # Last, so that nothing is ever written through one.
    for path, linkname in links:
        end = posixpath.normpath(posixpath.join(posixpath.dirname(path), linkname))
        if not linkname.startswith("/") and not end.startswith(".."):
            (target / path).symlink_to(linkname)


@dataclass(frozen=True)
class DescribedCpu:
    """One cpu of a machine to build; ``core`` and ``l3`` are labels, equal for cpus that share one."""

    core: int
    package: int | None = 0
    node: int | None = 0
    l3: int | None = 0
    online: bool = True


@dataclass(frozen=True)
class Described:
    """A machine to build as a tree.

    ``memory`` is in bytes by node, ``distances`` a matrix in the order of the nodes. ``masks`` and ``lists`` select the
    forms in which sets of cpus are written; ``nul`` ends each file with a NUL byte.
    """

    cpus: dict[int, DescribedCpu]
    memory: dict[int, int] = field(default_factory=dict)
    distances: dict[int, list[int]] = field(default_factory=dict)
    isolated: tuple[int, ...] = ()
    efficiency: tuple[int, ...] | None = None
    masks: bool = True
    lists: bool = True
    nul: bool = False
    files: dict[str, str] = field(default_factory=dict)

    @property
    def online(self) -> tuple[int, ...]:
        """The online cpus, ascending."""
        return tuple(sorted(cpu for cpu, one in self.cpus.items() if one.online))

    @property
    def nodes(self) -> dict[int, tuple[int, ...]]:
        """The online cpus of each node; nodes with memory only have none."""
        groups = self.grouped("node")
        return {node: groups.get(node, ()) for node in sorted({*groups, *self.memory})}

    def grouped(self, what: str) -> dict[int, tuple[int, ...]]:
        """The online cpus by their ``core``, ``package``, ``node`` or ``l3``."""
        groups: dict[int, list[int]] = defaultdict(list)
        for cpu in self.online:
            label = getattr(self.cpus[cpu], what)
            if label is not None:
                groups[label].append(cpu)
        return {label: tuple(cpus) for label, cpus in groups.items()}


def regular(
    packages: int = 1, nodes: int = 1, cores: int = 4, threads: int = 2, l3_cores: int | None = None, **more: Any
) -> Described:
    """``packages`` × ``nodes`` × ``cores`` × ``threads``; siblings are numbered apart, as on most servers.

    ``l3_cores`` cores share a level-3 cache, all of a node when it is None. Each node has 16 GiB.
    """
    total = packages * nodes * cores
    width = l3_cores or cores
    cpus = {}
    for thread in range(threads):
        for core in range(total):
            node = core // cores
            l3 = node * (-(-cores // width)) + core % cores // width
            cpus[thread * total + core] = DescribedCpu(core, node // nodes, node, l3)
    count = packages * nodes
    distances = {
        one: [10 if one == other else 12 if one // nodes == other // nodes else 21 for other in range(count)]
        for one in range(count)
    }
    return Described(cpus, dict.fromkeys(range(count), 16 << 30), distances, **more)


def mask(cpus: Iterable[int], width: int = 64) -> str:
    """A kernel hex mask of at least ``width`` bits."""
    wanted = list(cpus)
    bits = sum(1 << cpu for cpu in wanted)
    words = max(-(-width // 32), -(-(max(wanted, default=0) + 1) // 32))
    return ",".join(f"{bits >> 32 * word & 0xFFFFFFFF:08x}" for word in reversed(range(words)))


def build(root: Path, machine: Described) -> Path:
    """Write the tree of a described machine under ``root``; returns ``root``."""
    cpu_folder = "sys/devices/system/cpu"
    writer = _Writer(root, machine)
    writer.write(f"{cpu_folder}/present", format_cpu_list(machine.cpus))
    writer.write(f"{cpu_folder}/possible", format_cpu_list(machine.cpus))
    writer.write(f"{cpu_folder}/online", format_cpu_list(machine.online))
    writer.write(f"{cpu_folder}/isolated", format_cpu_list(machine.isolated))
    cores, l3s = machine.grouped("core"), machine.grouped("l3")
    for cpu, one in machine.cpus.items():
        folder = f"{cpu_folder}/cpu{cpu}"
        if cpu:
            writer.write(f"{folder}/online", str(int(one.online)))
        if one.online:
            writer.cpus(f"{folder}/topology/thread_siblings", "_list", cores[one.core])
            writer.write(f"{folder}/topology/physical_package_id", str(-1 if one.package is None else one.package))
            writer.cache(f"{folder}/cache/index0", 1, "Data", cores[one.core])
            if one.l3 is not None:
                writer.cache(f"{folder}/cache/index3", 3, "Unified", l3s[one.l3])
    _build_nodes(writer, machine)
    if machine.efficiency is not None:
        writer.write("sys/devices/cpu_atom/cpus", format_cpu_list(machine.efficiency))
        writer.write("sys/devices/cpu_core/cpus", format_cpu_list(set(machine.cpus) - set(machine.efficiency)))
    for path, text in machine.files.items():
        writer.write(path, text)
    return root


def _build_nodes(writer: _Writer, machine: Described) -> None:
    nodes = machine.nodes
    for node, cpus in nodes.items():
        folder = f"sys/devices/system/node/node{node}"
        writer.cpus(f"{folder}/cpu", "list", cpus, mask_suffix="map")
        if node in machine.memory:
            kilobytes = machine.memory[node] // 1024
            lines = (("MemTotal", kilobytes), ("MemFree", kilobytes // 2), ("Active(file)", kilobytes // 8))
            writer.write(f"{folder}/meminfo", "\n".join(f"Node {node} {name}: {size} kB" for name, size in lines))
        if node in machine.distances:
            writer.write(f"{folder}/distance", " ".join(map(str, machine.distances[node])))
    if nodes:
        writer.write("sys/devices/system/node/online", format_cpu_list(nodes))


class _Writer:
    def __init__(self, root: Path, machine: Described) -> None:
        self._root = root
        self._machine = machine

    def write(self, path: str, text: str) -> None:
        place = self._root / path
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_text(text + "\n" + ("\0" if self._machine.nul else ""))

    def cpus(self, path: str, list_suffix: str, cpus: Iterable[int], mask_suffix: str = "") -> None:
        members = list(cpus)
        if self._machine.lists:
            self.write(path + list_suffix, format_cpu_list(members))
        if self._machine.masks:
            self.write(path + mask_suffix, mask(members))

    def cache(self, folder: str, level: int, kind: str, cpus: Iterable[int]) -> None:
        self.write(f"{folder}/level", str(level))
        self.write(f"{folder}/type", kind)
        self.cpus(f"{folder}/shared_cpu", "_list", cpus, mask_suffix="_map")
