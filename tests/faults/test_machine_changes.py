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
    words = ("taskset", "-c", f"{FIRST},{SECOND}") if group is None else ()
    with launch(*PLAIN, *CHANGING, *arguments, prefix=(*prefix, *words)) as server:
        server.wait_serving()
        with Load(server) as load:
            load.wait_answers(CONNECTIONS)
            yield server, load
            load.wait_answers(2 * CONNECTIONS)
        assert load.wrong == []


def cpus_of(server: Running) -> list[list[int]]:
    return [one["cpus"] for one in server.info()["instances"]]


def masks(pid: int) -> set[frozenset[int]]:
    """The affinity masks of the threads of a process."""
    found = set()
    for thread in os.listdir(f"/proc/{pid}/task"):
        with contextlib.suppress(ProcessLookupError):
            found.add(frozenset(os.sched_getaffinity(int(thread))))
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


@two_cpus
def test_mode_41_a_cpuset_that_shrinks_and_grows_gets_a_plan_for_each_state(launch: Launch, group: Group) -> None:
    with loaded(launch, "--instances", "2", group=group) as (server, load):
        assert sorted(cpus_of(server)) == [[FIRST], [SECOND]]
        group.set("cpuset.cpus", str(SECOND))
        changed = server.wait_for("machine_changed")
        assert f"cpus {FIRST}-{SECOND} -> {SECOND}" in changed["message"]
        server.wait_for("machine_replanned")
        assert cpus_of(server) == [[SECOND]]
        machine = server.info()["machine"]
        assert (machine["state"], machine["cpus"]) == ("degraded", str(SECOND))
        assert "--instances 2" in machine["degraded"][0]
        assert "degraded: " in ctl(server, "status").stdout
        assert metric(server, "launcher_plan_degraded") == 1
        assert metric(server, 'launcher_machine_changes_total{part="cpus"}') == 1
        load.wait_answers(CONNECTIONS)
        group.set("cpuset.cpus", f"{FIRST},{SECOND}")
        server.wait_for("machine_replanned")
        assert sorted(cpus_of(server)) == [[FIRST], [SECOND]]
        assert server.info()["machine"]["state"] == "planned"
        assert metric(server, "launcher_plan_degraded") == 0
        for one in server.info()["instances"]:
            eventually(lambda one=one: masks(one["pid"]) == {frozenset(one["cpus"])}, one)
