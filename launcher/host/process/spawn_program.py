"""Starts the program of one ``launch run`` instance, relays its output, and describes how it exited.

The counterpart of ``host.process.spawn_worker`` for programs that know nothing about the launcher: two separate
outputs, no channel, and an exit status with a meaning. The program runs in its own session, so that a signal to the
group reaches it and what it has started, and nothing else. Policy does not belong here.
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

from launcher.host.process import exec_bound
from launcher.host.process.exit_status import describe_status
from launcher.host.process.output import Relay
from launcher.host.process.spawn_worker import (
    OomCount,
    kill_group,
    open_reader,
    own_memory_cgroup,
    read_oom_count,
    signal_group,
    spawn,
    start_error,
    wait_exit,
)

READ_BYTES = 65536
# After the exit: how long a silent process that holds a pipe open may delay the report.
OUTPUT_SECONDS = 0.5
# The same for a reader of the launcher's output that does not read, once the program was told to stop.
STOPPED_OUTPUT_SECONDS = 3.0
STOP_SIGNALS = frozenset({signal.SIGINT, signal.SIGTERM, signal.SIGHUP})

# Replaces itself with the program; shown in reports if it applies the binding.
BINDER = (sys.executable, "-I", "-S", exec_bound.__file__)


@dataclass(frozen=True, slots=True)
class ProgramLaunch:
    """How to start the program of one instance. ``marker`` has the variables of ``env`` that identify it and its
    descendants. With ``stdin`` it inherits the launcher's standard input, otherwise it reads ``/dev/null``."""

    instance: int
    command: tuple[str, ...]
    env: Mapping[str, str]
    marker: Mapping[str, str]
    stdin: bool


class Program:
    """A running program, created by `start_program`."""

    def __init__(self, launch: ProgramLaunch, process: subprocess.Popen[bytes], relay: Relay, oom: OomCount) -> None:
        self.instance = launch.instance
        self.pid = process.pid
        self._marker = launch.marker
        self._process = process
        self._relay = relay
        self._oom = oom
        self._killed = self._told_to_stop = False
        self._open_pipes, self._pieces, self._writing = 2, 0, 0
        self._all_relayed = anyio.Event()

    def describe(self, status: int) -> str:
        """A description of how it exited; mentions the OOM killer if its counter has grown."""
        text = describe_status(status)
        if status != -signal.SIGKILL or self._killed:
            return text
        grown = self._oom.growth(read_oom_count(self._oom.cgroup))
        return f"{text} ({grown})" if grown else text

    def signal(self, number: int) -> None:
        """Send a signal to the program's process group; does nothing when the program has been reaped."""
        if self._process.returncode is None:
            self._told_to_stop = self._told_to_stop or number in STOP_SIGNALS
            signal_group(self.pid, number)

    def kill(self) -> None:
        """Send SIGKILL to the program's process group, and do not wait any longer for slow readers of its output."""
        self._killed = True
        if self._process.returncode is None:
            kill_group(self.pid)

    async def wait(self) -> int:
        """Relay the output until the program exits; kill its remaining processes; reap it and return the exit status as
        in ``subprocess``.
        """
        async with anyio.create_task_group() as group:
            for stream, pipe in enumerate((self._process.stdout, self._process.stderr)):
                assert pipe is not None
                group.start_soon(self._pump, stream, pipe)
            await wait_exit(self._process)
            # Before reaping: while the zombie holds the pid, no other process group can have it as its id.
            kill_group(self.pid)
            self._kill_marked()
            status = self._process.wait()
            await self._drain_output()
            group.cancel_scope.cancel()
        return status

    def _kill_marked(self) -> None:
        """Kill descendants that have left the session but still have the marker in their environment."""
        for process in psutil.Process().children(recursive=True):
            with contextlib.suppress(psutil.Error, OSError):
                if self._marker.items() <= process.environ().items():
                    process.kill()

    async def _drain_output(self) -> None:
        """Wait for what is still in the pipes, and for slow readers of the launcher's output, but not for a silent
        pipe, and not long for a reader that does not read when the program was told to stop."""
        stalled = 0.0
        while self._open_pipes:
            before = self._pieces
            with anyio.move_on_after(OUTPUT_SECONDS):
                await self._all_relayed.wait()
            stalled = stalled + OUTPUT_SECONDS if self._pieces == before else 0.0
            if self._killed or (stalled and not self._writing):
                return
            if self._told_to_stop and stalled >= STOPPED_OUTPUT_SECONDS:
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
    """Start the program now. Raises ``InstanceError`` when no process can be created.

    Must be called in the main thread: the program is killed when the thread that started it ends. A program that cannot
    be executed shows as exit status 126 or 127, with the reason on standard error.
    """
    oom = read_oom_count(own_memory_cgroup())
    try:
        process = spawn(
            (*BINDER, "--parent", str(os.getpid()), "--", *launch.command),
            stdin=None if launch.stdin else subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            env=dict(launch.env),
        )
    except (OSError, ValueError) as error:
        raise start_error(f"instance {launch.instance} could not be started", error) from error
    return Program(launch, process, relay, oom)
