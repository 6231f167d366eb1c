"""Starts one worker process, relays its output to the log, and says how it ended.

Separate from the supervisor, which decides when: in here is only what the operating system needs. A worker gets
its end of a socket pair as standard input, a pipe for both outputs, a session of its own (so that Ctrl-C reaches
the front alone, and the whole group can be ended) and no other descriptor. No policy may enter.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import socket
import subprocess
from collections import deque
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import anyio

from launcher.errors import InstanceError

log = logging.getLogger("launcher.worker")

READ_BYTES = 65536
LINE_BYTES = 16384  # a longer line is logged in pieces, so that a worker cannot fill the front's memory
LAST_LINES = 20
OUTPUT_SECONDS = 0.5  # after the exit: how long a grandchild that kept the pipe may delay the news


@dataclass(frozen=True, slots=True)
class Launch:
    """How to start the worker of one instance: the exact command and the exact environment.

    ``mask``: the cpus that the command may choose from; None: those of this process, which a front may have narrowed
    for itself.
    """

    instance: int
    command: tuple[str, ...]
    env: Mapping[str, str]
    mask: tuple[int, ...] | None = None


class LineSplitter:
    """Cuts a stream of bytes into lines of text, ended by newline or carriage return (progress bars).

    Invalid UTF-8 is replaced, over-long lines are cut, and a ``\\r\\n`` gives an empty line more.
    """

    def __init__(self) -> None:
        self._rest = b""

    def feed(self, data: bytes) -> list[str]:
        """The lines that ``data`` completes."""
        *lines, rest = (self._rest + data).replace(b"\r", b"\n").split(b"\n")
        *pieces, self._rest = _pieces(rest)
        return [_text(piece) for piece in [*(piece for line in lines for piece in _pieces(line)), *pieces]]

    def end(self) -> list[str]:
        """What is left when the stream ends without a newline."""
        rest, self._rest = self._rest, b""
        return [_text(rest)] if rest else []


def _pieces(line: bytes) -> list[bytes]:
    return [line[start : start + LINE_BYTES] for start in range(0, max(len(line), 1), LINE_BYTES)]


def _text(line: bytes) -> str:
    return line.decode("utf-8", "replace").rstrip()


class Worker:
    """A running worker process, as `start` made it. ``sock`` is the front's end of its channel."""

    def __init__(self, launch: Launch, process: subprocess.Popen[bytes], sock: socket.socket, oom: OomCount) -> None:
        self.instance = launch.instance
        self.pid = process.pid
        self.sock = sock
        self.last_lines: deque[str] = deque(maxlen=LAST_LINES)
        self._process = process
        self._oom = oom
        self._killed_for: str | None = None
        self._in_manual = False

    def kill(self, reason: str) -> None:
        """End the worker and whatever it started, at once. Nothing happens when it has been reaped already."""
        if self._process.returncode is None:
            self._killed_for = reason
            kill_group(self.pid)

    async def wait(self) -> str:
        """Wait for the end, relaying output meanwhile; reap, and return how it ended in words."""
        async with anyio.create_task_group() as group:
            relayed = anyio.Event()
            group.start_soon(self._relay, relayed)
            await wait_exit(self._process)
            # Before reaping: while the zombie holds the pid, no stranger can have it as its group.
            kill_group(self.pid)
            status = self._process.wait()
            with anyio.move_on_after(OUTPUT_SECONDS):
                await relayed.wait()
            group.cancel_scope.cancel()
        return self._describe(status)

    def _describe(self, status: int) -> str:
        if status == -signal.SIGKILL and self._killed_for is not None:
            return f"killed: {self._killed_for}"
        text = describe_status(status)
        if status == -signal.SIGKILL:
            grown = self._oom.growth(read_oom_count(self._oom.cgroup))
            return f"{text} ({grown})" if grown else text
        # After SIGKILL the last line is whatever was said last; after any other failure it is mostly the reason.
        if status != 0 and self.last_lines:
            text += f"; its last words: {self.last_lines[-1]!r}"
        return text

    async def _relay(self, relayed: anyio.Event) -> None:
        pipe = self._process.stdout
        assert pipe is not None
        splitter = LineSplitter()
        reader, transport = await open_reader(pipe)
        try:
            while data := await reader.read(READ_BYTES):
                self._say(splitter.feed(data))
        finally:
            self._say(splitter.end())
            transport.close()
            relayed.set()

    def _say(self, lines: list[str]) -> None:
        for line in lines:
            # When numactl refuses, it says so and prints its manual, in which the reason would be lost.
            self._in_manual = self._in_manual or line.startswith("usage: numactl")
            if line and not self._in_manual:
                self.last_lines.append(line)
                log.info("%s", line, extra={"instance": self.instance, "event": "output"})


