"""What a worker that is late does: whether it is stopped, waits, or computes.

From outside, because a worker that hangs cannot be asked. The processes that it has started belong to it, such as the
compiler of ``torch.compile``. What follows from its state is decided in ``core.scheduling.hang_detection``.
"""

from __future__ import annotations

import contextlib
import time
from typing import Literal

import psutil

Activity = Literal["stopped", "inactive", "active"]

# The time between two readings of the CPU time, whose unit is 10 ms on Linux.
SECONDS = 0.4
# Readings of the state in this time: some tools limit the CPU time of a process by stopping it again and again.
READINGS = 8
# A process that waits uses no CPU time; 20 ms may be a thread that looks whether the front still exists.
INACTIVE_CPU_SECONDS = 0.02
STOPPED = frozenset({psutil.STATUS_STOPPED, psutil.STATUS_TRACING_STOP})
# In these states, a process would continue if the machine let it: it waits for a CPU, or for a disk.
HELD_UP = frozenset({psutil.STATUS_RUNNING, psutil.STATUS_DISK_SLEEP})


def watch_activity(pid: int, seconds: float = SECONDS) -> Activity | None:
    """What the process does in the next ``seconds``; None if it does not exist. Blocks; call it in a thread."""
    try:
        process = psutil.Process(pid)
        before = _cpu_seconds(process)
        stopped = True
        for _ in range(READINGS):
            time.sleep(seconds / READINGS)
            stopped = stopped and process.status() in STOPPED
        if stopped:
            return "stopped"
        used = _cpu_seconds(process) - before
        return "active" if used > INACTIVE_CPU_SECONDS or _is_held_up(process) else "inactive"
    except psutil.NoSuchProcess:
        return None
    except psutil.Error:  # it cannot be inspected
        return "active"


def _cpu_seconds(process: psutil.Process) -> float:
    """The CPU time of the process and of all processes that it has started."""
    times = process.cpu_times()
    total = float(times.user + times.system + times.children_user + times.children_system)
    for child in process.children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess):
            total += sum(child.cpu_times()[:4])
    return total


def _is_held_up(process: psutil.Process) -> bool:
    """Whether a thread is ready to run, or waits for a disk."""
    threads = process.threads()
    for thread in threads:
        with contextlib.suppress(psutil.NoSuchProcess):
            if psutil.Process(thread.id).status() in HELD_UP:
                return True
    return False
