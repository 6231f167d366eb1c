"""The machine changes while a server runs: cpuset, quota, memory limit, affinity; programs on its cores.

All with real processes and, where the machine allows it, real control groups; 32 connections send requests meanwhile,
and every one must be answered correctly.
"""

from __future__ import annotations

import contextlib
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.cgroups import Group, fresh_name, made
from tests.e2e.running import Launch, Running
from tests.faults.test_rolling import CONNECTIONS, SERVER, Load, ctl

pytestmark = pytest.mark.slow

ALLOWED = sorted(os.sched_getaffinity(0))
FIRST, SECOND = ALLOWED[0], ALLOWED[1] if len(ALLOWED) > 1 else -1
# Without a pause between two changes of the plan, so that a test can make several.
CHANGING = ("--replan-seconds", "0")
PLAIN = tuple(word for word in SERVER if word != "--oversubscribe")

two_cpus = pytest.mark.skipif(len(ALLOWED) < 2, reason="needs two cpus")


@pytest.fixture(scope="module")
def group() -> Iterator[Group]:
    with made(f"{fresh_name()}-changes") as group:
        yield group


@pytest.fixture(autouse=True, scope="module")
def runtime_folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_RUNTIME_DIR", str(tmp_path_factory.mktemp("run")))
        yield


@contextlib.contextmanager
def loaded(launch: Launch, *arguments: str, group: Group | None = None) -> Iterator[tuple[Running, Load]]:
    """A serving server with load, inside ``group`` and limited to two cpus; no answer may be missing or wrong."""
    prefix = () if group is None else group.prefix()
    if group is not None:
        group.set("cpuset.cpus", f"{FIRST},{SECOND}")
        group.set("cpu.cfs_quota_us", "-1")
        group.set("memory.limit_in_bytes", "-1")
    words = ("taskset", "-c", f"{FIRST},{SECOND}") if group is None else ()
    with launch(*PLAIN, *CHANGING, *arguments, prefix=(*prefix, *words)) as server:
        server.wait_serving()
        with Load(server, 0.02) as load:
            load.wait_answers(CONNECTIONS)
            yield server, load
            load.wait_answers(2 * CONNECTIONS)
        assert load.wrong == []


def cpus_of(server: Running) -> list[list[int]]:
    return [one["cpus"] for one in server.info()["instances"]]


def masks(pid: int) -> set[frozenset[int]]:
    """The affinity masks of the threads of a process."""
    found = set()
    for thread in Path(f"/proc/{pid}/task").iterdir():
        with contextlib.suppress(ProcessLookupError):
            found.add(frozenset(os.sched_getaffinity(int(thread.name))))
    return found


def eventually(condition: Callable[[], bool], what: Any = "") -> None:
    """Wait until the condition holds; the time limit only ends a test that hangs."""
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline, what
        time.sleep(0.05)


def metric(server: Running, name: str) -> float:
    found = re.search(rf"^{re.escape(name)} (\S+)$", server.get("/metrics").text, re.MULTILINE)
    assert found, name
    return float(found[1])


@pytest.fixture(scope="module")
def two_instances(launch: Launch, group: Group) -> Iterator[tuple[Running, Load]]:
    """One server for several changes, because each start takes seconds; each test may be the first."""
    with loaded(launch, "--instances", "2", group=group) as (server, load):
        yield server, load


@two_cpus
def test_mode_41_the_cpuset_and_the_affinity_mask_change_under_load(
    two_instances: tuple[Running, Load], group: Group
) -> None:
    server, load = two_instances
    threads_are_bound_again(server)

    group.set("cpuset.cpus", str(SECOND))
    changed = server.wait_for("machine_changed")
    assert f"cpus {FIRST}-{SECOND} -> {SECOND}" in changed["message"]
    assert f"the plan uses cpus {FIRST}, which are no longer available" in changed["message"]
    server.wait_for("machine_replanned")
    assert cpus_of(server) == [[SECOND]]
    machine = server.info()["machine"]
    assert (machine["state"], machine["cpus"]) == ("degraded", str(SECOND))
    assert "--instances 2" in machine["degraded"][0]
    assert "degraded: the options do not fit" in ctl(server, "status").stdout
    assert metric(server, "launcher_plan_degraded") == 1
    assert metric(server, 'launcher_machine_changes_total{part="cpus"}') == 1
    load.wait_answers(CONNECTIONS)

    group.set("cpuset.cpus", f"{FIRST},{SECOND}")
    os.sched_setaffinity(server.process.pid, {FIRST})  # the mask of the front is a limit of the server, too
    server.wait_for("machine_replanned")
    assert cpus_of(server) == [[FIRST]]
    load.wait_answers(CONNECTIONS)

    os.sched_setaffinity(server.process.pid, {FIRST, SECOND})
    server.wait_for("machine_replanned")
    assert sorted(cpus_of(server)) == [[FIRST], [SECOND]]
    assert server.info()["machine"]["state"] == "planned"
    assert metric(server, "launcher_plan_degraded") == 0
    are_bound(server)


