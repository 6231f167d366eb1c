"""Finds out which OpenMP runtime has started which threads of another process.

A runtime that is only mapped does no harm: torch needs its own libgomp even where another runtime is preloaded and
takes all its functions. Two that have both started threads do. The kernel does not know who started a thread, but
the bottom of the thread's stack does: the runtime's start function is there. So the stacks are read. What follows
from that is judged in ``host.process.verify``.
"""

from __future__ import annotations

import array
import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

OPENMP = re.compile(r"/lib(?:gomp|iomp5|omp5?)(?:-[0-9a-f]+)?\.so[.0-9]*(?: \(deleted\))?$")

# A thread that waits uses some hundred bytes of its stack; above them are its thread-local variables.
STACK_BYTES = 64 * 1024
# The stack pointer of a thread that runs is not told. A worker's team rests some milliseconds after a batch.
RESTLESS_SECONDS, LOOK_SECONDS = 1.0, 0.01


@dataclass(frozen=True, slots=True)
class Region:
    """One line of ``/proc/PID/maps``; ``file`` is device and inode."""

    start: int
    end: int
    executable: bool
    file: tuple[str, str]
    path: str


@dataclass(frozen=True, slots=True)
class Teams:
    """How many threads each runtime has started, by its path, and how many threads never rested to be looked at."""

    threads: Mapping[str, int]
    restless: int


def parse_maps(maps: str) -> tuple[Region, ...]:
    """All regions of a process, ascending."""
    found = []
    for line in maps.splitlines():
        fields = line.split(None, 5)
        start, end = (int(number, 16) for number in fields[0].split("-"))
        path = fields[5] if len(fields) == 6 else ""
        found.append(Region(start, end, "x" in fields[1], (fields[3], fields[4]), path))
    return tuple(found)


def parse_openmp(maps: str) -> tuple[str, ...]:
    """The OpenMP runtimes in ``/proc/PID/maps``, one path each; two names of one file count once."""
    return tuple(sorted(_runtimes(parse_maps(maps)).values()))


def _runtimes(regions: Sequence[Region]) -> dict[tuple[str, str], str]:
    found: dict[tuple[str, str], str] = {}
    for region in regions:
        if OPENMP.search(region.path):
            found.setdefault(region.file, region.path)
    return found


def count_teams(base: Path) -> Teams:
    """The threads of each OpenMP runtime in the process whose folder in /proc is ``base``.

    The main thread is nobody's. Takes milliseconds, up to a second where threads do not rest. Raises ``OSError`` when
    the stacks cannot be read.
    """
    regions = parse_maps((base / "maps").read_text(errors="replace"))
    runtimes = _runtimes(regions)
    code = [(r.start, r.end, runtimes[r.file]) for r in regions if r.executable and r.file in runtimes]
    tops, restless = _stack_pointers(base)
    counts = dict.fromkeys(runtimes.values(), 0)
    with (base / "mem").open("rb", buffering=0) as memory:
        for top in tops:
            owner = _starter(_words(memory, top, regions), code)
            if owner is not None:
                counts[owner] += 1
    return Teams(counts, restless)


def _stack_pointers(base: Path) -> tuple[list[int], int]:
    """Where the stacks of the threads end that wait, and how many threads ran whenever they were looked at."""
    waiting = {task.name for task in (base / "task").iterdir()} - {base.name}
    found: list[int] = []
    deadline = time.monotonic() + RESTLESS_SECONDS
    while True:
        for name in sorted(waiting):
            try:
                # proc_pid_syscall(5): the last two fields are stack pointer and program counter.
                fields = (base / "task" / name / "syscall").read_text().split()
            except (FileNotFoundError, ProcessLookupError):
                waiting.discard(name)  # it has ended
                continue
            if len(fields) >= 3:
                found.append(int(fields[-2], 16))
                waiting.discard(name)
        if not waiting or time.monotonic() >= deadline:
            return found, len(waiting)
        time.sleep(LOOK_SECONDS)


def _words(memory: BinaryIO, top: int, regions: Sequence[Region]) -> array.array[int]:
    """The words from the end of a stack to its start; ``L`` is as wide as a pointer on Linux."""
    words = array.array("L")
    end = next((region.end for region in regions if region.start <= top < region.end), top)
    memory.seek(top)
    data = memory.read(min(end - top, STACK_BYTES))
    words.frombytes(data[: len(data) // words.itemsize * words.itemsize])
    return words


def _starter(words: Sequence[int], code: Sequence[tuple[int, int, str]]) -> str | None:
    """Whose code the word next to the stack's start points into: that of the function that the thread began with."""
    for word in reversed(words):
        for start, end, runtime in code:
            if start <= word < end:
                return runtime
    return None
