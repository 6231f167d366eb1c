"""Counting threads by runtime: real OpenMP runtimes in real processes, and their verification."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from launcher.host.process.count_openmp_threads import count_openmp_threads, parse_openmp
from launcher.host.process.verify_binding import verify

CPUS = tuple(sorted(os.sched_getaffinity(0)))

# Loads libraries, or runs a parallel region, as compiled programs do.
PROGRAM = """
import ctypes, sys
body = ctypes.CFUNCTYPE(None, ctypes.c_void_p)(lambda _: None)
for word in sys.argv[1:]:
    verb, _, path = word.partition(':')
    library = ctypes.CDLL(path)
    if verb == 'use':
        library.GOMP_parallel(body, None, 3, 0)
print('up', flush=True)
sys.stdin.read()
"""


@pytest.fixture
def two_runtimes(tmp_path: Path) -> tuple[str, str]:
    """Two copies of GNU's runtime, which the loader treats as different libraries."""
    found = [
        *Path("/usr/lib").glob("*/libgomp.so.1"),
        *Path(sys.prefix).glob("lib/python3*/site-packages/torch/lib/libgomp*"),
    ]
    if not found:
        pytest.skip("no libgomp on this machine")
    first, second = tmp_path / "libgomp.so.1", tmp_path / "libgomp-6a29c32d.so.1.0.0"
    for copy in (first, second):
        shutil.copy(found[0].resolve(), copy)
    return str(first), str(second)


@contextmanager
def process(*words: str) -> Iterator[int]:
    command = [sys.executable, "-I", "-S", "-c", PROGRAM, *words]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as running:
        assert running.stdin is not None
        assert running.stdout is not None
        assert running.stdout.readline() == "up\n"
        yield running.pid
        running.stdin.close()


def test_the_threads_of_each_runtime_are_counted(two_runtimes: tuple[str, str]) -> None:
    first, second = two_runtimes
    with process(f"use:{first}", f"load:{second}") as pid:
        counts = count_openmp_threads(Path(f"/proc/{pid}"))
    assert counts.by_runtime == {first: 2, second: 0}, "one of the three computing threads is the main thread"
    assert counts.never_blocked == 0


def test_two_runtimes_that_both_have_threads_are_reported(two_runtimes: tuple[str, str]) -> None:
    first, second = two_runtimes
    with process(f"use:{first}", f"use:{second}") as pid:
        found = verify(pid, CPUS, (), None, "cpus")
    (miss,) = found.misses
    assert miss.startswith("2 OpenMP runtimes have started threads")
    assert f"{first} (2)" in miss
    assert f"{second} (2)" in miss
    assert dict(found.openmp_threads) == {first: 2, second: 2}


def test_a_second_runtime_that_is_only_loaded_is_not_a_miss(two_runtimes: tuple[str, str]) -> None:
    first, second = two_runtimes
    with process(f"load:{first}", f"use:{second}") as pid:
        found = verify(pid, CPUS, (), None, "cpus")
    assert found.ok
    assert found.openmp == tuple(sorted(two_runtimes))
    assert dict(found.openmp_threads) == {first: 0, second: 2}


def test_threads_that_never_block_are_reported_as_unchecked(two_runtimes: tuple[str, str]) -> None:
    first, second = two_runtimes
    spin = "import threading\nthreading.Thread(target=lambda: exec('while True: pass'), daemon=True).start()\n"
    command = [sys.executable, "-I", "-S", "-c", spin + PROGRAM, f"use:{first}", f"load:{second}"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as running:
        assert running.stdin is not None
        assert running.stdout is not None
        running.stdout.readline()
        found = verify(running.pid, CPUS, (), None, "cpus")
        running.kill()
    assert found.ok
    assert dict(found.openmp_threads) == {first: 2, second: 0}
    assert found.unchecked == ("which of 2 OpenMP runtimes have threads: 1 threads were never blocked",)


MAPS = """\
7f00-7f01 r-xp 00000000 fe:00 11 /venv/torch/lib/libgomp.so.1
7f01-7f02 r--p 00000000 fe:00 11 /venv/torch/lib/libgomp.so.1
7f02-7f03 r-xp 00000000 fe:00 11 /venv/torch/lib/../lib/libgomp.so.1
7f03-7f04 r-xp 00000000 fe:00 12 /opt/intel/libiomp5.so
7f04-7f05 r-xp 00000000 fe:00 13 /usr/lib/llvm/libomp.so.5
7f05-7f06 r-xp 00000000 fe:00 14 /venv/x.libs/libgomp-6a29c32d.so.1.0.0 (deleted)
7f06-7f07 r-xp 00000000 fe:00 15 /usr/lib/libcomponents.so.1
7f07-7f08 r-xp 00000000 fe:00 16 /usr/lib/libompt_tools.so
7f08-7f09 rw-p 00000000 00:00 0
7f09-7f0a r-xp 00000000 fe:00 17 /home/some one/libomp.so
"""


def test_openmp_runtimes_are_recognized_and_counted_once() -> None:
    assert parse_openmp(MAPS) == (
        "/home/some one/libomp.so",
        "/opt/intel/libiomp5.so",
        "/usr/lib/llvm/libomp.so.5",
        "/venv/torch/lib/libgomp.so.1",
        "/venv/x.libs/libgomp-6a29c32d.so.1.0.0 (deleted)",
    )
