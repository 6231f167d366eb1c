"""Binds itself, then executes a program: ``python -I -S exec_bound.py [--cpus 0-3] [--memory bind --nodes 0] --
WORDS``.

Some steps belong between fork and exec: the parent-death signal, and the binding if there is no numactl. The
launcher cannot run Python code there safely, because it has threads by then. So this small program does it to itself
and then calls exec. It runs isolated (-I -S), unaffected by the working directory and by the user's Python settings,
which are meant for the program. With ``--parent PID`` it is killed when that process exits. Exit status when the
program cannot be executed, as in a shell: 127 not found, 126 not executable; 2 for wrong usage, 3 when the kernel
refuses.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Sequence

EXIT_USAGE, EXIT_MACHINE, EXIT_NOT_EXECUTABLE, EXIT_NOT_FOUND = 2, 3, 126, 127

# Python ignores the first two, the launcher the others, and exec keeps ignored signals ignored: without SIGPIPE,
# `yes | head` would never end.
IGNORED_BY_LAUNCHER = (signal.SIGPIPE, signal.SIGXFSZ, signal.SIGTTIN, signal.SIGTTOU)


def main(words: Sequence[str]) -> int:
    """Bind this process and replace it with the program; returns an exit status only if that fails."""
    if signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.SIG_DFL)  # no traceback on Ctrl-C
    # An isolated Python does not search the launcher's folder; it comes last.
    sys.path.append(os.path.abspath(os.path.join(os.path.dirname(__file__), "../../..")))  # noqa: PTH100, PTH118, PTH120
    from launcher import pinning
    from launcher.core.machine.cpuset import parse_cpu_list
    from launcher.errors import MachineError

    options, program = _split(words)
    if not program:
        return _fail("no program after --", EXIT_USAGE)
    try:
        if "--parent" in options:
            try:
                pinning.die_with_parent()
            except MachineError as error:  # a sandbox: the launcher kills the program, unless it is killed itself
                print(f"launch run: warning: {error}", file=sys.stderr)
            if os.getppid() != int(options["--parent"]):
                return _fail("the launcher has exited", EXIT_MACHINE)  # before the death signal was set
        if "--cpus" in options:
            pinning.bind_cpus(parse_cpu_list(options["--cpus"]))
        if "--memory" in options:
            pinning.bind_memory(options["--memory"], parse_cpu_list(options["--nodes"]))
    except MachineError as error:
        return _fail(str(error), EXIT_MACHINE)
    for number in IGNORED_BY_LAUNCHER:
        signal.signal(number, signal.SIG_DFL)
    try:
        os.execvp(program[0], program)
    except FileNotFoundError as error:
        return _fail(f"{program[0]}: {error.strerror}", EXIT_NOT_FOUND)
    except OSError as error:
        return _fail(f"{program[0]}: {error.strerror}", EXIT_NOT_EXECUTABLE)


def _split(words: Sequence[str]) -> tuple[dict[str, str], list[str]]:
    """The options, each with a value, and the program: everything after the first ``--``."""
    end = words.index("--") if "--" in words else len(words)
    return dict(zip(words[:end:2], words[1:end:2], strict=True)), list(words[end + 1 :])


def _fail(reason: str, status: int) -> int:
    print(f"launch run: {reason}", file=sys.stderr)
    return status


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
