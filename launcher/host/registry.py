"""The registry of this machine: which launcher has claimed which cores.

Each launcher has one file in a folder that all users share, and holds a lock on it (flock(2)). The kernel releases the
lock when the process ends, however it ends, so a claim never outlives its launcher. Which cores are free is decided in
``core.planning.claims``. Launchers in containers see each other only if they share the folder.

Everyone may write to the folder. So nothing in it is trusted: links are not followed, files are small and checked, and
texts are escaped. Another user can add claims, but not remove or change those of others.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import logging
import os
import pwd
import secrets
import stat
import time
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated

import msgspec
import psutil

from launcher.core.machine.cpuset import MAX_ID, format_cpu_list, parse_cpu_list
from launcher.core.planning.claims import REGISTRY_FOLDERS, Claim, Kind
from launcher.errors import UsageError
from launcher.options.env_prefixes import REGISTRY_VARIABLE
from launcher.printable import printable

log = logging.getLogger("launcher.registry")

FOLDERS = tuple(map(Path, REGISTRY_FOLDERS))
OFF = "off"
MAX_FILE_BYTES = 64 * 1024
MAX_FILES = 4096
# Other launchers hold the lock of the registry only while they write their claim.
LOCK_SECONDS = 5.0
SUFFIX = ".json"

_SHARED_MODE = 0o1777


class _Record(msgspec.Struct, frozen=True):
    """The content of a file."""

    name: Annotated[str, msgspec.Meta(max_length=200)]
    pid: Annotated[int, msgspec.Meta(ge=1)]
    kind: Kind
    address: Annotated[str, msgspec.Meta(max_length=1000)] | None
    model: Annotated[str, msgspec.Meta(max_length=1000)] | None
    cpus: Annotated[str, msgspec.Meta(max_length=40_000)]
    since: float


@dataclass(frozen=True, slots=True)
class Listing:
    """The claims of running launchers, and sentences about what could not be read. ``owners`` are user ids by pid."""

    claims: tuple[Claim, ...]
    problems: tuple[str, ...]
    owners: Mapping[int, int]


class Held:
    """A claim that this process holds until ``release``, or until it ends. ``claim`` is None if nothing could be
    claimed."""

    def __init__(self, claim: Claim | None = None, remove: Callable[[], None] | None = None) -> None:
        self.claim = claim
        # Also when the claim is dropped, and when the interpreter exits.
        self._release = None if remove is None else weakref.finalize(self, remove)

    def release(self) -> None:
        """Remove the claim. Can be called repeatedly."""
        if self._release is not None:
            self._release()

    def __enter__(self) -> Held:
        return self

    def __exit__(self, *_: object) -> None:
        self.release()


def _release(pid: int, folder: int, file: int, name: str) -> None:
    if pid == os.getpid():  # not in a fork, which has copies of the descriptors
        with contextlib.suppress(OSError):
            os.unlink(name, dir_fd=folder)
    os.close(file)
    os.close(folder)


class Registry:
    """The registry in ``folders``: claims are read from all of them and written to the first one that can be used."""

    def __init__(self, folders: Sequence[Path] = FOLDERS) -> None:
        self._folders = folders

    @classmethod
    def of(cls, environment: Mapping[str, str]) -> Registry:
        """The registry that ``LAUNCH_REGISTRY`` selects: a folder, ``off``, or by default that of the machine.

        Raises ``UsageError`` for a relative path.
        """
        chosen = environment.get(REGISTRY_VARIABLE, "")
        if chosen == OFF:
            return cls(())
        if chosen and not chosen.startswith("/"):
            raise UsageError(f"{REGISTRY_VARIABLE} {chosen!r}: must be an absolute path, or 'off'")
        return cls((Path(chosen),)) if chosen else cls()

    def read(self) -> Listing:
        """The claims of all running launchers."""
        claims: list[Claim] = []
        problems: list[str] = []
        owners: dict[int, int] = {}
        for folder in self._folders:
            try:
                handle = _open_folder(folder)
            except FileNotFoundError:
                continue
            except OSError as error:
                problems.append(_unreadable(folder, error))
                continue
            try:
                for claim, owner in _read_folder(handle, folder, problems):
                    claims.append(claim)
                    owners[claim.pid] = owner
            finally:
                os.close(handle)
        return Listing(tuple(sorted(claims, key=lambda claim: (claim.since, claim.pid))), tuple(problems), owners)

    def others(self, held: Held | None = None) -> tuple[Claim, ...]:
        """The claims that concern this process: all except those of the launcher that has ``held``, and of launchers
        that have started this process, such as ``launch run``.
        """
        own = held.claim if held is not None else None
        claims = [one for one in self.read().claims if own is None or (one.pid, one.since) != (own.pid, own.since)]
        if not claims:
            return ()
        ancestors = {process.pid for process in psutil.Process().parents()}
        return tuple(claim for claim in claims if claim.pid not in ancestors)

    @contextlib.contextmanager
    def locked(self) -> Iterator[int | None]:
        """Nobody else writes a claim meanwhile. Gives the folder to write to, or None if there is none."""
        handle = self._writable_folder()
        if handle is None:
            yield None
            return
        try:
            _lock(handle)
            _remove_stale(handle)
            yield handle
        finally:
            fcntl.flock(handle, fcntl.LOCK_UN)  # closing is not enough: a claim keeps a duplicate
            os.close(handle)

    def _writable_folder(self) -> int | None:
        reason = ""
        for folder in self._folders:
            try:
                return _open_folder(folder, create=True)
            except OSError as error:
                reason = f"{folder}: {error.strerror or error}"
        if reason:
            log.info("The cores are not registered for other launchers: %s", reason, extra={"event": "unregistered"})
        return None

    @staticmethod
    def write(handle: int | None, claim: Claim) -> Held:
        """Write a claim to the folder that ``locked`` gave. If it cannot be written, it is not claimed."""
        if handle is None:
            return Held()
        token = f"{claim.pid}-{secrets.token_hex(6)}"
        flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        try:
            file = os.open(token, flags, 0o644, dir_fd=handle)
        except OSError as error:
            log.info("The cores are not registered for other launchers: %s", error, extra={"event": "unregistered"})
            return Held()
        held = None
        try:
            # Locked and complete before others can see it: they consider a file without a lock as left behind.
            fcntl.flock(file, fcntl.LOCK_EX)
            os.fchmod(file, 0o644)  # readable by other users whatever the umask
            os.write(file, msgspec.json.encode(_record(claim)))
            held = os.dup(handle)
            os.rename(token, token + SUFFIX, src_dir_fd=handle, dst_dir_fd=handle)
        except OSError as error:
            log.info("The cores are not registered for other launchers: %s", error, extra={"event": "unregistered"})
            with contextlib.suppress(OSError):
                os.unlink(token, dir_fd=handle)
            os.close(file)
            if held is not None:
                os.close(held)
            return Held()
        return Held(claim, partial(_release, os.getpid(), held, file, token + SUFFIX))


def user_name(uid: int) -> str:
    """The name of a user, or the number if there is none."""
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)


def _open_folder(folder: Path, *, create: bool = False) -> int:
    """A descriptor of the folder. Raises ``OSError`` if it is a link, or if others could replace the files in it."""
    if create:
        with contextlib.suppress(FileExistsError):
            folder.mkdir(mode=0o700)
            folder.chmod(_SHARED_MODE)
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    info = os.fstat(handle)
    if info.st_mode & 0o022 and not info.st_mode & stat.S_ISVTX:
        os.close(handle)
        raise OSError(errno.EPERM, "others may replace the files in it, because it has no sticky bit")
    if create and not os.access(folder, os.W_OK | os.X_OK):
        os.close(handle)
        raise OSError(errno.EACCES, os.strerror(errno.EACCES))
    return handle


def _lock(handle: int) -> None:
    """Wait for the lock of the registry. If another process keeps it, go on: nobody must be able to prevent starts."""
    end = time.monotonic() + LOCK_SECONDS
    while True:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        except BlockingIOError:
            if time.monotonic() > end:
                message = "the registry has been locked for %g s; a launcher that starts now may use the same cores"
                log.warning(message, LOCK_SECONDS, extra={"event": "warning"})
                return
            time.sleep(0.02)


def _read_folder(handle: int, folder: Path, problems: list[str]) -> Iterator[tuple[Claim, int]]:
    for name in _claim_files(handle):
        try:
            file = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=handle)
        except FileNotFoundError:
            continue  # released meanwhile
        except OSError as error:
            problems.append(_unreadable(folder / name, error))
            continue
        try:
            info = os.fstat(file)
            if not stat.S_ISREG(info.st_mode) or not _is_locked(file):
                continue
            yield _claim(msgspec.json.decode(os.read(file, MAX_FILE_BYTES), type=_Record), info.st_uid), info.st_uid
        except (OSError, ValueError) as error:
            problems.append(f"The claim {str(folder / name)!r} cannot be read: {printable(str(error))}")
        finally:
            os.close(file)


def _claim_files(handle: int) -> list[str]:
    return sorted(name for name in os.listdir(handle) if name.endswith(SUFFIX))[:MAX_FILES]


def _is_locked(file: int) -> bool:
    """Whether a launcher holds the lock of this file."""
    try:
        fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    fcntl.flock(file, fcntl.LOCK_UN)
    return False


def _remove_stale(handle: int) -> None:
    """Remove claims that nobody holds, as far as this user may; called with the lock of the registry."""
    for name in _claim_files(handle):
        with contextlib.suppress(OSError):
            file = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=handle)
            try:
                if os.geteuid() in (0, os.fstat(file).st_uid) and not _is_locked(file):
                    os.unlink(name, dir_fd=handle)
            finally:
                os.close(file)


def _record(claim: Claim) -> _Record:
    cpus = format_cpu_list(claim.cpus)
    return _Record(claim.name, claim.pid, claim.kind, claim.address, claim.model, cpus, claim.since)


def _claim(record: _Record, uid: int) -> Claim:
    """The claim of a file. Raises ``ValueError`` for an invalid list of cpus."""
    cpus = parse_cpu_list(record.cpus)
    if any(cpu > MAX_ID for cpu in cpus):
        raise ValueError(f"its cpus exceed {MAX_ID}")
    address, model = (None if text is None else printable(text) for text in (record.address, record.model))
    user = printable(user_name(uid))
    return Claim(printable(record.name), record.pid, user, record.kind, address, model, cpus, record.since)


def _unreadable(path: Path, error: OSError) -> str:
    return f"Launchers of other users may be unknown, because {str(path)!r} cannot be read: {error.strerror or error}"
