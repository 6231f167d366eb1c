"""Changes of a process's own mask, each in a separate process."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

CPUS = sorted(os.sched_getaffinity(0))
two_cpus = pytest.mark.skipif(len(CPUS) < 2, reason="needs two cpus")

MASKS = """
import json, os, sys, threading
from launcher.errors import MachineError
from launcher.pinning import bind_process
ready, done = threading.Event(), threading.Event()
def sleep():
    ready.set()
    done.wait()
threading.Thread(target=sleep, daemon=True).start()
ready.wait()
try:
    before = bind_process(json.loads(sys.argv[1]))
except MachineError as error:
    before = str(error)
masks = [sorted(os.sched_getaffinity(int(task))) for task in os.listdir("/proc/self/task")]
print(json.dumps([before, masks]))
"""


def _bind(cpus: list[int]) -> tuple[list[int] | str, list[list[int]]]:
    command = [sys.executable, "-c", MASKS, json.dumps(cpus)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
    assert done.returncode == 0, done.stderr
    before, masks = json.loads(done.stdout)
    return before, masks


@two_cpus
def test_all_threads_of_a_process_are_bound_and_the_previous_mask_is_returned() -> None:
    assert _bind(CPUS[-1:]) == (CPUS, [CPUS[-1:], CPUS[-1:]])


@pytest.mark.parametrize("cpus", [[4090], [CPUS[0], 4090]])
def test_a_partly_refused_binding_leaves_the_mask_unchanged(cpus: list[int]) -> None:
    said, masks = _bind(cpus)
    assert "4090" in said
    assert masks == [CPUS, CPUS]
