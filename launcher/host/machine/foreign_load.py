"""Measures how much of some cpus other programs use, and finds these programs.

Separate from ``activity_sample``, which examines the whole machine for a moment: this one runs all the time next to a
server, so that it reads two kinds of small files, and looks at all processes only when asked to.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterable, Sequence
from pathlib import Path

import psutil

from launcher.core.diagnosis.facts import Program
from launcher.core.diagnosis.interference_watch import CpuTime
from launcher.host.machine.activity_sample import cpu_ticks, process_of, take_sample
from launcher.host.machine.file_tree import Tree

SAMPLE_SECONDS = 1.0
# In /proc/stat; the last of them, and all others, are not time in which a program or the kernel ran.
USER, NICE, SYSTEM, IRQ, SOFTIRQ = 0, 1, 2, 5, 6


def read_cpu_time(cpus: Sequence[int], own: Iterable[int]) -> CpuTime:
    """The CPU time on ``cpus``, and that of the processes ``own``, so far."""
    tree = Tree(Path("/"))
    tick = os.sysconf("SC_CLK_TCK")
    by_cpu = cpu_ticks(tree.text("proc/stat") or "")
    busy = sum(by_cpu[cpu][kind] for cpu in cpus if cpu in by_cpu for kind in (USER, NICE, SYSTEM, IRQ, SOFTIRQ))
    found = (process_of(tree.text(f"proc/{pid}/stat")) for pid in own)
    return CpuTime(busy / tick, sum(one.ticks for one in found if one is not None) / tick, time.monotonic())


def other_programs(online: Sequence[int]) -> tuple[Program, ...]:
    """The programs that run on this machine, or are pinned, without this process, its ancestors and descendants.

    Blocks for ``SAMPLE_SECONDS``.
    """
    sample = take_sample(Tree(Path("/")), online, SAMPLE_SECONDS)
    own: set[int] = set()
    with contextlib.suppress(psutil.Error):
        own = {child.pid for child in psutil.Process().children(recursive=True)}
    return tuple(one for one in sample.programs if one.pid not in own)
