"""Ends a worker on EOF on its channel, and makes it ignore signals.

Separate because it must be in effect before torch is imported. Only the standard library, and modules that need no
more, may be imported here.
"""

from __future__ import annotations

import os
import select
import signal
import socket
import threading

from launcher.signal_sets import TERMINAL_STOPS, UNUSED_SIGNALS

# Only the front ends a worker: it knows which requests must still be answered, and in which order its workers end.
# Ctrl-C goes to the whole process group, and service managers signal the whole control group.
TERMINATION = (signal.SIGINT, signal.SIGTERM, signal.SIGQUIT, signal.SIGHUP, signal.SIGPWR)


def ignore_signals() -> None:
    """Ignore all signals whose default action ends or suspends a process, except those for faults of its own."""
    for number in (*TERMINATION, *UNUSED_SIGNALS, *TERMINAL_STOPS):
        signal.signal(number, signal.SIG_IGN)


def has_hung_up(channel: socket.socket) -> bool:
    """Whether the peer has closed the channel already: the front may have died before ``die_with_parent`` was in
    effect."""
    poller = select.poll()
    poller.register(channel, 0)
    return any(events & (select.POLLHUP | select.POLLERR) for _, events in poller.poll(0))


def exit_on_hangup(channel: socket.socket) -> threading.Thread:
    """Start a thread that ends the process with status 0 as soon as the peer has closed the channel.

    The main thread cannot notice that while it imports, loads or computes. The death signal does not cover a front
    that lives on but has given up this worker, nor an intermediate parent that outlives the front.

    The thread sleeps in the kernel and data does not wake it: with an empty event mask, poll reports only POLLHUP and
    POLLERR, which cannot be masked. POLLHUP requires that both directions are shut down, so a front that sends
    ``Stop`` and shuts down its writing direction still receives its results.
    """

    def watch() -> None:
        poller = select.poll()
        poller.register(channel, 0)
        poller.poll()
        os._exit(0)

    thread = threading.Thread(target=watch, name="hang-up watch", daemon=True)
    thread.start()
    return thread
