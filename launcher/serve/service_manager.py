"""Reports the state of the server to its service manager, by the protocol of ``sd_notify(3)``.

Separate because a server without a service manager needs none of it. systemd passes a datagram socket in
``NOTIFY_SOCKET`` and the watchdog's interval in ``WATCHDOG_USEC``. Both are meant for this process alone, so they are
removed from the environment, which workers inherit. What is reported, and when, is decided by the server.
"""

from __future__ import annotations

import logging
import os
import socket
import time
from collections import deque
from collections.abc import MutableMapping

log = logging.getLogger("launcher.serve")

# Messages kept while the queue of the service manager is full; older ones are dropped.
UNSENT_MESSAGES = 16


class ServiceManager:
    """The service manager that has started this process, or none, to which nothing is sent."""

    def __init__(self, environment: MutableMapping[str, str] = os.environ) -> None:
        """Takes its variables out of ``environment``."""
        self._address = environment.pop("NOTIFY_SOCKET", "")
        microseconds, pid = environment.pop("WATCHDOG_USEC", ""), environment.pop("WATCHDOG_PID", "")
        self._socket: socket.socket | None = None
        self._unsent: deque[bytes] = deque(maxlen=UNSENT_MESSAGES)
        self._status = ""
        self._ready = False
        # sd_watchdog_enabled(3): a pid that is not ours means that the variables are those of a parent process.
        ours = pid in ("", str(os.getpid()))
        self.watchdog_seconds = int(microseconds) / 1e6 if microseconds.isdecimal() and ours and self._address else None
        if self._address and self._address[0] not in "/@":
            log.warning("NOTIFY_SOCKET %s: must be a path or begin with @; nothing is sent", self._address)
            self._address = ""
        if self._address:
            if self._address[0] == "@":  # in the abstract namespace, which has no file
                self._address = "\0" + self._address[1:]
            self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)

    @property
    def present(self) -> bool:
        """Whether there is a service manager."""
        return self._socket is not None

    def ready(self) -> None:
        """The server can answer requests."""
        self._ready = True
        self._send("READY=1", f"MAINPID={os.getpid()}")

    def reloading(self) -> None:
        """The configuration is being read again; ``reloaded`` must follow. Not sent before ``ready``."""
        if self._ready:
            self._send("RELOADING=1", f"MONOTONIC_USEC={time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000}")

    def reloaded(self) -> None:
        """The reload has ended. Not sent before ``ready``, since it would report that the start has ended."""
        if self._ready:
            self.ready()

    def stopping(self) -> None:
        """The shutdown has begun."""
        self._send("STOPPING=1")

    def status(self, text: str) -> None:
        """A line for ``systemctl status``; sent only when it has changed."""
        if text != self._status:
            self._status = text
            self._send(f"STATUS={' '.join(text.split())}")

    def alive(self) -> None:
        """Restart the watchdog's interval. Call it more often than every ``watchdog_seconds``."""
        self._send("WATCHDOG=1")

    def close(self) -> None:
        """Close the socket."""
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    def flush(self) -> None:
        """Send what the full queue of the service manager has not accepted. Call it from time to time."""
        while self._socket is not None and self._unsent:
            try:
                self._socket.sendto(self._unsent[0], self._address)
            except BlockingIOError:
                return
            except OSError as error:
                log.warning("the service manager cannot be reached at %r: %s", self._address, error.strerror or error)
                self.close()
                return
            self._unsent.popleft()

    def _send(self, *assignments: str) -> None:
        self._unsent.append("\n".join(assignments).encode())
        self.flush()
