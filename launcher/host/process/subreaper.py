"""Sees to it that nothing is left of a run, however it ends: two processes that outlive each other for a moment.

`keep` forks. The child does the work; the parent, the keeper, waits for it, passes signals on, and ends with its
status. Both adopt the orphans below them, so that even what a program has made a daemon stays within reach. When the
keeper is killed, the child sees the end of a pipe and ends everything; when the child is killed, the kernel kills the
programs (their death signal), and the keeper inherits whatever they had started and ends it. Only when both are
killed at once can a daemon escape. No policy may enter here.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NoReturn

from launcher.pinning import adopt_orphans

ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
FOR_PROGRAMS = (signal.SIGUSR1, signal.SIGUSR2)


def heard(numbers: Sequence[signal.Signals]) -> set[signal.Signals]:
    """Those of the signals that are not ignored; nohup has SIGHUP ignored, and means it."""
    return {number for number in numbers if signal.getsignal(number) is not signal.SIG_IGN}


def keep() -> int:
    """Returns in the child only: a descriptor that reads end-of-file when the keeper is gone.

    The parent never returns; it exits with the child's status when the child has ended and nothing is left. To be
    called before any thread exists. Raises ``MachineError`` where orphans cannot be adopted.
    """
    adopt_orphans()
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    lifeline, held = os.pipe()  # not inherited by programs
    passed_on = heard((*ENDING, *FOR_PROGRAMS))
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {*passed_on, signal.SIGCHLD})
    child = os.fork()
    if child:
        # Both sides do it, so that it is done whoever comes first. Ctrl-C then reaches the keeper alone, and the
        # child hears of it once.
        with contextlib.suppress(OSError):
            os.setpgid(child, child)
        os.close(lifeline)
        _keep(child, passed_on)
    os.setpgid(0, 0)
    os.close(held)
    adopt_orphans()
    if signal.SIGINT in passed_on:
        signal.signal(signal.SIGINT, signal.SIG_DFL)  # until the loop has its own: to end without a traceback
    signal.pthread_sigmask(signal.SIG_SETMASK, before)
    return lifeline


def _keep(child: int, passed_on: set[signal.Signals]) -> NoReturn:
    while True:
        number = signal.sigwait({*passed_on, signal.SIGCHLD})
        if number != signal.SIGCHLD:
            with contextlib.suppress(ProcessLookupError):
                os.kill(child, number)
            continue
        for pid, status in reap():
            if pid == child:
                end_descendants()
                os._exit(status if status >= 0 else 128 - status)


def reap() -> Iterator[tuple[int, int]]:
    """Every child that has ended, with its status (negative for a signal), reaped."""
    with contextlib.suppress(ChildProcessError):
        while True:
            pid, status = os.waitpid(-1, os.WNOHANG)
            if pid == 0:
                return
            yield pid, os.waitstatus_to_exitcode(status)


def end_descendants() -> None:
    """Kill and reap every process below this one, which must adopt orphans; returns when there is none that it may
    kill."""
    while sum(_killed(pid) for pid in children()):  # all of them, then again
        # Whose parent was just killed is ours now, and comes next.
        with contextlib.suppress(ChildProcessError):
            os.waitpid(-1, 0)


def _killed(pid: int) -> bool:
    try:
        os.kill(pid, signal.SIGKILL)
    except (ProcessLookupError, PermissionError):
        return False
    return True


def children() -> list[int]:
    """The pids of this process's children, zombies too."""
    own = str(os.getpid())
    found = []
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            with contextlib.suppress(OSError):
                # proc_pid_stat(5): the parent is the second field after the name, which may hold anything.
                if (folder / "stat").read_text().rpartition(")")[2].split()[1] == own:
                    found.append(int(folder.name))
    return found
