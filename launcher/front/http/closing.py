"""Closes a listening socket without resetting connections: the kernel resets those that wait to be accepted.

Separate because it is about the kernel's queues, not about HTTP. What the accepted connections are told does not belong
here.
"""

from __future__ import annotations

import ctypes
import os
import select
import socket
import struct
from contextlib import suppress
from pathlib import Path

SO_ATTACH_FILTER = 26  # asm-generic/socket.h; the same on all architectures of the kernel but alpha, parisc and sparc

# Drops SYN segments without ACK, which open a connection, and accepts all others (linux/filter.h; byte 13 of the TCP
# header has the flags). Handshakes that have begun are completed, so no connection can arrive after the last one was
# accepted. A dropped client repeats its SYN after a second and is then refused, or reaches the next server.
_DROP_SYN = (
    (0x30, 0, 0, 13),  # load byte 13
    (0x54, 0, 0, 0x12),  # keep SYN and ACK
    (0x15, 0, 1, 0x02),  # SYN alone?
    (0x06, 0, 0, 0),  # drop
    (0x06, 0, 0, 0xFFFFFFFF),  # accept
)


class Entrance:
    """The way into a listening socket, which can be closed while the connections in its queue are still accepted."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        # Of a Unix socket; None if it has no path.
        self._path = str(sock.getsockname()) if sock.family == socket.AF_UNIX else ""
        self._file = _identity(self._path)

    def close(self) -> None:
        """Let no further connection enter the queue; those in it are unaffected.

        Does nothing where the kernel refuses filters, or the path cannot be removed: then connections keep arriving.
        """
        with suppress(OSError):
            if self._sock.family in (socket.AF_INET, socket.AF_INET6):
                _drop_syn(self._sock)
            elif self._file is not None and _identity(self._path) == self._file:  # not that of a successor
                Path(self._path).unlink()


def _identity(path: str) -> tuple[int, int] | None:
    try:
        found = os.lstat(path)
    except OSError:
        return None
    return found.st_dev, found.st_ino


def _drop_syn(sock: socket.socket) -> None:
    program = b"".join(struct.pack("HBBI", *instruction) for instruction in _DROP_SYN)
    buffer = ctypes.create_string_buffer(program)
    sock.setsockopt(socket.SOL_SOCKET, SO_ATTACH_FILTER, struct.pack("HL", len(_DROP_SYN), ctypes.addressof(buffer)))


def is_readable(descriptor: int) -> bool:
    """Whether a connection waits to be accepted, or data to be read; also when the peer has closed."""
    poller = select.poll()
    poller.register(descriptor, select.POLLIN)
    return bool(poller.poll(0))
