"""Samples the machine for a short time: the load of each cpu, running programs, and programs pinned to some cpus.

Separate from the reading of settings, because it takes time and works only on the machine itself. What counts as busy
is decided in ``core.diagnosis``. Formats: proc_stat(5), proc_pid_stat(5), proc_vmstat(5).
"""

from __future__ import annotations

import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path, PurePath

from launcher.core.diagnosis.facts import Program, Sample
from launcher.host.machine.file_tree import Tree

NOTICEABLE = 0.02  # cpus; the kernel counts in ticks of 10 ms
KERNEL_THREAD = 0x00200000  # PF_KTHREAD in the kernel's include/linux/sched.h
WORKER = "launcher.worker"
NAME_LENGTH = 48


@dataclass(frozen=True, slots=True)
class _Process:
    parent: int
    ticks: int
    started: str
    command: str


@dataclass(frozen=True, slots=True)
class _Counters:
    cpus: Mapping[int, Sequence[int]]
    processes: Mapping[int, _Process]
    swapped: int | None
    at: float


def take_sample(tree: Tree, online: Sequence[int], seconds: float) -> Sample:
    """Activity on this machine during ``seconds``, except that of this process and its ancestors."""
    before = _count(tree)
    time.sleep(seconds)
    after = _count(tree)
    busy, steal = _shares(before, after)
    swapped = None if before.swapped is None or after.swapped is None else after.swapped - before.swapped
    elapsed = after.at - before.at
    return Sample(elapsed, busy, steal, _programs(before, after, elapsed, online), swapped)


def _count(tree: Tree) -> _Counters:
    processes = {}
    for pid in tree.numbered("proc", ""):
        process = process_of(tree.text(f"proc/{pid}/stat"))
        if process is not None:
            processes[pid] = process
    return _Counters(cpu_ticks(tree.text("proc/stat") or ""), processes, _swapped(tree), time.monotonic())


def cpu_ticks(text: str) -> dict[int, Sequence[int]]:
    """For each cpu: ticks of user, nice, system, idle, iowait, irq, softirq, steal."""
    found: dict[int, Sequence[int]] = {}
    for line in text.splitlines():
        name, *words = line.split()
        if name.startswith("cpu") and name[3:].isdecimal() and len(words) >= 7:
            found[int(name[3:])] = [*map(int, words[:8]), 0][:8]
    return found


def _swapped(tree: Tree) -> int | None:
    fields = dict(line.split(" ", 1) for line in (tree.text("proc/vmstat") or "").splitlines() if " " in line)
    if "pswpin" not in fields or "pswpout" not in fields:
        return None
    return int(fields["pswpin"]) + int(fields["pswpout"])


def process_of(stat: str | None) -> _Process | None:
    """None for a process that has ended, and for kernel threads."""
    if not stat:
        return None
    head, _, tail = stat.rpartition(")")  # the name may contain spaces and parentheses
    words = tail.split()
    if len(words) < 20 or int(words[6]) & KERNEL_THREAD or words[0] in "ZX":
        return None
    return _Process(int(words[1]), int(words[11]) + int(words[12]), words[19], head.partition("(")[2])


def _shares(before: _Counters, after: _Counters) -> tuple[tuple[tuple[int, float], ...], tuple[tuple[int, float], ...]]:
    busy, steals = [], []
    for cpu in sorted(before.cpus.keys() & after.cpus.keys()):
        spent = [max(0, new - old) for old, new in zip(before.cpus[cpu], after.cpus[cpu], strict=True)]
        user, nice, system, _, _, irq, softirq, steal = spent
        total = sum(spent)
        busy.append((cpu, (user + nice + system + irq + softirq) / total if total else 0.0))
        steals.append((cpu, steal / total if total else 0.0))
    return tuple(busy), tuple(steals)


def _programs(before: _Counters, after: _Counters, elapsed: float, online: Sequence[int]) -> tuple[Program, ...]:
    own = _own(after.processes)
    tick = os.sysconf("SC_CLK_TCK")
    found = []
    for pid, process in after.processes.items():
        if pid in own:
            continue
        old = before.processes.get(pid)
        since = old.ticks if old is not None and old.started == process.started else 0
        share = (process.ticks - since) / tick / elapsed
        program = _program(pid, process, share, online)
        if program is not None:
            found.append(program)
    return tuple(found)


def _own(processes: Mapping[int, _Process]) -> set[int]:
    """This process and its ancestors: shell, terminal, wrappers."""
    own = {0}
    pid = os.getpid()
    while pid not in own:
        own.add(pid)
        pid = processes[pid].parent if pid in processes else 0
    return own


def _program(pid: int, process: _Process, share: float, online: Sequence[int]) -> Program | None:
    """None for a program that is idle and not pinned, and for one that has ended."""
    folder = Path("/proc") / str(pid)
    try:
        cpus = tuple(sorted(os.sched_getaffinity(pid)))
        if share < NOTICEABLE and set(cpus) >= set(online):
            return None
        words = (folder / "cmdline").read_bytes().decode("utf-8", "replace").split("\0")
        foreign = _owner((folder / "status").read_text(errors="replace")) != os.geteuid()
    except OSError:
        return None
    front = process.parent if ("-m", WORKER) in pairwise(words) else None
    return Program(pid, describe(words, process.command), cpus, share, front, foreign)


def _owner(status: str) -> int:
    """The user of a process; the owner of its directory in /proc may be root even if the process is not."""
    return int(next(line.split()[2] for line in status.splitlines() if line.startswith("Uid:")))


def describe(words: Sequence[str], command: str) -> str:
    """A readable name such as ``python -m pytest``, without arguments, which may contain secrets."""
    if not words or not words[0]:
        return command
    name = PurePath(words[0]).name
    if name.startswith("python"):
        for index, word in enumerate(words[1:], 1):
            if word == "-m" and index + 1 < len(words):
                return f"{name} -m {words[index + 1]}"[:NAME_LENGTH]
            if word == "-c":
                return f"{name} -c"
            if not word.startswith("-"):
                return f"{name} {PurePath(word).name}".strip()[:NAME_LENGTH]
    return name[:NAME_LENGTH]
