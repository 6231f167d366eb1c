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
from launcher.front.http.unix_socket import listen_on_path, removed_at_end

log = logging.getLogger("launcher.serve")

AUTO, NONE = "auto", "none"
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
    with removed_at_end(opened.path), opened.sock:
        yield opened


def _open(wanted: str, port: int | str, environment: Mapping[str, str]) -> AdminSocket | None:
    if wanted == NONE:
        return None
    if wanted != AUTO:
        path = Path(wanted)
        try:
            return AdminSocket(listen_on_path(path, 0o600, BACKLOG), path)
        except OSError as error:
            reason = error.strerror or error
            raise UsageError(f"--admin-socket {wanted!r}: cannot listen there: {reason}; use another path") from error
    try:
        path = default_path(port, environment)
        _make_private(path.parent)
        return AdminSocket(listen_on_path(path, 0o600, BACKLOG), path)
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
