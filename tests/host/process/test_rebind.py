"""Threads that were moved are bound again; narrower masks that a program has chosen stay."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from launcher.host.process.rebind import bind_again

ALLOWED = tuple(sorted(os.sched_getaffinity(0)))
pytestmark = pytest.mark.skipif(len(ALLOWED) < 2, reason="needs two cpus")
# Three threads that wait until standard input is closed.
PROGRAM = (
    "import sys, threading\n"
    "wait = threading.Event()\n"
    "threads = [threading.Thread(target=wait.wait, daemon=True) for _ in range(2)]\n"
    "[thread.start() for thread in threads]\n"
    "print('ready', flush=True)\n"
    "sys.stdin.read()\n"
)


@pytest.fixture
def threads() -> Iterator[list[int]]:
    """The ids of the threads of a process; the first is that of the process."""
    with subprocess.Popen([sys.executable, "-c", PROGRAM], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        yield sorted(int(task.name) for task in Path(f"/proc/{process.pid}/task").iterdir())
        process.kill()


def masks(threads: list[int]) -> list[set[int]]:
    return [os.sched_getaffinity(thread) for thread in threads]


def test_threads_on_other_cpus_are_bound_again(threads: list[int]) -> None:
    first, second = ALLOWED[:2]
    os.sched_setaffinity(threads[0], {first})
    os.sched_setaffinity(threads[1], {first, second})
    os.sched_setaffinity(threads[2], {second})
    moved = bind_again(threads[0], [first], ALLOWED)
    assert moved is not None
    assert (moved.threads, moved.found, moved.bound_to, moved.problem) == (2, (first, second), (first,), None)
    assert masks(threads) == [{first}] * 3
    assert bind_again(threads[0], [first], ALLOWED) is None


def test_narrower_masks_stay_if_all_planned_cpus_can_be_used(threads: list[int]) -> None:
    first, second = ALLOWED[:2]
    for thread, cpus in zip(threads, ({first}, {second}, {first, second}), strict=True):
        os.sched_setaffinity(thread, cpus)
    assert bind_again(threads[0], [first, second], ALLOWED) is None
    assert masks(threads) == [{first}, {second}, {first, second}]
    for thread in threads:
        os.sched_setaffinity(thread, {second})
    moved = bind_again(threads[0], [first, second], ALLOWED)
    assert moved is not None
    assert masks(threads) == [{first, second}] * 3


def test_nothing_is_bound_if_no_planned_cpu_is_allowed_or_the_process_is_gone(threads: list[int]) -> None:
    first, second = ALLOWED[:2]
    before = masks(threads)
    assert bind_again(threads[0], [first], [second]) is None
    assert masks(threads) == before
    assert bind_again(1 << 22, [first], ALLOWED) is None


def test_a_cpu_that_is_not_allowed_now_is_left_out(threads: list[int]) -> None:
    first, second = ALLOWED[:2]
    bind_again(threads[0], [first, second], [second])
    assert masks(threads) == [{second}] * 3