def start(launch: Launch) -> Worker:
    """Start the worker now. Raises ``InstanceError`` with the command and the reason when that fails.

    Blocks for the few milliseconds that the kernel needs. To be called in the main thread: the worker asks to be
    killed when its parent dies, and to the kernel the parent is the thread that started it.
    """
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    oom = read_oom_count(own_memory_cgroup())
    try:
        with _masked(launch.mask):
            process = subprocess.Popen(
                launch.command,
                stdin=theirs.fileno(),
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                bufsize=0,
                env=dict(launch.env),
                close_fds=True,
                start_new_session=True,
            )
    except (OSError, ValueError) as error:
        ours.close()
        raise InstanceError(
            f"instance {launch.instance} could not be started as {launch.command[0]!r}: {error}"
        ) from error
    finally:
        theirs.close()
    ours.setblocking(False)
    return Worker(launch, process, ours, oom)


@contextlib.contextmanager
def _masked(cpus: tuple[int, ...] | None) -> Iterator[None]:
    """This thread with that mask for a moment, as a process starts with the mask of the thread that starts it.

    Where none of the cpus is left the mask stays, and the command says what it cannot have.
    """
    if cpus is None:
        yield
        return
    own = os.sched_getaffinity(0)
    with contextlib.suppress(OSError):
        os.sched_setaffinity(0, cpus)
    try:
        yield
    finally:
        with contextlib.suppress(OSError):
            os.sched_setaffinity(0, own)


def kill_group(pid: int) -> None:
    """End every process of this group at once; nothing happens when there is none."""
    # A group without members is what we want; one of another user cannot be ours.
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(pid, signal.SIGKILL)


async def open_reader(pipe: IO[bytes]) -> tuple[asyncio.StreamReader, asyncio.ReadTransport]:
    """The pipe as a stream; to be closed by its transport."""
    loop = asyncio.get_running_loop()
    reader = asyncio.StreamReader()
    transport, _ = await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), pipe)
    return reader, transport


async def wait_exit(process: subprocess.Popen[bytes]) -> None:
    """Wait until the process has ended, and leave it to be reaped."""
    try:
        fd = os.pidfd_open(process.pid)
    except (AttributeError, OSError):  # kernels before 5.3, or a sandbox that does not know the call
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


def describe_status(status: int) -> str:
    """``exit status 4`` or ``killed by SIGSEGV``, from a return code as ``subprocess`` gives it."""
    if status >= 0:
        return f"exit status {status}"
    try:
        return f"killed by {signal.Signals(-status).name}"
    except ValueError:
        return f"killed by signal {-status}"


@dataclass(frozen=True, slots=True)
class OomCount:
    """How many processes the kernel has killed for want of memory: in our cgroup, and on the whole machine."""

    cgroup: Path | None
    in_cgroup: int | None
    on_machine: int | None

    def growth(self, later: OomCount) -> str | None:
        """What has grown until ``later``, in words, or None."""
        if self.in_cgroup is not None and later.in_cgroup is not None and later.in_cgroup > self.in_cgroup:
            return "probably out of memory: the kernel killed a process of our cgroup for that"
        if self.on_machine is not None and later.on_machine is not None and later.on_machine > self.on_machine:
            return "probably out of memory: the kernel killed a process of this machine for that"
        return None


def read_oom_count(cgroup: Path | None) -> OomCount:
    """The kernel's counters now; None where it does not tell."""
    in_cgroup = None
    if cgroup is not None:
        # One is the file of cgroup v2, the other that of v1; the line in them is the same.
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
    """The folder of this process's memory cgroup, v1 or v2, where it is mounted in the usual place."""
    try:
        lines = Path("/proc/self/cgroup").read_text().splitlines()
    except OSError:
        return None
    root = Path("/sys/fs/cgroup")
    for line in lines:
        _, controllers, path = line.split(":", 2)
        base = root / "memory" if "memory" in controllers.split(",") else root if not controllers else None
        # In a container the path may be that of the host, and our cgroup is mounted as the root.
        for folder in (base / path.lstrip("/"), base) if base else ():
            if any((folder / name).exists() for name in ("memory.events", "memory.oom_control")):
                return folder
    return None
