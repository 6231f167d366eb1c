"""Opens the socket on which the HTTP server listens.

Separate from the server because the socket is opened first, before the machine and the model are read: an address that
is in use must be reported before anything slow begins.
"""

from __future__ import annotations

import socket

from launcher.errors import UsageError
from launcher.options import FrontOptions


def listen(front: FrontOptions) -> socket.socket:
    """The listening socket. Raises ``UsageError`` when the address is not available."""
    family = socket.AF_INET6 if ":" in front.host else socket.AF_INET
    sock = socket.socket(family, socket.SOCK_STREAM)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind((front.host, front.port))
        sock.listen(front.backlog)
    except (OSError, TypeError, UnicodeError) as error:  # the latter two for a host that no name can be
        sock.close()
        reason = error.strerror if isinstance(error, OSError) and error.strerror else error
        raise UsageError(
            f"cannot listen on {front.host} port {front.port}: {reason}; "
            "use another --port (0 picks a free one) or --host, or stop the program that uses it"
        ) from error
    sock.setblocking(False)
    return sock
