"""Describes how a process exited. Separate so that modules that start no worker need not import the one that does."""

from __future__ import annotations

import signal


def describe_status(status: int) -> str:
    """``exit status 4`` or ``killed by SIGSEGV``, for an exit status as ``subprocess`` gives it."""
    if status >= 0:
        return f"exit status {status}"
    try:
        return f"killed by {signal.Signals(-status).name}"
    except ValueError:
        return f"killed by signal {-status}"
