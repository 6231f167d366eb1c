"""Listens on Unix sockets: replaces those of crashed servers, never those in use, and removes them at the end.

Shared by the socket for clients (``listening_socket``) and that of the administration (``admin_socket``), which differ
in who may connect and in what follows if a path cannot be used.
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

from launcher.printable import printable

# A live server accepts at once; one that is stopped, or whose backlog is full, does not, and is alive all the same.
CONNECT_SECONDS = 1.0
# How long another launcher may take to replace a stale socket in the same folder.
LOCK_SECONDS = 5.0
MAX_PATH_BYTES = 107  # sizeof(sockaddr_un.sun_path) less the terminating NUL, see unix(7)


class PathTakenError(OSError):
    """The path has a socket in use, or another file; ``strerror`` says which, and what to do."""


def listen_on_path(path: Path, mode: int, backlog: int) -> socket.socket:
    """A listening socket at ``path`` with these permissions, in place of one on which no process listens any more.

    Raises ``PathTakenError`` and other ``OSError``, and ``ValueError`` for an invalid path.
    """
    if len(os.fsencode(path)) > MAX_PATH_BYTES:
        raise PathTakenError(errno.ENAMETOOLONG, f"has more than {MAX_PATH_BYTES} bytes; use a shorter path")
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
    except BaseException:
        sock.close()
        raise
    sock.setblocking(False)
    return sock


@contextlib.contextmanager
def removed_at_end(path: Path) -> Iterator[None]:
    """Remove the socket at ``path`` at the end, unless a successor has replaced it."""
    own = path.lstat()
    try:
        yield
    finally:
        with contextlib.suppress(OSError):
            found = path.lstat()
            if (found.st_dev, found.st_ino) == (own.st_dev, own.st_ino):
                path.unlink()


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
    """Remove the socket of a server that has crashed. Raises ``PathTakenError`` for one in use, and for other files."""
    try:
        found = path.lstat()
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(found.st_mode):
        raise PathTakenError(errno.EEXIST, "exists and is not a socket; remove it, or use another path")
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
    raise PathTakenError(errno.EADDRINUSE, f"{user} listens on this socket; stop it, or use another path")


def _listener_of(client: socket.socket) -> str:
    """The process that listens on the other side of a Unix socket; see SO_PEERCRED in unix(7)."""
    size = struct.calcsize("3i")
    pid, _, _ = struct.unpack("3i", client.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, size))
    try:
        name = Path(f"/proc/{pid}/comm").read_text(errors="replace").strip()
    except OSError:
        return f"process {pid}" if pid else "a process of another container"
    return f"process {pid} ({printable(name)})"
