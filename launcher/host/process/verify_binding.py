"""Verifies from outside that a running process is placed as planned: cpus, memory, threads, OpenMP runtimes.

A binding can fail silently: a library moves its threads, a memory policy is set after the pages were touched, a second
OpenMP runtime starts a second set of threads. So the facts come from the kernel, not from the process. Nothing is
changed here; callers decide how to react to a miss.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from launcher.core.machine.cpuset import format_cpu_list, parse_cpu_list
from launcher.core.planning.binding import Level
from launcher.errors import InstanceError
from launcher.host.process.count_openmp_threads import count_openmp_threads, parse_openmp

# A few pages are elsewhere for legitimate reasons: those of exec, and those that migrated under memory pressure.
LOCAL_SHARE = 0.95

# Besides its n OpenMP threads, torch keeps a pool of n - 1 idle threads and numpy's BLAS up to n - 1; Python, torch and
# the worker have a few more. Measured with torch 2.13: 7 threads for n = 4.
THREADS_PER_PLANNED, EXTRA_THREADS = 3, 8

# A thread counts as computing if it has used this much CPU time, and this share of that of the busiest thread besides
# the main one. Threads of OpenBLAS spin for 0.1 s when they are created and are idle afterwards.
COMPUTED_SECONDS, COMPUTED_SHARE = 0.25, 0.1


@dataclass(frozen=True, slots=True)
class Thread:
    """One thread: the cpus it may run on and the CPU time it has used, in seconds."""

    id: int
    cpus: tuple[int, ...]
    cpu_seconds: float


@dataclass(frozen=True, slots=True)
class Pages:
    """Resident bytes per node, as (node, bytes) pairs: private memory, and file pages shared between processes."""

    private: tuple[tuple[int, int], ...]
    shared_file: tuple[tuple[int, int], ...]


@dataclass(frozen=True, slots=True)
class Verification:
    """The facts found, and each miss as a sentence; without a miss the process is placed as planned.

    ``private_local`` and ``file_local`` are the shares (0…1) of resident bytes on the planned nodes, None if unknown or
    if no node was planned. ``openmp`` are the OpenMP runtimes in the process; if there are several, ``openmp_threads``
    has the number of threads that each has started. ``unchecked`` is what could not be verified.
    """

    pid: int
    level: Level
    cpus: str
    threads: int
    computing_threads: int
    private_bytes: int
    private_local: float | None
    file_bytes: int
    file_local: float | None
    openmp: tuple[str, ...]
    openmp_threads: tuple[tuple[str, int], ...]
    misses: tuple[str, ...]
    unchecked: tuple[str, ...]

    @property
    def ok(self) -> bool:
        """Whether there is no miss."""
        return not self.misses

    def to_json(self) -> dict[str, Any]:
        """The fields for ``/info``; shares are rounded to 4 digits."""
        return {
            "ok": self.ok,
            "pid": self.pid,
            "level": self.level,
            "cpus": self.cpus,
            "threads": self.threads,
            "computing_threads": self.computing_threads,
            "private_bytes": self.private_bytes,
            "private_local": _rounded(self.private_local),
            "file_bytes": self.file_bytes,
            "file_local": _rounded(self.file_local),
            "openmp": list(self.openmp),
            "openmp_threads": dict(self.openmp_threads),
            "misses": list(self.misses),
            "unchecked": list(self.unchecked),
        }

    def sentence(self) -> str:
        """The result on one line, for the log."""
        if self.misses:
            return "; ".join(self.misses)
        memory = "" if self.private_local is None else f", {self.private_local:.1%} of its memory on its nodes"
        unchecked = "".join(f"; not checked: {what}" for what in self.unchecked)
        return f"verified: all {self.threads} threads on cpus {self.cpus}{memory}{unchecked}"


def verify(
    pid: int, cpus: Sequence[int], nodes: Sequence[int], threads: int | None, level: Level, proc: Path = Path("/proc")
) -> Verification:
    """Compare the process ``pid`` with the plan: ``threads`` on ``cpus``, memory on ``nodes``.

    ``threads`` None: not checked (a backend that does not compute). Only what ``level`` promises is checked: masks
    unless it is ``none``, memory for ``bind`` and ``preferred``; everything is reported. Takes about 0.1 s per GB of
    resident memory. Raises ``InstanceError`` when there is no such process.
    """
    base = proc / str(pid)
    try:
        found = read_threads(base)
        maps = (base / "maps").read_text(errors="replace")
    except OSError as error:
        raise InstanceError(f"process {pid} cannot be verified: {error.strerror or error}") from error
    pages, unchecked = _read_pages(base, nodes)
    openmp = parse_openmp(maps)
    openmp_threads, unread = _count_openmp_threads(base, openmp)
    private_local, file_local = (_share(part, nodes) for part in (pages.private, pages.shared_file))
    misses = [*(check_masks(found, cpus) if level != "none" else ()), *check_openmp(openmp_threads)]
    if level in ("bind", "preferred"):
        misses += check_memory(pages.private, nodes)
    if threads is not None:
        misses += check_threads(found, threads, pid)
    return Verification(
        pid=pid,
        level=level,
        cpus=format_cpu_list(cpu for thread in found for cpu in thread.cpus),
        threads=len(found),
        computing_threads=count_computing(found, pid),
        private_bytes=sum(size for _, size in pages.private),
        private_local=private_local,
        file_bytes=sum(size for _, size in pages.shared_file),
        file_local=file_local,
        openmp=openmp,
        misses=tuple(misses),
        openmp_threads=tuple(openmp_threads.items()),
        unchecked=(*unchecked, *unread),
    )


def read_threads(base: Path) -> tuple[Thread, ...]:
    """All threads of the process whose folder in /proc is ``base``. Raises ``OSError`` when it is gone."""
    tick = os.sysconf("SC_CLK_TCK")
    found: list[Thread] = []
    for folder in sorted((base / "task").iterdir(), key=lambda folder: int(folder.name)):
        try:
            status, stat = (folder / "status").read_text(), (folder / "stat").read_text()
        except (FileNotFoundError, ProcessLookupError):
            continue  # the thread has just ended
        mask = next(line.split(":", 1)[1] for line in status.splitlines() if line.startswith("Cpus_allowed_list:"))
        # proc_pid_stat(5): fields 14 and 15, counted after the name, which may contain spaces and brackets.
        user, system = stat.rpartition(")")[2].split()[11:13]
        found.append(Thread(int(folder.name), parse_cpu_list(mask), (int(user) + int(system)) / tick))
    if not found:
        raise ProcessLookupError(f"no process {base.name}")
    return tuple(found)


def _read_pages(base: Path, nodes: Sequence[int]) -> tuple[Pages, tuple[str, ...]]:
    try:
        return parse_numa_maps((base / "numa_maps").read_text(errors="replace")), ()
    except OSError as error:
        what = f"memory placement: numa_maps cannot be read ({error.strerror})"
        return Pages((), ()), (what,) if nodes else ()


def parse_numa_maps(text: str) -> Pages:
    """Sum up ``/proc/PID/numa_maps`` (format: numa(7)), in bytes.

    Private memory is anonymous mappings, heap, stack, and file mappings all of whose pages were written (``anon``
    equals their number). The other file pages are in the page cache, shared by all processes and on the node of the
    process that read them first; a worker's policy does not move them, so they are counted separately.
    """
    private: dict[int, int] = {}
    shared: dict[int, int] = {}
    for line in text.splitlines():
        fields = dict(field.split("=", 1) for field in line.split() if "=" in field)
        on_nodes = {int(key[1:]): int(pages) for key, pages in fields.items() if re.fullmatch(r"N\d+", key)}
        page_bytes = int(fields.get("kernelpagesize_kB", "4")) * 1024
        is_private = "file" not in fields or int(fields.get("anon", "0")) >= sum(on_nodes.values())
        counts = private if is_private else shared
        for node, pages in on_nodes.items():
            counts[node] = counts.get(node, 0) + pages * page_bytes
    return Pages(tuple(sorted(private.items())), tuple(sorted(shared.items())))


def check_masks(found: Sequence[Thread], cpus: Sequence[int]) -> Iterator[str]:
    """The misses of the affinity masks: threads that may run elsewhere, and cpus that no thread may use."""
    planned = set(cpus)
    stray = [thread for thread in found if not planned.issuperset(thread.cpus)]
    if stray:
        outside = format_cpu_list(cpu for thread in stray for cpu in set(thread.cpus) - planned)
        yield (
            f"{len(stray)} of {len(found)} threads may run outside the planned cpus {format_cpu_list(cpus)}: "
            f"on {outside} (thread {_ids(stray)})"
        )
    unused = planned - {cpu for thread in found for cpu in thread.cpus}
    if unused:
        yield f"no thread may run on cpus {format_cpu_list(unused)} of the planned {format_cpu_list(cpus)}"


def check_memory(private: Sequence[tuple[int, int]], nodes: Sequence[int]) -> Iterator[str]:
    """The miss of private memory on other nodes than the planned ones."""
    share = _share(private, nodes)
    if share is not None and share < LOCAL_SHARE:
        elsewhere = ", ".join(f"{size >> 20} MiB on node {node}" for node, size in private if node not in nodes)
        yield (
            f"only {share:.1%} of its memory is on node {format_cpu_list(nodes)}, "
            f"expected at least {LOCAL_SHARE:.0%}: {elsewhere}"
        )


def check_threads(found: Sequence[Thread], planned: int, pid: int) -> Iterator[str]:
    """The misses of the number of threads: too few, far too many, or more that compute than planned."""
    if len(found) < planned:
        yield f"the process has {len(found)} threads; {planned} were planned to compute"
    most = THREADS_PER_PLANNED * planned + EXTRA_THREADS
    if len(found) > most:
        yield f"the process has {len(found)} threads; with {planned} planned to compute, at most {most} were expected"
    computing = count_computing(found, pid)
    if computing > planned:
        yield f"{computing} threads have computed, {planned} were planned: they share the planned cpus"


def count_computing(found: Sequence[Thread], pid: int) -> int:
    """How many threads have used a noticeable amount of CPU time; the main thread always counts."""
    others = [thread.cpu_seconds for thread in found if thread.id != pid]
    least = max([COMPUTED_SECONDS, *(COMPUTED_SHARE * seconds for seconds in others)])
    return 1 + sum(seconds >= least for seconds in others)


def check_openmp(threads: Mapping[str, int]) -> Iterator[str]:
    """The miss of several OpenMP runtimes with threads in one process; those that are only mapped are harmless."""
    active = [f"{path} ({count})" for path, count in threads.items() if count]
    if len(active) > 1:
        yield (
            f"{len(active)} OpenMP runtimes have started threads, which compete for the same cpus: " + ", ".join(active)
        )


def _count_openmp_threads(base: Path, openmp: Sequence[str]) -> tuple[Mapping[str, int], tuple[str, ...]]:
    """The threads of each runtime if there are several, and what could not be verified."""
    if len(openmp) < 2:
        return {}, ()
    what = f"which of {len(openmp)} OpenMP runtimes have threads"
    try:
        counts = count_openmp_threads(base)
    except OSError as error:
        return {}, (f"{what}: thread stacks cannot be read ({error.strerror})",)
    missing = (f"{what}: {counts.never_blocked} threads were never blocked",) if counts.never_blocked else ()
    return counts.by_runtime, missing


def _share(bytes_by_node: Iterable[tuple[int, int]], nodes: Sequence[int]) -> float | None:
    counts = dict(bytes_by_node)
    total = sum(counts.values())
    return sum(counts.get(node, 0) for node in nodes) / total if total and nodes else None


def _ids(threads: Sequence[Thread]) -> str:
    shown = ", ".join(str(thread.id) for thread in threads[:5])
    return shown if len(threads) <= 5 else f"{shown} and {len(threads) - 5} more"


def _rounded(share: float | None) -> float | None:
    return None if share is None else round(share, 4)
