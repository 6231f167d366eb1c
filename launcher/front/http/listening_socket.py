"""Opens the socket on which the HTTP server listens.

Separate from the server because the socket is opened first, before the machine and the model are read: an address that
is in use must be reported before anything slow begins.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import socket
import stat
import struct
import time
from collections.abc import Iterator
from pathlib import Path

from launcher.errors import UsageError
from launcher.options import FrontOptions
from launcher.printable import printable

# A live server accepts at once; one whose backlog is full does not, and is alive all the same.
CONNECT_SECONDS = 1.0
# How long another launcher may take to replace a stale socket in the same folder.
LOCK_SECONDS = 5.0
MAX_PATH_BYTES = 107  # sizeof(sockaddr_un.sun_path) less the terminating NUL, see unix(7)


@contextlib.contextmanager
def listening(front: FrontOptions) -> Iterator[socket.socket]:
    """The listening socket, which is closed at the end; a Unix socket is also removed.

    Raises ``UsageError`` when the address is not available.
    """
    with listen(front) as sock:
        if front.uds is None:
            yield sock
            return
        own = front.uds.lstat()
        try:
            yield sock
        finally:
            with contextlib.suppress(OSError):
                found = front.uds.lstat()
                if (found.st_dev, found.st_ino) == (own.st_dev, own.st_ino):  # not that of a successor
                    front.uds.unlink()


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
    if len(os.fsencode(path)) > MAX_PATH_BYTES:
        raise UsageError(f"--uds {str(path)!r}: has more than {MAX_PATH_BYTES} bytes; use a shorter path")
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        with _folder_locked(path.parent):
            _remove_stale(path)
            # The socket must not be open to others before its mode is set.
            umask = os.umask(0o177)
            try:
                sock.bind(str(path))
            finally:
                os.umask(umask)
            path.chmod(mode)
            sock.listen(backlog)
    except (OSError, ValueError) as error:
        sock.close()
        reason = (error.strerror or str(error)) if isinstance(error, OSError) else "the path is invalid"
        raise UsageError(
            f"cannot listen on the Unix socket {str(path)!r}: {reason}; use a path in an existing folder that this "
            "user may write to"
        ) from error
    except BaseException:
        sock.close()
        raise
    sock.setblocking(False)
    return sock


@contextlib.contextmanager
def _folder_locked(folder: Path) -> Iterator[None]:
    """Only one launcher at a time replaces sockets in a folder; otherwise two could replace that of each other."""
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        end = time.monotonic() + LOCK_SECONDS
        while True:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > end:
                    raise OSError(errno.EBUSY, "another process has locked its folder") from None
                time.sleep(0.02)
        yield
    finally:
        os.close(handle)


def _remove_stale(path: Path) -> None:
    """Remove the socket of a server that has crashed. Raises ``UsageError`` for one in use, and for other files."""
    try:
        found = path.lstat()
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(found.st_mode):
        raise UsageError(f"--uds {str(path)!r}: exists and is not a socket; remove it, or use another path")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as client:
        client.settimeout(CONNECT_SECONDS)
        try:
            client.connect(str(path))
        except ConnectionRefusedError:
            path.unlink(missing_ok=True)
            return
        except (BlockingIOError, TimeoutError):  # its backlog is full
            user = "another process"
        else:
            user = _listener_of(client)
    raise UsageError(f"--uds {str(path)!r}: {user} listens on this socket; stop it, or use another path")


def _listener_of(client: socket.socket) -> str:
    """The process that listens on the other side of a Unix socket; see SO_PEERCRED in unix(7)."""
    size = struct.calcsize("3i")
    pid, _, _ = struct.unpack("3i", client.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, size))
    try:
        name = Path(f"/proc/{pid}/comm").read_text(errors="replace").strip()
    except OSError:
        return f"process {pid}" if pid else "a process of another container"
    return f"process {pid} ({printable(name)})"
