"""Reads the resource limits of this process: cgroups (v1, v2 and hybrid), affinity mask, allowed memory nodes.

Separate from the machine, because limits belong to a process, may change while it runs, and come in two formats. A
cgroup is limited by all its ancestors; in a container some of them are not visible, so everything visible between the
group and its mount is read and the lowest limit applies. Formats: ``cgroups(7)``,
``Documentation/admin-guide/cgroup-v2.rst``, ``cgroup-v1/cpusets.rst``.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from pathlib import Path
from typing import TypeVar

from launcher.core.machine.cpuset import format_cpu_list, parse_cpu_list
from launcher.core.machine.topology import Limits
from launcher.host.machine.file_tree import Tree, decimal
from launcher.pinning import allowed_cpus

Amount = TypeVar("Amount", int, float)

# Without a limit, version 1 reports the largest page-aligned number; values near it are not limits.
NO_MEMORY_LIMIT = 1 << 60
CGROUPS = "sys/fs/cgroup"
CONTROLLERS = frozenset({"cpu", "cpuset", "memory"})


@dataclass(frozen=True, slots=True)
class Bounds:
    """``limits``, and the cpus of the cpuset."""

    limits: Limits
    cpuset: tuple[int, ...] | None = None


@dataclass(frozen=True, slots=True)
class Throttling:
    """How often the CPU quota throttled the cgroups of this process since their creation. ``seconds`` sums all cpus."""

    periods: int
    throttled: int
    seconds: float


@dataclass(frozen=True, slots=True)
class QuotaFile:
    """The file with the CPU quota of one cgroup; ``cpus`` is None without a limit."""

    file: str
    text: str
    cpus: float | None


@dataclass(frozen=True, slots=True)
class MemoryUse:
    """The memory limit of a cgroup and its use in bytes, without page cache that can be reclaimed."""

    folder: str
    limit: int
    used: int


@dataclass(frozen=True, slots=True)
class _Mount:
    """A mounted hierarchy; ``controllers`` is None for version 2, ``top`` the group that is its root."""

    folder: str
    top: str
    controllers: frozenset[str] | None
    prefix: str


@dataclass(frozen=True, slots=True)
class _Group:
    """One visible cgroup directory whose limits apply to the process."""

    folder: str
    unified: bool
    prefix: str


def read_bounds(tree: Tree) -> Bounds:
    """The limits and the cpuset; unknown parts are None."""
    if _memberships(tree) and not _mounts(tree):
        tree.anomalies.add(
            "cgroups of this process (proc/self/cgroup) without a mounted hierarchy, so its cpu quota, cpuset and "
            "memory limit are unknown: {}",
            ", ".join(sorted(set(_memberships(tree).values()))),
        )
    mems = _cpuset(tree, "mems")
    status = _status(tree)
    affinity = _mask(status.get("Cpus_allowed_list"))
    if tree.live:
        affinity = allowed_cpus()
    allowed = _mask(status.get("Mems_allowed_list"))
    nodes = [set(part) for part in (mems, allowed) if part is not None]
    limits = Limits(
        cpu_quota=_tightest(_quota(tree, group) for group in _groups(tree, "cpu")),
        memory_nodes=tuple(sorted(set.intersection(*nodes))) if nodes else None,
        memory_bytes=_tightest(value for group in _groups(tree, "memory") for value in _memory(tree, group)),
        affinity=affinity,
    )
    return Bounds(limits, _cpuset(tree, "cpus"))


def read_throttling(sysroot: Path = Path("/")) -> Throttling | None:
    """The summed counters of all visible cgroups of this process that can be throttled; None when there is none."""
    tree = Tree(sysroot)
    found = [one for group in _groups(tree, "cpu") if (one := _throttling(tree, group)) is not None]
    if not found:
        return None
    return Throttling(
        sum(one.periods for one in found), sum(one.throttled for one in found), sum(one.seconds for one in found)
    )


def read_quota_files(tree: Tree) -> tuple[QuotaFile, ...] | None:
    """The quotas of all visible cgroups of this process; None when no hierarchy with quotas is visible."""
    groups = _groups(tree, "cpu")
    files = ((group, f"{group.folder}/{'cpu.max' if group.unified else 'cpu.cfs_quota_us'}") for group in groups)
    found = ((group, file, tree.text(file)) for group, file in files)
    quotas = tuple(QuotaFile(f"/{file}", text, _quota(tree, group)) for group, file, text in found if text)
    return quotas if groups else None


def read_memory_use(tree: Tree) -> MemoryUse | None:
    """Limit and use of the visible cgroup with the least memory left; None when a limit or its use is unknown."""
    found = [use for group in _groups(tree, "memory") if (use := _memory_use(tree, group)) is not None]
    return min(found, key=lambda use: use.limit - use.used, default=None)


def _memory_use(tree: Tree, group: _Group) -> MemoryUse | None:
    limit = _tightest(_memory(tree, group))
    name, cache = (
        ("memory.current", "inactive_file") if group.unified else ("memory.usage_in_bytes", "total_inactive_file")
    )
    used = decimal(tree.text(f"{group.folder}/{name}"))
    if limit is None or used is None:
        return None
    stat = _fields(tree.text(f"{group.folder}/memory.stat"), None)
    return MemoryUse(f"/{group.folder}", limit, max(0, used - (decimal(stat.get(cache)) or 0)))


def _tightest(values: Iterator[Amount | None]) -> Amount | None:
    return min((value for value in values if value is not None), default=None)


def _cpuset(tree: Tree, what: str) -> tuple[int, ...] | None:
    """The cpuset of the process; ``what`` is ``cpus`` or ``mems``. With both versions mounted, their intersection.

    The kernel applies the cpuset of the process's own group, which already accounts for its ancestors; an ancestor
    counts only where the files of the groups below it are missing.
    """
    groups = _groups(tree, "cpuset")
    own: dict[bool, set[int]] = {}
    for group in groups:
        found = _unified_cpuset(tree, group, what) if group.unified else _old_cpuset(tree, group, what)
        if found is not None and group.unified not in own:
            own[group.unified] = set(found)
    _check_effective(tree, groups, what)
    return tuple(sorted(set.intersection(*own.values()))) if own else None


def _unified_cpuset(tree: Tree, group: _Group, what: str) -> tuple[int, ...] | None:
    """Version 2: the effective set; an empty setting means the set of the parent."""
    effective = tree.cpu_list(f"{group.folder}/cpuset.{what}.effective")
    return effective if effective is not None else tree.cpu_list(f"{group.folder}/cpuset.{what}") or None


def _old_cpuset(tree: Tree, group: _Group, what: str) -> tuple[int, ...] | None:
    """Version 1: the configured set; the effective set is the same without what is offline."""
    configured = tree.cpu_list(f"{group.folder}/{group.prefix}{what}")
    return configured if configured is not None else tree.cpu_list(f"{group.folder}/{group.prefix}effective_{what}")


def _check_effective(tree: Tree, groups: list[_Group], what: str) -> None:
    """In version 1, what is configured in a group and effective in its parent must be effective in the group."""
    for group, above in pairwise(groups):
        configured, effective, given = (
            tree.cpu_list(f"{one.folder}/{one.prefix}{kind}{what}")
            for one, kind in ((group, ""), (group, "effective_"), (above, "effective_"))
        )
        if group.unified or configured is None or effective is None or given is None:
            continue
        missing = set(configured) & set(given) - set(effective)
        if missing:
            tree.anomalies.add(
                f"cpusets with {what} that are missing from effective_{what}, though the parent cpuset has them: {{}}",
                f"/{group.folder} {what} {format_cpu_list(missing)}",
            )


def _quota(tree: Tree, group: _Group) -> float | None:
    """CPU quota in cpus; ``cpu.max`` is ``QUOTA PERIOD`` in µs; no quota is ``max``, and -1 in version 1."""
    if group.unified:
        first, _, second = (tree.text(f"{group.folder}/cpu.max") or "max").partition(" ")
    else:
        first = tree.text(f"{group.folder}/cpu.cfs_quota_us") or ""
        second = tree.text(f"{group.folder}/cpu.cfs_period_us") or ""
    quota, period = decimal(first), decimal(second)
    return quota / period if quota and period else None


def _memory(tree: Tree, group: _Group) -> Iterator[int | None]:
    """Limits in bytes. ``memory.high`` is one: above it, the kernel throttles the group and reclaims its memory."""
    if group.unified:
        for name in ("memory.max", "memory.high"):
            yield decimal(tree.text(f"{group.folder}/{name}"))
        return
    stat = _fields(tree.text(f"{group.folder}/memory.stat"), None)
    # The second includes ancestors that are not visible from here.
    for text in (tree.text(f"{group.folder}/memory.limit_in_bytes"), stat.get("hierarchical_memory_limit")):
        value = decimal(text)
        yield value if value is not None and value < NO_MEMORY_LIMIT else None


def _throttling(tree: Tree, group: _Group) -> Throttling | None:
    fields = _fields(tree.text(f"{group.folder}/cpu.stat"), None)
    stat = {name: decimal(value) or 0 for name, value in fields.items()}
    if "nr_throttled" not in stat:
        return None
    seconds = stat.get("throttled_usec", 0) / 1e6 if group.unified else stat.get("throttled_time", 0) / 1e9
    return Throttling(stat.get("nr_periods", 0), stat["nr_throttled"], seconds)


def _status(tree: Tree) -> dict[str, str]:
    return _fields(tree.text("proc/self/status"), ":")


def _fields(text: str | None, separator: str | None) -> dict[str, str]:
    """Lines of ``key<separator>value``; separator None is whitespace."""
    pairs = (line.split(separator, 1) for line in (text or "").splitlines())
    return {pair[0].strip(): pair[1].strip() for pair in pairs if len(pair) == 2}


def _mask(text: str | None) -> tuple[int, ...] | None:
    try:
        return None if text is None else parse_cpu_list(text)
    except ValueError:
        return None


def _groups(tree: Tree, controller: str) -> list[_Group]:
    """The visible groups of the process for this controller: its own first, then the ancestors."""
    own = _memberships(tree)
    groups: list[_Group] = []
    for mount in _mounts(tree):
        unified = mount.controllers is None
        if mount.controllers is not None and controller not in mount.controllers:
            continue
        path = own.get("" if unified else controller)
        if path is None and controller == "cpuset":
            path = tree.text("proc/self/cpuset") or None  # the only source on a kernel without control groups
        if path is not None:
            groups.extend(_Group(folder, unified, mount.prefix) for folder in _folders(tree, mount, path))
    return groups


def _folders(tree: Tree, mount: _Mount, path: str) -> Iterator[str]:
    below = _below(mount.top, path)
    if below is None:
        return
    parts = [part for part in below.split("/") if part]
    for depth in range(len(parts), -1, -1):
        folder = "/".join([mount.folder, *parts[:depth]])
        # In a container the path may be that of the host, of which only the root is mounted.
        if tree.exists(folder):
            yield folder


def _below(top: str, path: str) -> str | None:
    """The path of the group ``path`` below a mount whose root is the group ``top``; None when it is not below."""
    if ".." in path.split("/"):
        return None
    if top == "/":
        return path
    if path == top or path.startswith(top + "/"):
        return path[len(top) :]
    # A root outside the cgroup namespace is shown as /../..: the mounted group is an ancestor of unknown name.
    return "" if set(top.split("/")) <= {"", ".."} else None


def _memberships(tree: Tree) -> dict[str, str]:
    """The path of the process's group for each controller; ``""`` is version 2 (``/proc/self/cgroup``)."""
    found: dict[str, str] = {}
    for line in (tree.text("proc/self/cgroup") or "").splitlines():
        parts = line.split(":", 2)
        if len(parts) == 3:
            for controller in parts[1].split(","):
                found[controller] = parts[2]
    return found


