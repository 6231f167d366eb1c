"""Verification of real processes; each kind of miss is provoked and must be reported."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from launcher.core.machine.cpuset import format_cpu_list, parse_cpu_list
from launcher.core.planning.binding import Level
from launcher.errors import InstanceError
from launcher.host.process.verify_binding import (
    Pages,
    Thread,
    Verification,
    check_masks,
    check_memory,
    check_threads,
    count_computing,
    parse_numa_maps,
    verify,
)

CPUS = tuple(sorted(os.sched_getaffinity(0)))
NODES = parse_cpu_list(
    next(
        line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("Mems_allowed_list:")
    ).split(":")[1]
)

two_cpus = pytest.mark.skipif(len(CPUS) < 2, reason="needs two cpus")

# Threads of a process that sleep until its standard input ends; each may first move or compute.
PROGRAM = """
import os, sys, threading, time
def live(do):
    exec(do)
    ready.release()
    done.wait()
ready, done = threading.Semaphore(0), threading.Event()
actions = sys.argv[1:]
for action in actions:
    threading.Thread(target=live, args=(action,)).start()
for action in actions:
    ready.acquire()
print('up', flush=True)
sys.stdin.read()
done.set()
"""
BURN = "start = time.thread_time()\nwhile time.thread_time() < start + 0.3: pass"


@contextmanager
def process(*actions: str, cpus: tuple[int, ...] = CPUS[:1], main: str = "") -> Iterator[int]:
    """A process bound to ``cpus`` with one more thread per action; its pid."""
    command = [sys.executable, "-I", "-S", "-c", main + PROGRAM, *actions]
    bound = ["taskset", "-c", format_cpu_list(cpus), *command]
    with subprocess.Popen(bound, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as running:
        assert running.stdin is not None
        assert running.stdout is not None
        assert running.stdout.readline() == "up\n"
        yield running.pid
        running.stdin.close()


def look(pid: int, *, cpus: tuple[int, ...] = CPUS[:1], threads: int | None = 1, level: Level = "bind") -> Verification:
    return verify(pid, cpus, NODES, threads, level)


def test_a_process_placed_as_planned_has_no_miss() -> None:
    with process("", "") as pid:
        found = look(pid, threads=3)
    assert found.misses == ()
    assert found.ok
    assert (found.pid, found.cpus, found.threads) == (pid, str(CPUS[0]), 3)
    assert found.openmp == ()
    assert found.private_bytes > 1 << 20
    assert found.sentence().startswith(f"verified: all 3 threads on cpus {CPUS[0]}")


@pytest.mark.skipif(not Path("/proc/self/numa_maps").exists(), reason="this kernel knows no NUMA")
def test_memory_is_found_on_its_nodes() -> None:
    with process(main="hoard = b'x' * (32 << 20)\n") as pid:
        found = look(pid)
    assert found.private_local == 1.0
    assert found.private_bytes > 32 << 20
    assert found.file_bytes > 0
    assert found.unchecked == ()


@two_cpus
def test_one_thread_that_moved_is_reported() -> None:
    moved = f"os.sched_setaffinity(0, [{CPUS[1]}])"
    with process("", moved) as pid:
        found = look(pid, threads=3)
        (stray,) = [
            task
            for task in os.listdir(f"/proc/{pid}/task")  # noqa: PTH208  # names are what is needed
            if os.sched_getaffinity(int(task)) == {CPUS[1]}
        ]
    assert found.misses == (
        f"1 of 3 threads may run outside the planned cpus {CPUS[0]}: on {CPUS[1]} (thread {stray})",
    )
    assert found.sentence() == found.misses[0]


@two_cpus
def test_a_binding_without_effect_is_reported() -> None:
    with process(cpus=CPUS[:2]) as pid:
        (miss,) = look(pid, cpus=CPUS[1:2]).misses
    assert miss.startswith(f"1 of 1 threads may run outside the planned cpus {CPUS[1]}: on {CPUS[0]}")


@two_cpus
def test_threads_that_all_run_on_one_of_the_planned_cpus_are_reported() -> None:
    with process("", cpus=CPUS[:1]) as pid:
        (miss,) = look(pid, cpus=CPUS[:2], threads=2).misses
    assert miss == f"no thread may run on cpus {CPUS[1]} of the planned {format_cpu_list(CPUS[:2])}"


def test_too_few_threads_are_reported() -> None:
    with process() as pid:
        (miss,) = look(pid, threads=4).misses
    assert miss == "the process has 1 threads; 4 were planned to compute"


def test_far_too_many_threads_are_reported() -> None:
    with process(*[""] * 12) as pid:
        (miss,) = look(pid, threads=1).misses
    assert miss == "the process has 13 threads; with 1 planned to compute, at most 11 were expected"


def test_more_computing_threads_than_planned_are_reported_and_idle_ones_are_not() -> None:
    with process(BURN, BURN, "", "") as pid:
        found = look(pid, threads=2)
        assert found.computing_threads == 3
        assert found.misses == ("3 threads have computed, 2 were planned: they share the planned cpus",)
        assert look(pid, threads=3).ok


def test_the_threads_of_a_backend_that_does_not_compute_are_not_checked() -> None:
    with process() as pid:
        assert look(pid, threads=None).ok


def test_a_process_that_has_exited_is_an_error_with_its_pid() -> None:
    with process() as pid:
        pass
    with pytest.raises(InstanceError, match=f"process {pid} cannot be verified"):
        look(pid)


@two_cpus
def test_at_level_none_nothing_is_checked_but_everything_is_reported() -> None:
    with process(cpus=CPUS[:2]) as pid:
        found = look(pid, cpus=CPUS[:1], level="none")
    assert found.ok
    assert found.cpus == format_cpu_list(CPUS[:2])


def test_the_verification_as_json() -> None:
    with process() as pid:
        found = look(pid, threads=9)
    fields = json.loads(json.dumps(found.to_json()))
    assert fields["ok"] is False
    assert fields["misses"] == list(found.misses)
    assert {"pid", "level", "cpus", "threads", "private_bytes", "private_local", "openmp"} <= set(fields)


# A worker on node 1 of a two-node machine: heap and stack there, a library and the weights of a file on the node that
# read them first, one mapping with 2 MiB pages. Written by hand, following numa(7).
NUMA_MAPS = """\
00400000 bind:1 file=/usr/bin/python3.11 mapped=300 active=0 N0=300 kernelpagesize_kB=4
00a00000 bind:1 file=/usr/bin/python3.11 anon=20 dirty=20 mapped=21 N0=1 N1=20 kernelpagesize_kB=4
00b00000 bind:1 file=/usr/bin/python3.11 anon=50 dirty=50 active=0 N1=50 kernelpagesize_kB=4
01000000 bind:1 heap anon=1000 dirty=1000 active=0 N0=100 N1=900 kernelpagesize_kB=4
7f0000000000 bind:1 file=/models/a\\040b/model.safetensors mapped=5000 N0=4000 N1=1000 kernelpagesize_kB=4
7f1000000000 bind:1 file=/anon_hugepage\\040(deleted) huge anon=3 dirty=3 N1=3 kernelpagesize_kB=2048
7f2000000000 bind=static:1 anon=10 dirty=10 N1=10 kernelpagesize_kB=4
7ffc00000000 bind:1 stack anon=8 dirty=8 N1=8 kernelpagesize_kB=4
7ffd00000000 bind:1
"""


def test_pages_are_summed_per_node_by_size_and_kind() -> None:
    pages = parse_numa_maps(NUMA_MAPS)
    kib = 1024
    assert dict(pages.private) == {0: 100 * 4 * kib, 1: (50 + 900 + 10 + 8) * 4 * kib + 3 * 2048 * kib}
    assert dict(pages.shared_file) == {0: (300 + 1 + 4000) * 4 * kib, 1: (20 + 1000) * 4 * kib}


def test_memory_on_another_node_is_reported_with_its_size() -> None:
    gib = 1 << 30
    assert list(check_memory([(0, 1 * gib), (1, 99 * gib)], [1])) == []
    (miss,) = check_memory([(0, 3 * gib), (1, 5 * gib)], [1])
    assert miss == "only 62.5% of its memory is on node 1, expected at least 95%: 3072 MiB on node 0"
    assert list(check_memory([(0, 3 * gib), (1, 5 * gib)], [0, 1])) == [], "interleaved over both"


def test_unknown_memory_is_not_checked() -> None:
    assert parse_numa_maps("") == Pages((), ())
    assert list(check_memory([], [0])) == []
    assert list(check_memory([(0, 4096)], [])) == []


def test_a_kernel_without_numa_maps_is_reported(tmp_path: Path) -> None:
    with process() as pid:
        copy = tmp_path / str(pid)
        (copy / "task").mkdir(parents=True)
        (copy / "task" / str(pid)).mkdir()
        for name in ("maps", f"task/{pid}/status", f"task/{pid}/stat"):
            (copy / name).write_text(Path(f"/proc/{pid}/{name}").read_text())
        found = verify(pid, CPUS[:1], NODES, 1, "bind", proc=tmp_path)
    assert found.ok
    assert found.private_local is None
    assert found.unchecked == ("memory placement: numa_maps cannot be read (No such file or directory)",)
    assert found.sentence() == f"verified: all 1 threads on cpus {CPUS[0]}; not checked: {found.unchecked[0]}"


def threads(*seconds: float, cpus: Callable[[int], tuple[int, ...]] = lambda _: (0,)) -> list[Thread]:
    return [Thread(100 + number, cpus(number), time) for number, time in enumerate(seconds)]


@pytest.mark.parametrize(
    ("seconds", "computing"),
    [
        ((0.0,), 1),
        ((9.0, 0.0, 0.0), 1),
        ((9.0, 3.0, 3.1, 0.0), 3),
        ((9.0, 3.0, 0.1), 2),  # a thread of an idle pool, which spun while it was created
        ((0.0, 0.1, 0.1), 1),  # spinning while they are created
    ],
)
def test_computing_threads_are_distinguished_from_idle_ones(seconds: tuple[float, ...], computing: int) -> None:
    assert count_computing(threads(*seconds), 100) == computing


def test_the_planned_threads_with_the_idle_pool_of_torch_are_not_a_miss() -> None:
    team = threads(5.0, 2.0, 2.0, 2.0, 0.0, 0.0, 0.0, 0.0)
    assert list(check_threads(team, 4, 100)) == []


def test_a_long_list_of_threads_is_shortened() -> None:
    found = threads(*[0.0] * 9, cpus=lambda number: (0,) if number == 0 else (4, 5))
    (miss,) = check_masks(found, [0])
    assert miss == (
        "8 of 9 threads may run outside the planned cpus 0: on 4-5 (thread 101, 102, 103, 104, 105 and 3 more)"
    )
