"""Counts the threads that each OpenMP runtime has started in another process.

A runtime that is only mapped does no harm: torch needs its own libgomp even if another runtime is preloaded and
provides all its functions. Two runtimes that have both started threads do harm. The kernel does not record who started
a thread, but the base of the thread's stack contains a return address into the runtime's start function. So the stacks
are read. ``host.process.verify_binding`` evaluates the counts.
"""

from __future__ import annotations

import array
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from launcher.core.planning.preload import OPENMP_RUNTIMES

# A waiting thread uses a few hundred bytes of its stack; its thread-local variables are above them.
STACK_BYTES = 64 * 1024
# The kernel does not report the stack pointer of a running thread. A worker's OpenMP threads block a few milliseconds
# after a batch, so they are sampled until all have been seen blocked, or for this long.
SAMPLING_SECONDS, SAMPLING_INTERVAL_SECONDS = 1.0, 0.01


@dataclass(frozen=True, slots=True)
class Region:
    """One line of ``/proc/PID/maps``; ``file`` is device and inode."""

    start: int
    end: int
    executable: bool
    file: tuple[str, str]
    path: str


@dataclass(frozen=True, slots=True)
class OpenMPThreads:
    """How many threads each runtime has started, by its path, and how many threads were never seen blocked."""

    by_runtime: Mapping[str, int]
    never_blocked: int


def parse_maps(maps: str) -> tuple[Region, ...]:
    """All regions of a process, in ascending order."""
    found = []
    for line in maps.splitlines():
        fields = line.split(None, 5)
        start, end = (int(number, 16) for number in fields[0].split("-"))
        path = fields[5] if len(fields) == 6 else ""
        found.append(Region(start, end, "x" in fields[1], (fields[3], fields[4]), path))
    return tuple(found)


def parse_openmp(maps: str) -> tuple[str, ...]:
    """The paths of the OpenMP runtimes in ``/proc/PID/maps``; two names of one file count once."""
    return tuple(sorted(_runtimes(parse_maps(maps)).values()))


def _runtimes(regions: Sequence[Region]) -> dict[tuple[str, str], str]:
    found: dict[tuple[str, str], str] = {}
    for region in regions:
        if OPENMP_RUNTIMES.fullmatch(region.path.removesuffix(" (deleted)").rpartition("/")[2]):
            found.setdefault(region.file, region.path)
    return found


def count_openmp_threads(base: Path) -> OpenMPThreads:
    """The threads of each OpenMP runtime in the process whose folder in /proc is ``base``.

    The main thread belongs to none. Takes milliseconds, up to a second if threads do not block. Raises ``OSError``
    when the stacks cannot be read.
    """
    regions = parse_maps((base / "maps").read_text(errors="replace"))
    runtimes = _runtimes(regions)
    code = [(r.start, r.end, runtimes[r.file]) for r in regions if r.executable and r.file in runtimes]
    pointers, never_blocked = _stack_pointers(base)
    counts = dict.fromkeys(runtimes.values(), 0)
    with (base / "mem").open("rb", buffering=0) as memory:
        for pointer in pointers:
            owner = _starter(_words(memory, pointer, regions), code)
            if owner is not None:
                counts[owner] += 1
    return OpenMPThreads(counts, never_blocked)


def _stack_pointers(base: Path) -> tuple[list[int], int]:
    """The stack pointers of all threads that were seen blocked, and the number of threads that were not."""
    remaining = {task.name for task in (base / "task").iterdir()} - {base.name}
    found: list[int] = []
    deadline = time.monotonic() + SAMPLING_SECONDS
    while True:
        for name in sorted(remaining):
            try:
                # proc_pid_syscall(5): the last two fields are stack pointer and program counter.
                fields = (base / "task" / name / "syscall").read_text().split()
            except (FileNotFoundError, ProcessLookupError):
                remaining.discard(name)  # it has ended
                continue
            if len(fields) >= 3:
                found.append(int(fields[-2], 16))
                remaining.discard(name)
        if not remaining or time.monotonic() >= deadline:
            return found, len(remaining)
        time.sleep(SAMPLING_INTERVAL_SECONDS)


def _words(memory: BinaryIO, pointer: int, regions: Sequence[Region]) -> array.array[int]:
    """The words from the stack pointer to the base of the stack; ``L`` is as wide as a pointer on Linux."""
    words = array.array("L")
    end = next((region.end for region in regions if region.start <= pointer < region.end), pointer)
    memory.seek(pointer)
    data = memory.read(min(end - pointer, STACK_BYTES))
    words.frombytes(data[: len(data) // words.itemsize * words.itemsize])
    return words


def _starter(words: Sequence[int], code: Sequence[tuple[int, int, str]]) -> str | None:
    """The runtime into whose code the word nearest to the stack's base points: it has the thread's start function."""
    for word in reversed(words):
        for start, end, runtime in code:
            if start <= word < end:
                return runtime
    return None
