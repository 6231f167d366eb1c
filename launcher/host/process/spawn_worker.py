"""Starts one worker process, relays its output to the log, and describes how it exited.

Separate from the supervisor, which decides when to do so; this module deals with the operating system. A worker gets
one end of a socket pair as standard input, a pipe for both outputs, its own session (so that Ctrl-C reaches only the
front, and the whole process group can be killed) and no other descriptor. Policy does not belong here.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import os
import signal
import socket
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import IO

import anyio

from launcher.errors import InstanceError, ResourceShortageError
from launcher.host.process.exit_status import describe_status
from launcher.host.process.output import LineSplitter
from launcher.pinning import allowed_cpus

log = logging.getLogger("launcher.worker")

READ_BYTES = 65536
LINE_BYTES = 16384  # a longer line is logged in pieces, so that a worker cannot fill the front's memory
# After the exit: how long a grandchild that holds the pipe open may delay the report.
OUTPUT_SECONDS = 0.5

# Errors of a system that lacks something at the moment: descriptors, memory, processes.
SHORTAGES = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.EAGAIN, errno.ENOBUFS})
# What a sandbox answers to a system call that it does not allow.
REFUSED = frozenset({errno.EPERM, errno.EACCES, errno.ENOSYS})


@dataclass(frozen=True, slots=True)
class Launch:
    """How to start the worker of one instance: the exact command and the exact environment.

    ``mask``: the affinity mask that the command starts with; None: that of this process, which may be a front that has
    bound itself to a few cpus.
    """

    instance: int
    command: tuple[str, ...]
    env: Mapping[str, str]
    mask: tuple[int, ...] | None = None


class Worker:
    """A running worker process, created by `start`. ``sock`` is the front's end of its channel."""

    def __init__(self, launch: Launch, process: subprocess.Popen[bytes], sock: socket.socket, oom: OomCount) -> None:
        self.instance = launch.instance
        self.pid = process.pid
        self.sock = sock
        self._last_line = ""
        self._process = process
        self._oom = oom
        self._kill_reason: str | None = None
        self._in_usage = False

    def kill(self, reason: str) -> None:
        """Send SIGKILL to the worker and everything it has started. Does nothing if it has been reaped."""
        if self._process.returncode is None:
            self._kill_reason = reason
            kill_group(self.pid)

    async def wait(self) -> str:
        """Relay the output until the worker exits; reap it and return a description of how it exited.

        Cancelling it kills the worker and reaps it.
        """
        try:
            return self._describe(await self._wait())
        except BaseException:
            # The end of ``asyncio.run`` cancels all tasks, whatever anyio shields; a zombie would stay.
            self.kill("nothing watches it any more")
            self._process.wait()
            raise

    async def _wait(self) -> int:
        async with anyio.create_task_group() as group:
            relayed = anyio.Event()
            group.start_soon(self._relay, relayed)
            await wait_exit(self._process)
            # Before reaping: while the zombie holds the pid, no other process group can have it as its id.
            kill_group(self.pid)
            status = self._process.wait()
            with anyio.move_on_after(OUTPUT_SECONDS):
                await relayed.wait()
            group.cancel_scope.cancel()
        return status

    def _describe(self, status: int) -> str:
        if status == -signal.SIGKILL and self._kill_reason is not None:
            return f"killed: {self._kill_reason}"
        text = describe_status(status)
        if status == -signal.SIGKILL:
            grown = self._oom.growth(read_oom_count(self._oom.cgroup))
            return f"{text} ({grown})" if grown else text
        # After SIGKILL the last line is unrelated; after any other failure it is usually the reason.
        if status != 0 and self._last_line:
            text += f"; last output: {self._last_line!r}"
        return text

    async def _relay(self, relayed: anyio.Event) -> None:
        pipe = self._process.stdout
        assert pipe is not None
        splitter = LineSplitter(LINE_BYTES)
        reader, transport = await open_reader(pipe)
        try:
            while data := await reader.read(READ_BYTES):
                self._log_lines(splitter.feed(data))
        finally:
            self._log_lines(splitter.end())
            transport.close()
            relayed.set()

    def _log_lines(self, lines: list[bytes]) -> None:
        for line in (raw.decode("utf-8", "replace").rstrip() for raw in lines):
            # numactl prints its usage after an error, which would hide the reason.
            self._in_usage = self._in_usage or line.startswith("usage: numactl")
            if line and not self._in_usage:
                self._last_line = line
                log.info("%s", line, extra={"instance": self.instance, "event": "output"})


def start(launch: Launch) -> Worker:
    """Start the worker now. Raises ``InstanceError`` with the command and the reason when that fails.

    Blocks for the few milliseconds that the kernel needs. Must be called in a thread that outlives the worker: the
    worker asks for a parent-death signal, and the kernel sends it when the thread that started the worker exits.
    """
    oom = read_oom_count(own_memory_cgroup())
    with contextlib.ExitStack() as opened:
        try:
            front_end, worker_end = map(opened.enter_context, socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM))
            with masked(launch.mask):
                process = spawn(
                    launch.command, stdin=worker_end.fileno(), stderr=subprocess.STDOUT, env=dict(launch.env)
                )
        except (OSError, ValueError) as error:
            raise start_error(
                f"instance {launch.instance} could not be started as {launch.command[0]!r}", error
            ) from error
        worker_end.close()
        opened.pop_all()
    front_end.setblocking(False)
    return Worker(launch, process, front_end, oom)


