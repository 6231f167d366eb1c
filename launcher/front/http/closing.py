"""Closes a listening socket without resetting connections: the kernel resets those that wait to be accepted.

Separate because it is about the kernel's queues, not about HTTP. What the accepted connections are told does not belong
here.
"""

from __future__ import annotations

import ctypes
import select
import socket
import struct
from contextlib import suppress

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


def refuse_new_connections(sock: socket.socket) -> None:
    """Let no further connection enter the queue of a listening TCP socket; those in it are unaffected.

    Does nothing for other sockets, and where the kernel refuses filters: then connections keep arriving.
    """
    if sock.family not in (socket.AF_INET, socket.AF_INET6):
        return
    program = b"".join(struct.pack("HBBI", *instruction) for instruction in _DROP_SYN)
    buffer = ctypes.create_string_buffer(program)
    with suppress(OSError):
        sock.setsockopt(
            socket.SOL_SOCKET, SO_ATTACH_FILTER, struct.pack("HL", len(_DROP_SYN), ctypes.addressof(buffer))
        )


def is_readable(descriptor: int) -> bool:
    """Whether a connection waits to be accepted, or data to be read; also when the peer has closed."""
    poller = select.poll()
    poller.register(descriptor, select.POLLIN)
    return bool(poller.poll(0))
