"""Opens the socket on which the HTTP server listens.

Separate from the server because the socket is opened first, before the machine and the model are read: an address that
is in use must be reported before anything slow begins.
"""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Iterator
from pathlib import Path

from launcher.errors import UsageError
from launcher.front.http.unix_socket import PathTakenError, listen_on_path, removed_at_end
from launcher.options import FrontOptions


@contextlib.contextmanager
def listening(front: FrontOptions) -> Iterator[socket.socket]:
    """The listening socket, which is closed at the end; a Unix socket is also removed.

    Raises ``UsageError`` when the address is not available.
    """
    with listen(front) as sock:
        if front.uds is None:
            yield sock
            return
        with removed_at_end(front.uds):
            yield sock


def listen(front: FrontOptions) -> socket.socket:
    """The listening socket. Raises ``UsageError`` when the address is not available."""
    if front.uds is not None:
        return _listen_on_path(front.uds, _mode(front.uds_mode), front.backlog)
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


def address_of(sock: socket.socket, *, tls: bool) -> str:
    """The address of a listening socket, for people and programs: ``http://127.0.0.1:8000``, ``unix:/run/l.sock``."""
    if sock.family == socket.AF_UNIX:
        return f"unix:{Path(sock.getsockname()).absolute()}"
    host, port = sock.getsockname()[:2]
    return f"{'https' if tls else 'http'}://{f'[{host}]' if ':' in host else host}:{port}"


def _mode(text: str) -> int:
    if not text.isascii() or not text.isdigit() or set(text) & {"8", "9"} or int(text, 8) > 0o777:
        raise UsageError(f"--uds-mode {text!r}: must be permissions in octal, such as 660")
    return int(text, 8)


def _listen_on_path(path: Path, mode: int, backlog: int) -> socket.socket:
    try:
        return listen_on_path(path, mode, backlog)
    except PathTakenError as error:
        raise UsageError(f"--uds {str(path)!r}: {error.strerror}") from error
    except (OSError, ValueError) as error:
        reason = (error.strerror or str(error)) if isinstance(error, OSError) else "the path is invalid"
        raise UsageError(
            f"cannot listen on the Unix socket {str(path)!r}: {reason}; use a path in an existing folder that this "
            "user may write to"
        ) from error