def _mounts(tree: Tree) -> list[_Mount]:
    """All mounted cgroup hierarchies."""
    text = tree.text("proc/self/mountinfo")
    if text is not None:
        return _parsed_mounts(text, _mountinfo_line)
    text = tree.text("proc/self/mounts") or tree.text("proc/mounts")
    return _usual_mounts(tree) if text is None else _parsed_mounts(text, _mounts_line)


@lru_cache(maxsize=2)  # a running server reads its limits again and again, and the table is the same
def _parsed_mounts(text: str, parse: Callable[[str], tuple[str, str, str, str] | None]) -> list[_Mount]:
    found = (_mount(*line) for line in map(parse, text.splitlines()) if line is not None)
    return [mount for mount in found if mount is not None]


def _usual_mounts(tree: Tree) -> list[_Mount]:
    """The hierarchies at their usual places, for a copy of a machine without a mount table (systemd's file-hierarchy:
    version 2 at ``/sys/fs/cgroup``, or at ``unified`` below it; version 1 in a folder per set of controllers)."""
    unified = [
        _Mount(folder, "/", None, "cpuset.")
        for folder in (CGROUPS, f"{CGROUPS}/unified")
        if tree.text(f"{folder}/cgroup.controllers") is not None
    ]
    by_controllers = [
        _Mount(f"{CGROUPS}/{name}", "/", frozenset(name.split(",")), "cpuset.")
        for name in sorted(tree.names(CGROUPS))
        if set(name.split(",")) & CONTROLLERS and tree.exists(f"{CGROUPS}/{name}")
    ]
    return unified + by_controllers


def _mount(top: str, folder: str, kind: str, options: str) -> _Mount | None:
    place = re.sub(r"\\([0-7]{3})", lambda match: chr(int(match.group(1), 8)), folder).strip("/")
    if kind == "cgroup2":
        return _Mount(place, top, None, "cpuset.")
    if kind == "cpuset":
        return _Mount(place, top, frozenset({"cpuset"}), "")
    if kind == "cgroup":
        words = frozenset(options.split(","))
        return _Mount(place, top, words, "" if "noprefix" in words else "cpuset.")
    return None


def _mountinfo_line(line: str) -> tuple[str, str, str, str] | None:
    """Root, mount point, type and options of a line of ``/proc/self/mountinfo`` (proc(5))."""
    before, _, after = line.partition(" - ")
    head, tail = before.split(), after.split()
    return (head[3], head[4], tail[0], tail[-1]) if len(head) >= 6 and len(tail) >= 2 else None


def _mounts_line(line: str) -> tuple[str, str, str, str] | None:
    """The same for a line of ``/proc/mounts``, which does not have the root."""
    words = line.split()
    return ("/", words[1], words[2], words[3]) if len(words) >= 4 else None
