"""What ties a worker to its front beside the death signal: signals are left to the front, a hang-up ends the worker.

Separate because it must be in force before torch is imported. Only the standard library may enter here.
"""

from __future__ import annotations

import os
import select
import signal
import socket
import threading


def leave_signals_to_the_front() -> None:
    """Ignore SIGINT and SIGTERM: Ctrl-C reaches the whole process group, systemd signals the whole control group,
    and the front alone decides in which order its workers end."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)


def has_hung_up(channel: socket.socket) -> bool:
    """Whether the other side is gone already; it may have died before ``die_with_parent`` took effect."""
    poller = select.poll()
    poller.register(channel, 0)
    return any(events & (select.POLLHUP | select.POLLERR) for _, events in poller.poll(0))


def exit_on_hangup(channel: socket.socket) -> threading.Thread:
    """Start a thread that ends the process, with status 0, as soon as the other side has closed the channel.

    The main thread cannot see that while it imports, loads or computes, and the death signal does not cover a front
    that lives on but has given this worker up, nor a starter in between that outlives the front. The thread sleeps in
    the kernel and is not woken by data: POLLHUP alone is waited for, and that one cannot be masked. It comes only
    when both directions are shut, so a front that sends ``Stop`` and closes its writing half still gets its results.
    """

    def watch() -> None:
        poller = select.poll()
        poller.register(channel, 0)
        poller.poll()
        os._exit(0)

    thread = threading.Thread(target=watch, name="hang-up watch", daemon=True)
    thread.start()
    return thread
