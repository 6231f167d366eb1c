"""How a process ended, in words. Separate so that those who start no worker need not import what starts one."""

from __future__ import annotations

import signal


def describe_status(status: int) -> str:
    """``exit status 4`` or ``killed by SIGSEGV``, from a return code as ``subprocess`` gives it."""
    if status >= 0:
        return f"exit status {status}"
    try:
        return f"killed by {signal.Signals(-status).name}"
    except ValueError:
        return f"killed by signal {-status}"
