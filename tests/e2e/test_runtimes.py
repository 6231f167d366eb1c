"""Preloaded libraries from the command line to the process: found, shown, and really mapped."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from launcher.host.process.preload import find_libraries
from tests.e2e.running import Launch

needs_gcc = pytest.mark.skipif(shutil.which("gcc") is None, reason="needs gcc to make a library")

# The C library's own allocator under another name, so that it works with any program.
PASSING_ON = """
#include <stddef.h>
extern void *__libc_malloc(size_t), *__libc_calloc(size_t, size_t), *__libc_realloc(void *, size_t);
extern void __libc_free(void *);
void *malloc(size_t n) { return __libc_malloc(n); }
void *calloc(size_t a, size_t b) { return __libc_calloc(a, b); }
void *realloc(void *p, size_t n) { return __libc_realloc(p, n); }
void free(void *p) { __libc_free(p); }
"""


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("lib") / "libjemalloc.so.2"
    command = ["gcc", "-shared", "-fPIC", "-x", "c", "-", "-o", str(path)]
    subprocess.run(command, input=PASSING_ON, text=True, check=True)
    return path


def environment(library: Path) -> dict[str, str]:
    inherited = {name: value for name, value in os.environ.items() if name not in ("LD_PRELOAD", "MALLOC_CONF")}
    return {**inherited, "LD_LIBRARY_PATH": str(library.parent), "HF_HUB_OFFLINE": "1"}


def command_line(*words: str, env: dict[str, str]) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "launcher", *words]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False, env=env)


@needs_gcc
def test_the_report_shows_preloaded_libraries_after_those_of_the_user(library: Path, tmp_path: Path) -> None:
    own = tmp_path / "libmine.so"
    subprocess.run(["gcc", "-shared", "-x", "c", "-", "-o", str(own)], input="int mine;", text=True, check=True)
    env = {**environment(library), "LD_PRELOAD": str(own)}
    done = command_line("topology", "--instances", "1", "--allocator", "jemalloc", "--json", env=env)
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    (instance,) = report["plan"]["instances"]
    assert instance["env"]["LD_PRELOAD"] == f"{own}:{library}"
    assert instance["env"]["MALLOC_CONF"] == "oversize_threshold:0"
    assert f"LD_PRELOAD={own} in your environment is kept and precedes {library}." in report["warnings"]


@needs_gcc
def test_the_library_is_mapped_in_a_program(library: Path) -> None:
    words = ("run", "--instances", "1", "--allocator", "jemalloc", "--", "cat", "/proc/self/maps")
    done = command_line(*words, env=environment(library))
    assert done.returncode == 0, done.stderr
    assert str(library) in done.stdout


@needs_gcc
def test_nothing_is_preloaded_into_a_program_by_default(library: Path) -> None:
    done = command_line("run", "--instances", "1", "--", "cat", "/proc/self/maps", env=environment(library))
    assert done.returncode == 0, done.stderr
    assert str(library) not in done.stdout


def test_a_requested_library_that_is_missing_gives_exit_code_3_before_anything_starts() -> None:
    if find_libraries(("intel",), os.environ).searches[0].usable is not None:
        pytest.skip("this machine has Intel's runtime")
    done = command_line("--openmp", "intel", "--port", "0", env=dict(os.environ))
    assert done.returncode == 3
    assert "libiomp5.so" in done.stderr
    assert "intel-openmp" in done.stderr
    assert "started as pid" not in done.stderr


@needs_gcc
@pytest.mark.slow
def test_the_library_is_mapped_in_a_worker(library: Path, launch: Launch) -> None:
    words = ("--instances", "1", "--backend", "fake", "--allocator", "jemalloc")
    with launch(*words, env=environment(library)) as server:
        server.wait_serving()
        maps = Path(f"/proc/{server.worker_of(0)}/maps").read_text()
        assert server.info()["instances"][0]["env"]["LD_PRELOAD"] == str(library)
    assert str(library) in maps
