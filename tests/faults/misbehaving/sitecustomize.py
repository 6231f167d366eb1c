"""Makes workers of the fake backend misbehave when a batch has one of these token ids after ``MARKER``.

With ``LAUNCH_TEST_FAULTS``, workers of any backend misbehave instead, while files of their instance are in this folder:
``garbage-0`` once, in place of the next result, and ``slow-0`` as long as it exists.

Python imports this module at its start if its folder is in ``PYTHONPATH``. Only workers are changed.
"""

from __future__ import annotations

import contextlib
import os
import signal
import stat
import sys
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

MARKER = 4999
SEGFAULT, KILL, EXIT, WAIT, SPIN, NAN, MISSING, GARBAGE, PARTIAL = range(5001, 5010)


def misbehave() -> None:
    """Replace the method that computes a batch."""
    from launcher.worker.backends import fake

    compute = fake.FakeBackend.run

    def run(self: Any, batch: Any) -> Any:
        ids = batch.ids.tolist()
        # After a marker, because the warm-up has all token ids.
        found = {token for marker, token in pairwise(ids) if marker == MARKER}
        for token in found:
            ENDINGS.get(token, lambda: None)()
        slow = Path(os.environ.get("LAUNCH_TEST_SLOW", "/nowhere"))
        if slow.exists() and slow.read_text() == instance():
            spin(0.001 * len(batch.lengths))
        output = compute(self, batch)
        if NAN in found:
            output.values[:] = float("nan")
        if MISSING in found:
            output = fake.BatchOutput(output.values[:-1], output.computed_tokens, output.rows)
        return output

    fake.FakeBackend.run = run  # type: ignore[method-assign]


def misbehave_by_files(folder: Path) -> None:
    """Replace the methods of the channel that receive batches and send results."""
    from launcher.core.protocol.messages import Done
    from launcher.worker.channel import Channel

    receive, send = Channel.receive, Channel.send
    received = 0.0

    def timed_receive(self: Any) -> Any:
        nonlocal received
        message = receive(self)
        received = time.monotonic()
        return message

    def disturbed_send(self: Any, message: Any, body: Any = b"") -> None:
        if isinstance(message, Done):
            if (folder / f"slow-{instance()}").exists():
                spin(9 * (time.monotonic() - received))
            garbage = folder / f"garbage-{instance()}"
            if garbage.exists():
                garbage.unlink()
                self._socket.sendall(b"Segmentation fault (core dumped)\n")
        send(self, message, body)

    Channel.receive, Channel.send = timed_receive, disturbed_send  # type: ignore[method-assign]


def instance() -> str:
    """The id of the instance of this worker."""
    return sys.orig_argv[sys.orig_argv.index("--instance") + 1]


def write_to_channel(data: bytes) -> None:
    """Write to the socket that is the channel to the front."""
    for number in range(3, 64):
        with contextlib.suppress(OSError):
            if stat.S_ISSOCK(os.fstat(number).st_mode):
                os.write(number, data)


def spin(seconds: float = 3600.0) -> None:
    """Use CPU time."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        pass


def end_with(data: bytes) -> None:
    """Write to the channel and exit."""
    write_to_channel(data)
    os._exit(1)


ENDINGS = {
    SEGFAULT: lambda: os.kill(os.getpid(), signal.SIGSEGV),
    KILL: lambda: os.kill(os.getpid(), signal.SIGKILL),
    EXIT: lambda: os._exit(0),
    WAIT: lambda: time.sleep(3600),
    SPIN: spin,
    GARBAGE: lambda: write_to_channel(b"Segmentation fault (core dumped)\n"),
    PARTIAL: lambda: end_with(b"\x00\x00\x01"),
}

if "launcher.worker" in sys.orig_argv:
    if "LAUNCH_TEST_FAULTS" in os.environ:
        misbehave_by_files(Path(os.environ["LAUNCH_TEST_FAULTS"]))
    else:
        misbehave()
