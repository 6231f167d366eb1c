"""Becomes a foreign program: ``python -I -S exec_bound.py [--cpus 0-3] [--memory bind --nodes 0] -- PROGRAM ARGS…``.

What has to be done between fork and exec cannot be done in the launcher, which has threads by then: the death signal,
and the binding where there is no numactl. So this small program does it to itself and is then replaced. It runs
isolated (-I -S): neither the folder it is started in nor the user's Python settings, which are the program's, can
change it. With ``--parent PID`` it ends when that process does. Exit status when the program does not come to be: as
a shell has it, 127 not found, 126 not executable; else 2 for wrong usage, 3 when the kernel refuses.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Sequence

EXIT_USAGE, EXIT_REFUSED, EXIT_NOT_EXECUTABLE, EXIT_NOT_FOUND = 2, 3, 126, 127

# Python ignores these two, and what is ignored stays so in the program: `yes | head` would never end.
IGNORED_BY_PYTHON = (signal.SIGPIPE, signal.SIGXFSZ)


def main(words: Sequence[str]) -> int:
    """Bind this process and replace it; returns an exit status only when that fails."""
    if signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl-C is no reason for a traceback
    # The launcher's own folder comes last, and only here: isolated, Python does not know it.
    sys.path.append(os.path.abspath(os.path.join(os.path.dirname(__file__), "../../..")))  # noqa: PTH100, PTH118, PTH120
    from launcher import pinning
    from launcher.core.machine.cpuset import parse_cpu_list
    from launcher.errors import MachineError

    options, program = _split(words)
    if not program:
        return _fail("no program is given after --", EXIT_USAGE)
    try:
        if "--parent" in options:
            pinning.die_with_parent()
            if os.getppid() != int(options["--parent"]):
                return _fail("the launcher is gone", EXIT_REFUSED)  # before it could take effect
        if "--cpus" in options:
            pinning.bind_cpus(parse_cpu_list(options["--cpus"]))
        if "--memory" in options:
            pinning.bind_memory(options["--memory"], parse_cpu_list(options["--nodes"]))
    except MachineError as error:
        return _fail(str(error), EXIT_REFUSED)
    for number in IGNORED_BY_PYTHON:
        signal.signal(number, signal.SIG_DFL)
    try:
        os.execvp(program[0], program)
    except FileNotFoundError as error:
        return _fail(f"{program[0]}: {error.strerror}", EXIT_NOT_FOUND)
    except OSError as error:
        return _fail(f"{program[0]}: {error.strerror}", EXIT_NOT_EXECUTABLE)


def _split(words: Sequence[str]) -> tuple[dict[str, str], list[str]]:
    """Own options, each with a value, and the program: everything after the first ``--``."""
    end = words.index("--") if "--" in words else len(words)
    return dict(zip(words[:end:2], words[1:end:2], strict=True)), list(words[end + 1 :])


def _fail(reason: str, status: int) -> int:
    print(f"launch run: {reason}", file=sys.stderr)
    return status


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
