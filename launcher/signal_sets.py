"""The signals to which no process of the launcher may react by dying, because nothing here uses them.

Separate, and below ``host``, ``worker`` and ``serve``, because the processes of all three need the same list. The
default action of these signals kills or suspends a process, and with it the requests that it would have answered. Only
the standard library may be imported here.
"""

from __future__ import annotations

import signal

UNUSED_SIGNALS: tuple[int, ...] = (
    signal.SIGUSR1,
    signal.SIGUSR2,
    signal.SIGALRM,
    signal.SIGVTALRM,
    signal.SIGPROF,
    signal.SIGIO,
    signal.SIGTSTP,
    *(getattr(signal, name) for name in ("SIGSTKFLT",) if hasattr(signal, name)),  # not on every architecture
    *range(signal.SIGRTMIN, signal.SIGRTMAX + 1),
)

# Sent to a background process that uses its terminal. They must be ignored: with a handler, the same read or write
# would be interrupted again and again.
TERMINAL_STOPS = (signal.SIGTTIN, signal.SIGTTOU)


def name_of(number: int) -> str:
    """The name of a signal, such as ``SIGTERM`` or ``SIGRTMIN+1``."""
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"SIGRTMIN+{number - signal.SIGRTMIN}"
