"""Signals before and after the event loop: real signals to a process that handles them."""

from __future__ import annotations

import signal
import subprocess
import sys

import pytest

from launcher.signal_sets import UNUSED_SIGNALS, name_of


def run(code: str) -> subprocess.CompletedProcess[str]:
    program = f"import os, signal\nfrom launcher.serve.signals import SignalInbox\n{code}"
    return subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=False)


@pytest.mark.parametrize("name", ["SIGTERM", "SIGINT", "SIGQUIT"])
def test_before_anything_runs_a_stop_signal_exits_with_status_0(name: str) -> None:
    done = run(f"SignalInbox(); os.kill(os.getpid(), signal.{name}); print('not reached')")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_a_second_one_does_not_wait_for_the_first() -> None:
    code = """
SignalInbox()
try:
    os.kill(os.getpid(), signal.SIGTERM)
finally:
    os.kill(os.getpid(), signal.SIGINT)
    print("not reached")
"""
    assert (run(code).returncode, run(code).stdout) == (128 + signal.SIGINT, "")


def test_signals_between_start_and_loop_are_kept_in_order() -> None:
    code = """
import asyncio
inbox = SignalInbox()
os.kill(os.getpid(), signal.SIGHUP)
inbox.hold()
os.kill(os.getpid(), signal.SIGTERM)

async def main():
    received = inbox.received()
    print(await anext(received), await anext(received))
    asyncio.get_running_loop().call_soon(os.kill, os.getpid(), signal.SIGUSR1)
    print(await anext(received))

asyncio.run(main())
inbox.finish(7)
os.kill(os.getpid(), signal.SIGUSR2)
os.kill(os.getpid(), signal.SIGTERM)
"""
    done = run(code.replace("anext(received)", "received.__anext__()"))
    assert done.stdout.split() == [str(int(n)) for n in (signal.SIGHUP, signal.SIGTERM, signal.SIGUSR1)], done.stderr
    assert done.returncode == 7


def test_every_signal_has_a_name() -> None:
    assert all(name_of(number).startswith("SIG") for number in UNUSED_SIGNALS)
    assert name_of(signal.SIGRTMIN + 3) == "SIGRTMIN+3"
