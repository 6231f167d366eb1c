"""Leaves no process behind, however a run ends: ``launch run`` consists of two processes that clean up after each
other.

`fork_subreaper` forks. The child does the work. The parent, the subreaper, forwards signals to it, waits for it and
exits with its status. Both adopt orphans (PR_SET_CHILD_SUBREAPER), so that even a program's daemon stays their
descendant. When the subreaper is killed, the child reads end-of-file from a pipe and kills everything. When the child
is killed, the kernel kills the programs (their parent-death signal), and the subreaper inherits and kills what they had
started. Only when both are killed at once can a daemon survive. Policy does not belong here.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NoReturn

from launcher.core.lifecycle.program import exit_code
from launcher.errors import MachineError
from launcher.host.log import write_line
from launcher.pinning import adopt_orphans
from launcher.signal_sets import TERMINAL_STOPS, UNUSED_SIGNALS

# End the run, with a grace period; sent to the programs as they are.
STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT)
# End the run as well, but mean the launcher or the machine; programs get SIGTERM.
OWN_STOP_SIGNALS = (signal.SIGPWR, signal.SIGXCPU)
# Only sent to the programs.
USER_SIGNALS = (signal.SIGUSR1, signal.SIGUSR2)
# Have no effect. Ctrl-Z suspends the launcher, as it does every program.
IGNORED_SIGNALS = tuple(number for number in UNUSED_SIGNALS if number not in (*USER_SIGNALS, signal.SIGTSTP))


def not_ignored(numbers: Sequence[int]) -> set[int]:
    """The signals that are not ignored; under nohup, SIGHUP is ignored and must remain so."""
    return {number for number in numbers if signal.getsignal(number) is not signal.SIG_IGN}


def fork_subreaper() -> int:
    """Returns only in the child: a descriptor that reads end-of-file when the subreaper is gone.

    The parent never returns; it exits with the child's status once the child has exited and no descendant is left. Must
    be called before any thread exists. In a sandbox in which orphans cannot be adopted, daemons of the programs may
    survive; a warning says so.
    """
    try:
        adopt_orphans()
    except MachineError as error:
        write_line(f"launch: warning: {error}, so what the programs start in the background may outlive them")
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    lifeline, write_end = os.pipe()  # not inherited by programs
    forwarded = not_ignored((*STOP_SIGNALS, *OWN_STOP_SIGNALS, *USER_SIGNALS))
    for number in not_ignored(IGNORED_SIGNALS):
        signal.signal(number, _do_nothing)  # not SIG_IGN, which programs would inherit
    for number in TERMINAL_STOPS:
        signal.signal(number, signal.SIG_IGN)
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {*forwarded, signal.SIGCHLD})
    child = os.fork()
    if child:
        # Both processes do this, because either may run first. Ctrl-C then reaches only the subreaper, and the child
        # receives one signal instead of two.
        with contextlib.suppress(OSError):
            os.setpgid(child, child)
        os.close(lifeline)
        _reap_until_exit(child, forwarded)
    os.setpgid(0, 0)
    os.close(write_end)
    with contextlib.suppress(MachineError):  # reported above
        adopt_orphans()
    if signal.SIGINT in forwarded:
        signal.signal(signal.SIGINT, signal.SIG_DFL)  # until the loop installs its handler: no traceback
    signal.pthread_sigmask(signal.SIG_SETMASK, before)
    return lifeline


def _do_nothing(_number: int, _frame: object) -> None:
    """The handler of signals without effect."""


def _reap_until_exit(child: int, forwarded: set[int]) -> NoReturn:
    while True:
        number = signal.sigwait({*forwarded, signal.SIGCHLD})
        if number != signal.SIGCHLD:
            with contextlib.suppress(ProcessLookupError):
                os.kill(child, number)
            continue
        for pid, status in reap():
            if pid == child:
                kill_descendants()
                os._exit(exit_code(status))


def reap() -> Iterator[tuple[int, int]]:
    """Reap every child that has exited; yields its pid and status (negative for a signal)."""
    with contextlib.suppress(ChildProcessError):
        while True:
            pid, status = os.waitpid(-1, os.WNOHANG)
            if pid == 0:
                return
            yield pid, os.waitstatus_to_exitcode(status)


def kill_descendants() -> None:
    """Kill and reap every descendant of this process, which must adopt orphans; returns when none is left that this
    user may kill."""
    while sum(_kill(pid) for pid in children()):  # sum(), not any(): every round signals all of them
        # The children of a killed process are adopted, and killed in the next round.
        with contextlib.suppress(ChildProcessError):
            os.waitpid(-1, 0)


def _kill(pid: int) -> bool:
    try:
        os.kill(pid, signal.SIGKILL)
    except (ProcessLookupError, PermissionError):
        return False
    return True


def children() -> list[int]:
    """The pids of this process's children, including zombies."""
    own = str(os.getpid())
    found = []
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            with contextlib.suppress(OSError):
                # proc_pid_stat(5): the parent is the second field after the name, which may contain any character.
                if (folder / "stat").read_text().rpartition(")")[2].split()[1] == own:
                    found.append(int(folder.name))
    return found
