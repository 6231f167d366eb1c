"""The Unix socket of the administration: where it is, and how it is opened and removed.

Separate from the socket that clients use because only the user who runs the server may connect, which the permissions
of the socket and of its folder ensure, and because a server works without it.
"""

from __future__ import annotations

import contextlib
import logging
import os
import socket
import stat
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from launcher.errors import UsageError

log = logging.getLogger("launcher.serve")

AUTO, NONE = "auto", "none"
# A live server accepts at once; one that is stopped does not, and is alive all the same.
CONNECT_SECONDS = 1.0
BACKLOG = 16


@dataclass(frozen=True, slots=True)
class AdminSocket:
    """A listening socket and its path."""

    sock: socket.socket
    path: Path


def default_path(port: int | str, environment: Mapping[str, str]) -> Path:
    """Where ``--admin-socket auto`` is for a server on this port, or on the Unix socket of this name: in
    ``$XDG_RUNTIME_DIR``, or else in a private folder among the temporary files. Raises ``OSError`` if no temporary
    folder can be used."""
    runtime = environment.get("XDG_RUNTIME_DIR", "")
    if runtime and os.access(runtime, os.W_OK | os.X_OK):
        return Path(runtime) / "launch" / f"admin-{port}.sock"
    return Path(tempfile.gettempdir()) / f"launch-{os.getuid()}" / f"admin-{port}.sock"


@contextlib.contextmanager
def admin_socket(wanted: str, port: int | str, environment: Mapping[str, str]) -> Iterator[AdminSocket | None]:
    """The listening socket for ``--admin-socket``, removed at the end; None if there is none.

    Raises ``UsageError`` if a given path cannot be used. With ``auto`` that is logged, and there is no socket.
    """
    opened = _open(wanted, port, environment)
    if opened is None:
        yield None
        return
    own = opened.path.lstat()
    try:
        with opened.sock:
            yield opened
    finally:
        with contextlib.suppress(OSError):
            found = opened.path.lstat()
            if (found.st_dev, found.st_ino) == (own.st_dev, own.st_ino):  # not that of a successor
                opened.path.unlink()


def _open(wanted: str, port: int | str, environment: Mapping[str, str]) -> AdminSocket | None:
    if wanted == NONE:
        return None
    if wanted != AUTO:
        path = Path(wanted)
        try:
            return AdminSocket(_listen(path), path)
        except OSError as error:
            reason = error.strerror or error
            raise UsageError(f"--admin-socket {wanted!r}: cannot listen there: {reason}; use another path") from error
    try:
        path = default_path(port, environment)
        _make_private(path.parent)
        return AdminSocket(_listen(path), path)
    except OSError as error:
        reason = error.strerror or error
        log.warning("No admin socket: %s; --admin-socket sets its path", reason, extra={"event": "warning"})
        return None


def _make_private(folder: Path) -> None:
    """Create the folder, or check that no other user can write to it."""
    with contextlib.suppress(FileExistsError):
        folder.mkdir(mode=0o700)
    found = folder.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid() or found.st_mode & 0o022:
        raise PermissionError(0, f"{folder} is not a folder that only this user can write to")


def _listen(path: Path) -> socket.socket:
    """A listening socket at ``path``, in place of one that no process listens on any more. Raises ``OSError``."""
    _remove_stale(path)
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    before = os.umask(0o177)
    try:
        sock.bind(str(path))
        sock.listen(BACKLOG)
    except OSError:
        sock.close()
        raise
    finally:
        os.umask(before)
    sock.setblocking(False)
    return sock


def _remove_stale(path: Path) -> None:
    try:
        if not stat.S_ISSOCK(path.lstat().st_mode):
            raise FileExistsError(0, f"{path} exists and is not a socket")
    except FileNotFoundError:
        return
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(CONNECT_SECONDS)
        try:
            probe.connect(str(path))
        except ConnectionRefusedError:
            path.unlink(missing_ok=True)
        except TimeoutError as error:
            raise OSError(0, f"another server uses {path}") from error
        else:
            raise OSError(0, f"another server uses {path}")
