"""What a process does, seen from outside, with real processes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest

from launcher.host.process.activity import watch_activity

SPIN = "print(flush=True)\nwhile True: pass"
WAIT = "import time\nprint(flush=True)\ntime.sleep(600)"
CHILD = f"import subprocess, sys\nsubprocess.run([sys.executable, '-c', {SPIN!r}])"


@pytest.fixture
def start() -> Iterator[Any]:
    started: list[subprocess.Popen[bytes]] = []

    def run(code: str) -> int:
        process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, start_new_session=True)
        started.append(process)
        assert process.stdout is not None
        process.stdout.readline()
        return process.pid

    yield run
    for process in started:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        assert process.stdout is not None
        process.stdout.close()


@pytest.mark.parametrize(("code", "state"), [(SPIN, "active"), (WAIT, "inactive"), (CHILD, "active")])
def test_a_process_that_computes_itself_or_in_a_child_is_active(start: Any, code: str, state: str) -> None:
    assert watch_activity(start(code)) == state


@pytest.mark.parametrize("code", [SPIN, WAIT])
def test_a_stopped_process_is_stopped(start: Any, code: str) -> None:
    pid = start(code)
    os.kill(pid, signal.SIGSTOP)
    assert watch_activity(pid) == "stopped"


def test_a_process_that_is_gone_has_no_activity() -> None:
    with subprocess.Popen([sys.executable, "-c", ""]) as process:
        process.wait()
        assert watch_activity(process.pid) is None
