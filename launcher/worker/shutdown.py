"""Ends a worker on EOF on its channel, and makes it ignore SIGINT and SIGTERM.

Separate because it must be in effect before torch is imported. Only the standard library may be imported here.
"""

from __future__ import annotations

import os
import select
import signal
import socket
import threading


def ignore_termination_signals() -> None:
    """Ignore SIGINT and SIGTERM. Ctrl-C goes to the whole process group and systemd signals the whole control group,
    but the front decides in which order its workers end."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)


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