@two_cpus
def test_mode_42_the_cpu_quota_changes_under_load(two_instances: tuple[Running, Load], group: Group) -> None:
    server, load = two_instances
    group.quota(1.5)  # one whole cpu
    changed = server.wait_for("machine_changed")
    assert "cpu quota none -> 1.5 cpus" in changed["message"]
    assert "the plan uses 2 cpus, and the cpu quota allows 1.5" in changed["message"]
    server.wait_for("machine_replanned")
    assert len(cpus_of(server)) == 1
    load.wait_answers(CONNECTIONS)


@two_cpus
def test_mode_68_the_memory_limit_changes_under_load(two_instances: tuple[Running, Load], group: Group) -> None:
    server, _ = two_instances
    group.set("cpu.cfs_quota_us", "-1")
    group.set("memory.limit_in_bytes", str(900 << 20))
    assert "memory limit none -> 0.88 GiB" in server.wait_for("machine_changed")["message"]
    server.wait_for("machine_replanned")  # cores for two instances, but memory for one
    assert cpus_of(server) == [[FIRST, SECOND]]
    assert server.info()["machine"]["state"] == "degraded"


def threads_are_bound_again(server: Running) -> None:
    (first, second) = sorted(server.info()["instances"], key=lambda one: one["cpus"])
    for thread in Path(f"/proc/{first['pid']}/task").iterdir():
        os.sched_setaffinity(int(thread.name), {FIRST, SECOND})
    moved = server.wait_for("rebound")
    assert f"were moved to cpus {FIRST}-{SECOND} and were bound again to cpus {FIRST}" in moved["message"]
    os.sched_setaffinity(second["pid"], {FIRST})  # one thread only, as `taskset -p` does
    server.wait_for("rebound")
    are_bound(server)
    assert metric(server, "launcher_rebound_threads_total") >= 2
    assert {one["pid"] for one in server.info()["instances"]} == {first["pid"], second["pid"]}


def are_bound(server: Running) -> None:
    for one in server.info()["instances"]:
        eventually(lambda one=one: masks(one["pid"]) == {frozenset(one["cpus"])}, one)


@two_cpus
def test_mode_46_a_server_that_only_reports_keeps_its_plan_and_names_others_on_its_cores(
    launch: Launch, group: Group
) -> None:
    reporting = ("--instances", "2", "--on-machine-change", "report")
    with loaded(launch, *reporting, group=group) as (server, load), busy_program(SECOND) as program:
        before = {one["pid"] for one in server.info()["instances"]}
        group.set("cpuset.cpus", str(FIRST))
        message = server.wait_for("machine_changed")["message"]
        assert f"the plan uses cpus {SECOND}, which are no longer available" in message
        eventually(lambda: server.info()["machine"]["state"] == "degraded")
        load.wait_answers(CONNECTIONS)
        group.set("cpuset.cpus", f"{FIRST},{SECOND}")
        server.wait_for("machine_changed")
        eventually(lambda: server.info()["machine"]["state"] == "planned")
        assert {one["pid"] for one in server.info()["instances"]} == before
        are_bound(server)  # in cgroup v1, each change of a cpuset unbinds all of its threads

        found = server.wait_for("interference", program_pid=program.pid)
        assert f"pid {program.pid}, python" in found["message"]
        assert f"affinity {SECOND}" in found["message"]
        assert metric(server, "launcher_foreign_cpu_seconds_total") > 0


@contextlib.contextmanager
def busy_program(cpu: int) -> Iterator[subprocess.Popen[bytes]]:
    """A program that is pinned to a cpu and keeps it busy."""
    with subprocess.Popen(["taskset", "-c", str(cpu), sys.executable, "-c", "while True: pass"]) as program:
        try:
            yield program
        finally:
            program.kill()
