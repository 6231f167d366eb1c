"""Two launchers on one machine: claims, refusals, ``launch ps`` and ``launch stop``, with real processes."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.cli.running import launch as command
from tests.e2e.running import Launch, gone

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="two launchers need two cores"),
]

FAKE = ("--model", "random:tiny", "--backend", "fake")
Registered = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture
def env(tmp_path: Path) -> dict[str, str]:
    """A registry of the test's own."""
    return {"LAUNCH_REGISTRY": str(tmp_path / "registry")}


def listed(env: dict[str, str]) -> list[dict[str, Any]]:
    done = command("ps", "--json", env=env)
    assert (done.returncode, done.stderr) == (0, "")
    entries: list[dict[str, Any]] = json.loads(done.stdout)
    return entries


def cpus_of(plan: dict[str, Any]) -> set[int]:
    return {cpu for instance in plan["instances"] for cpu in instance["cpus"]}


def test_mode_47_the_second_launcher_takes_free_cores_and_the_third_is_refused(
    launch: Launch, env: dict[str, str]
) -> None:
    usable = len(json.loads(command("topology", "--json", env=env).stdout)["machine"]["cores"])
    one = (*FAKE, "--instances", "1", "--reserve-cores", "0")
    with launch(*one, "--cores-per-instance", "1", "--name", "first", env=env) as first:
        first.wait_serving()
        with launch(*one, "--cores-per-instance", str(usable - 1), env=env) as second:
            second.wait_serving()
            planned = [cpus_of(server.info()) for server in (first, second)]
            assert planned[0].isdisjoint(planned[1])
            entries = listed(env)
            port = second.address.rpartition(":")[2]
            assert [entry["name"] for entry in entries] == ["first", f"random-tiny-{port}"]
            assert [entry["pid"] for entry in entries] == [first.process.pid, second.process.pid]
            assert [entry["address"] for entry in entries] == [first.address, second.address]
            third = command(*one, "--port", "0", env=env)
            assert third.returncode == 3
            for server, name in ((first, "first"), (second, f"random-tiny-{port}")):
                assert f"'{name}' (pid {server.process.pid}" in third.stderr
                assert server.address in third.stderr
            report = command(*one, "--dry-run", "--json", env=env)
            assert report.returncode == 0
            assert any("A start would be refused now" in text for text in json.loads(report.stdout)["warnings"])
            shared = command("run", "--shared-cores", "--instances", "1", "--", "true", env=env)
            assert shared.returncode == 0, shared.stderr
            os.kill(second.process.pid, signal.SIGKILL)  # its claim dies with it
            second.process.wait()
        assert [entry["name"] for entry in listed(env)] == ["first"]
        freed = json.loads(command("--dry-run", "--json", *FAKE, env=env).stdout)
        assert cpus_of(freed["plan"]).isdisjoint(planned[0])
        assert any("'first' (pid " in text for text in freed["warnings"])
        assert first.end() == 0
    assert listed(env) == []


STARTS = 4


def test_mode_47_launchers_that_start_at_the_same_time_do_not_share_cores(env: dict[str, str], tmp_path: Path) -> None:
    program = "import os, sys, time; open(sys.argv[1] + str(os.getpid()), 'w').write(os.environ['LAUNCH_RUN_CPUS']);"
    program += "sys.stdin.read()"
    folder = tmp_path / "cpus"
    folder.mkdir()
    words = [sys.executable, "-m", "launcher", "run", "--instances", "1", "--cores-per-instance", "1", "--"]
    words += [sys.executable, "-c", program, f"{folder}/"]
    processes = [
        subprocess.Popen(words, stdin=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env={**os.environ, **env})
        for _ in range(STARTS)
    ]
    cores = len(json.loads(command("topology", "--json", env={"LAUNCH_REGISTRY": "off"}).stdout)["machine"]["cores"])
    expected = min(STARTS, cores)
    deadline = time.monotonic() + 120
    while len([file for file in folder.iterdir() if file.read_text()]) < expected:
        assert time.monotonic() < deadline, [process.poll() for process in processes]
        time.sleep(0.05)
    refused = []
    while len(refused) < STARTS - expected:
        assert time.monotonic() < deadline
        refused = [process for process in processes if process.poll() is not None]
    for process in processes:
        _, stderr = process.communicate("", timeout=60)
        assert process.returncode == (3 if process in refused else 0), stderr
    taken = [file.read_text() for file in folder.iterdir()]
    assert len(taken) == len(set(taken)) == expected


