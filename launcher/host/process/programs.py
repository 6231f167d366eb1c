"""Starts one foreign program for an instance, relays its output, and says how it ended.

The counterpart of ``host.process.spawn`` for programs that know nothing of us: two separate outputs, no channel, and
an exit status that counts. The program runs in a session of its own, so that signals reach it and what it has
started, and nothing else. No policy may enter here.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from typing import IO

import anyio
import psutil

from launcher.errors import InstanceError
from launcher.host.process import exec_bound
from launcher.host.process.output import Relay
from launcher.host.process.spawn import (
    OomCount,
    describe_status,
    kill_group,
    open_reader,
    own_memory_cgroup,
    read_oom_count,
    wait_exit,
)

READ_BYTES = 65536
OUTPUT_SECONDS = 0.5  # after the exit: how long a silent stranger that kept the pipe may delay the news

# What becomes the program; also what is shown where it has a binding to apply.
BINDER = (sys.executable, "-I", "-S", exec_bound.__file__)


@dataclass(frozen=True, slots=True)
class ProgramLaunch:
    """How to start the program of one instance. ``mark`` are the variables of ``env`` by which it and all that it
    starts are known. With ``stdin`` it reads our standard input, else it has none."""

    instance: int
    command: tuple[str, ...]
    env: Mapping[str, str]
    mark: Mapping[str, str]
    stdin: bool


class Program:
    """A running program, as `start_program` made it."""

    def __init__(self, launch: ProgramLaunch, process: subprocess.Popen[bytes], relay: Relay, oom: OomCount) -> None:
        self.instance = launch.instance
        self.pid = process.pid
        self._mark = launch.mark
        self._process = process
        self._relay = relay
        self._oom = oom
        self._killed = False
        self._open_pipes, self._pieces, self._writing = 2, 0, 0
        self._all_relayed = anyio.Event()

    def describe(self, status: int) -> str:
        """How it ended, in words; with the kernel's out-of-memory counter where that has grown."""
        text = describe_status(status)
        if status != -signal.SIGKILL or self._killed:
            return text
        grown = self._oom.growth(read_oom_count(self._oom.cgroup))
        return f"{text} ({grown})" if grown else text

    def signal(self, number: int) -> None:
        """Send a signal to the program and what it has started in its group; nothing happens when it has ended."""
        if self._process.returncode is None:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self.pid, number)

    def kill(self) -> None:
        """End it, and all that it has started, at once, and wait no more for whoever reads its output."""
        self._killed = True
        if self._process.returncode is None:
            kill_group(self.pid)

    async def wait(self) -> int:
        """Relay its output until it ends; end what it has left behind; reap, and return the status that
        ``subprocess`` gives."""
        async with anyio.create_task_group() as group:
            for stream, pipe in enumerate((self._process.stdout, self._process.stderr)):
                assert pipe is not None
                group.start_soon(self._pump, stream, pipe)
            await wait_exit(self._process)
            # Before reaping: while the zombie holds the pid, no stranger can have it as its group.
            kill_group(self.pid)
            self._end_marked()
            status = self._process.wait()
            await self._rest_of_output()
            group.cancel_scope.cancel()
        return status

    def _end_marked(self) -> None:
        """Kill what has left the session but still carries our mark in its environment."""
        for process in psutil.Process().children(recursive=True):
            with contextlib.suppress(psutil.Error, OSError):
                if self._mark.items() <= process.environ().items():
                    process.kill()

    async def _rest_of_output(self) -> None:
        """Wait for what is still in the pipes, and for readers of ours that are slow, but not for a silent pipe."""
        while self._open_pipes:
            before = self._pieces
            with anyio.move_on_after(OUTPUT_SECONDS):
                await self._all_relayed.wait()
            if self._killed or (self._pieces == before and not self._writing):
                return

    async def _pump(self, stream: int, pipe: IO[bytes]) -> None:
        reader, transport = await open_reader(pipe)
        try:
            while data := await reader.read(READ_BYTES):
                self._pieces += 1
                self._writing += 1
                await self._relay.feed(stream, data)
                self._writing -= 1
        finally:
            transport.close()
            with anyio.CancelScope(shield=True), anyio.move_on_after(OUTPUT_SECONDS):
                await self._relay.end(stream)
            self._open_pipes -= 1
            if not self._open_pipes:
                self._all_relayed.set()


def start_program(launch: ProgramLaunch, relay: Relay) -> Program:
    """Start the program now. Raises ``InstanceError`` when not even a process comes to be.

    To be called in the main thread: the program dies with the thread that started it. What keeps the program itself
    from starting is its exit status, 126 or 127, and its words on standard error.
    """
    oom = read_oom_count(own_memory_cgroup())
    try:
        process = subprocess.Popen(
            (*BINDER, "--parent", str(os.getpid()), "--", *launch.command),
            stdin=None if launch.stdin else subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            bufsize=0,
            env=dict(launch.env),
            close_fds=True,
            start_new_session=True,
        )
    except (OSError, ValueError) as error:
        raise InstanceError(f"instance {launch.instance} could not be started: {error}") from error
    return Program(launch, process, relay, oom)