def spawn(command: Sequence[str], *, stdin: int | None, stderr: int, env: Mapping[str, str]) -> subprocess.Popen[bytes]:
    """Start a process in its own session, with standard output as a pipe. Raises ``OSError`` and ``ValueError``.

    Some sandboxes refuse ``setsid``. The process then stays in this session, and `kill_group` kills only itself.
    """

    def start(*, session: bool) -> subprocess.Popen[bytes]:
        return subprocess.Popen(
            command,
            stdin=stdin,
            stdout=subprocess.PIPE,
            stderr=stderr,
            bufsize=0,
            env=env,
            close_fds=True,
            start_new_session=session,
        )

    try:
        return start(session=True)
    except OSError as error:
        # A failed exec names its file.
        if error.filename is not None or error.errno not in REFUSED:
            raise
    _warn_of_shared_session()
    return start(session=False)


@cache
def _warn_of_shared_session() -> None:
    log.warning("The system call setsid is refused, so processes are started in the session of the launcher")


def start_error(what: str, error: OSError | ValueError) -> InstanceError:
    """The error of a process that could not be started."""
    kind = ResourceShortageError if isinstance(error, OSError) and error.errno in SHORTAGES else InstanceError
    return kind(f"{what}: {error}")


@contextlib.contextmanager
def masked(cpus: tuple[int, ...] | None) -> Iterator[None]:
    """Give this thread that mask temporarily, because a process inherits the mask of the thread that starts it.

    If none of the cpus is allowed any longer, the mask is unchanged, and the command reports the missing cpus.
    """
    if cpus is None:
        yield
        return
    own = allowed_cpus()
    with contextlib.suppress(OSError):
        os.sched_setaffinity(0, cpus)
    try:
        yield
    finally:
        with contextlib.suppress(OSError):
            os.sched_setaffinity(0, own)


def kill_group(pid: int) -> None:
    """Send SIGKILL to every process of the group of the process ``pid``; does nothing when there is none."""
    signal_group(pid, signal.SIGKILL)


def signal_group(pid: int, number: int) -> None:
    """Send a signal to every process of the group that ``pid`` leads; if it leads none, to it and its descendants."""
    # An empty group is the goal; a group of another user cannot be that of a child.
    with contextlib.suppress(ProcessLookupError, PermissionError):
        try:
            os.killpg(pid, number)
        except ProcessLookupError:
            for each in (*_descendants(pid), pid):
                os.kill(each, number)


def _descendants(pid: int) -> list[int]:
    import psutil  # only where setsid is refused

    try:
        return [child.pid for child in psutil.Process(pid).children(recursive=True)]
    except psutil.Error:
        return []


async def open_reader(pipe: IO[bytes]) -> tuple[asyncio.StreamReader, asyncio.ReadTransport]:
    """The pipe as a stream, and the transport that closes it."""
    loop = asyncio.get_running_loop()
    reader = asyncio.StreamReader()
    transport, _ = await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), pipe)
    return reader, transport


async def wait_exit(process: subprocess.Popen[bytes]) -> None:
    """Wait until the process has exited, without reaping it."""
    try:
        fd = os.pidfd_open(process.pid)
    except (AttributeError, OSError):  # a kernel before 5.3, or a sandbox without the call
        await anyio.to_thread.run_sync(_wait_in_thread, process.pid, limiter=anyio.CapacityLimiter(1))
        return
    try:
        await _readable(fd)
    finally:
        os.close(fd)


def _wait_in_thread(pid: int) -> None:
    os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)


async def _readable(fd: int) -> None:
    loop = asyncio.get_running_loop()
    event = asyncio.Event()
    loop.add_reader(fd, event.set)
    try:
        await event.wait()
    finally:
        loop.remove_reader(fd)


@dataclass(frozen=True, slots=True)
class OomCount:
    """How many processes the kernel's OOM killer has killed: in this cgroup, and on the whole machine."""

    cgroup: Path | None
    in_cgroup: int | None
    on_machine: int | None

    def growth(self, later: OomCount) -> str | None:
        """Which counter has grown by ``later``, as text; None when none has."""
        if self.in_cgroup is not None and later.in_cgroup is not None and later.in_cgroup > self.in_cgroup:
            return "probably out of memory: the OOM killer killed a process in this cgroup"
        if self.on_machine is not None and later.on_machine is not None and later.on_machine > self.on_machine:
            return "probably out of memory: the OOM killer killed a process on this machine"
        return None


def read_oom_count(cgroup: Path | None) -> OomCount:
    """The kernel's counters now; None if it has none."""
    in_cgroup = None
    if cgroup is not None:
        # The files of cgroup v2 and v1; the line is the same in both.
        for name in ("memory.events", "memory.oom_control"):
            in_cgroup = _counter(cgroup / name) if in_cgroup is None else in_cgroup
    return OomCount(cgroup, in_cgroup, _counter(Path("/proc/vmstat")))


def _counter(path: Path) -> int | None:
    try:
        lines = path.read_text().splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) for line in lines if line.startswith("oom_kill ")), None)


def own_memory_cgroup() -> Path | None:
    """The folder of this process's memory cgroup, v1 or v2, where it is mounted in the standard place."""
    try:
        lines = Path("/proc/self/cgroup").read_text().splitlines()
    except OSError:
        return None
    root = Path("/sys/fs/cgroup")
    for line in lines:
        _, controllers, path = line.split(":", 2)
        base = root / "memory" if "memory" in controllers.split(",") else root if not controllers else None
        # In a container the path may be that of the host, while the cgroup is mounted as the root.
        for folder in (base / path.lstrip("/"), base) if base else ():
            if any((folder / name).exists() for name in ("memory.events", "memory.oom_control")):
                return folder
    return None