def test_a_launcher_in_a_copy_of_launch_run_uses_the_cores_of_its_copy(env: dict[str, str]) -> None:
    inner = [sys.executable, "-m", "launcher", "run", "--instances", "1", "--", "printenv", "LAUNCH_RUN_CPUS"]
    done = command("run", "--instances", "2", "--cores-per-instance", "1", "--", *inner, env=env)
    assert done.returncode == 0, done.stderr
    assert len({line.split("] ")[1] for line in done.stdout.splitlines()}) == 2


def test_mode_47_another_plan_of_a_running_server_claims_its_cores(launch: Launch, env: dict[str, str]) -> None:
    one = (*FAKE, "--instances", "1", "--cores-per-instance", "1", "--reserve-cores", "0")
    with launch(*one, "--name", "changing", env=env) as server:
        server.wait_for("serving")
        port = server.address.rpartition(":")[2]
        (before,) = listed(env)
        for cores in ("2", "1"):
            done = command("ctl", "plan", "--instances", "1", "--cores-per-instance", cores, "--port", port, env=env)
            assert done.returncode == 0, done.stderr
            (entry,) = listed(env)
            assert len(entry["cpus"].replace("-", ",").split(",")) == int(cores)
            assert (entry["pid"], entry["since"]) == (before["pid"], before["since"])
        program = ("--", "printenv", "LAUNCH_RUN_CPUS")
        taken = command("run", "--instances", "1", "--cores-per-instance", "1", *program, env=env)
        assert taken.returncode == 0, taken.stderr
        assert taken.stdout.strip() != entry["cpus"]


def test_stop_waits_for_the_drain_and_kill_ends_what_does_not_exit(launch: Launch, env: dict[str, str]) -> None:
    one = (*FAKE, "--instances", "1", "--cores-per-instance", "1", "--reserve-cores", "0")
    with launch(*one, "--name", "one", env=env) as first, launch(*one, "--name", "two", env=env) as second:
        first.wait_serving()
        second.wait_serving()
        for words, reason in (((), "needs names or process IDs"), (("none",), "running: one, two")):
            done = command("stop", *words, env=env)
            assert done.returncode == 2
            assert reason in done.stderr
        done = command("stop", str(first.process.pid), env=env)
        assert done.returncode == 0, done.stderr
        assert first.process.wait(30) == 0
        assert "draining" in first.events_until_end()
        assert [entry["name"] for entry in listed(env)] == ["two"]
        workers = [worker.pid for worker in second.workers()]
        second.signal(signal.SIGSTOP)  # a process that does not react to SIGTERM
        done = command("stop", "two", "--seconds", "0", env=env)
        assert done.returncode == 1
        assert "did not exit" in done.stderr
        done = command("stop", "--all", "--seconds", "0", "--kill", env=env)
        assert done.returncode == 0, done.stderr
        assert second.process.wait(30) == -signal.SIGKILL
        assert gone(workers)
    assert command("stop", "--all", env=env).returncode == 0


def test_the_python_api_claims_cores_until_it_is_closed(env: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    from launcher.api import Engine
    from launcher.errors import MachineError

    monkeypatch.setenv("LAUNCH_REGISTRY", env["LAUNCH_REGISTRY"])
    options: dict[str, Any] = {"backend": "fake", "instances": 1, "reserve_cores": 0}
    with Engine("random:tiny", **options) as engine:
        (entry,) = listed(env)
        assert (entry["pid"], entry["kind"]) == (os.getpid(), "engine")
        with pytest.raises(MachineError, match=f"pid {os.getpid()}"):
            Engine("random:tiny", **options)
        with Engine("random:tiny", shared_cores=True, name="shared", **options):
            assert [entry["name"] for entry in listed(env)] == [f"engine-{os.getpid()}", "shared"]
        assert engine.embed(["one"]).shape[0] == 1
    assert listed(env) == []


def test_a_name_that_is_not_one_is_refused(env: dict[str, str]) -> None:
    done = command(*FAKE, "--port", "0", "--name", "a\x1b[31m", env=env)
    assert done.returncode == 2
    assert "--name 'a\\x1b[31m'" in done.stderr
