"""Starts, failures and shutdowns of a whole server, with real processes."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import httpx
import pytest

from tests.e2e.running import Launch, Running, gone, wait_in_flight

pytestmark = pytest.mark.slow

FAKE = ("--model", "random:tiny", "--backend", "fake", "--instances", "2")


def test_ctrl_c_drains_and_leaves_no_process(launch: Launch) -> None:
    with launch(*FAKE) as server:
        server.wait_serving()
        pids = [p.pid for p in server.workers()]
        assert len(pids) == 2
        server.signal(signal.SIGINT)
        assert server.process.wait(20) == 0
        assert gone(pids)


def test_a_killed_worker_is_reported_and_restarted_on_the_same_cores(launch: Launch) -> None:
    with launch(*FAKE) as server:
        server.wait_serving()
        before = server.info()["instances"][1]
        os.kill(before["pid"], signal.SIGKILL)
        assert "SIGKILL" in server.wait_for("exited", instance=1)["message"]
        server.wait_for("ready", instance=1)
        after = server.info()["instances"][1]
        assert after["pid"] != before["pid"]
        assert (after["cpus"], after["command"]) == (before["cpus"], before["command"])
        status = Path(f"/proc/{after['pid']}/status").read_text().splitlines()
        mask = next(line.split()[1] for line in status if line.startswith("Cpus_allowed_list"))
        assert mask == ",".join(map(str, after["cpus"]))
        assert server.embed("still here").status_code == 200


def test_a_request_whose_worker_is_killed_is_answered_by_another(launch: Launch) -> None:
    with launch(*FAKE) as server:
        server.wait_serving()
        victim, other = server.worker_of(0), server.worker_of(1)
        for pid in (victim, other):  # each gets a batch and does not answer
            os.kill(pid, signal.SIGSTOP)
        replies: list[httpx.Response] = []
        texts = ["one", "two two", "three three three"]
        threads = [threading.Thread(target=lambda: replies.append(server.embed(texts))) for _ in range(2)]
        for thread in threads:
            thread.start()
        wait_in_flight(server, 2)
        os.kill(victim, signal.SIGKILL)
        os.kill(other, signal.SIGCONT)
        for thread in threads:
            thread.join(20)
        assert [r.status_code for r in replies] == [200, 200]
        for reply in replies:
            assert [d["index"] for d in reply.json()["data"]] == [0, 1, 2]


def test_a_model_that_crashes_at_load_ends_the_server_with_its_reason(tmp_path, launch: Launch) -> None:  # type: ignore[no-untyped-def]
    from launcher.host.model.resolve import demo_folder

    shutil.copytree(demo_folder(), tmp_path, dirs_exist_ok=True)
    weights = (demo_folder() / "model.safetensors").read_bytes()
    (tmp_path / "model.safetensors").write_bytes(weights[: len(weights) // 2])
    command = [sys.executable, "-m", "launcher", "--model", str(tmp_path), "--port", "0", "--instances", "2"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode in {1, 2}
    assert "Traceback" not in done.stderr
    assert "safetensors" in done.stderr


def test_an_idle_server_uses_almost_no_cpu_time(launch: Launch) -> None:
    with launch(*FAKE) as server:
        server.wait_serving()
        assert server.embed("one request before").status_code == 200
        used = []
        for _ in range(3):
            before, started = _cpu_seconds(server), time.monotonic()
            time.sleep(3)  # the measured span, not a synchronisation
            used.append((_cpu_seconds(server) - before) / (time.monotonic() - started))
            if used[-1] < 0.01:
                break
        assert min(used) < 0.01


def _cpu_seconds(server: Running) -> float:
    import psutil

    times = [p.cpu_times() for p in [psutil.Process(server.process.pid), *server.workers()]]
    return sum(t.user + t.system for t in times)


def test_a_drain_does_not_wait_for_a_killed_worker(launch: Launch) -> None:
    with launch("--model", "random:tiny", "--backend", "fake", "--instances", "1") as server:
        server.wait_serving()
        victim = server.worker_of(0)
        os.kill(victim, signal.SIGSTOP)
        replies: list[httpx.Response] = []
        thread = threading.Thread(target=lambda: replies.append(server.embed("it will not be computed")))
        thread.start()
        wait_in_flight(server, 1)
        server.signal(signal.SIGTERM)
        server.wait_for("draining")
        os.kill(victim, signal.SIGKILL)
        assert server.process.wait(20) == 0
        thread.join(20)
        assert [r.status_code for r in replies] == [503]


def test_workers_killed_while_serving_are_restarted_every_time(launch: Launch) -> None:
    with launch("--model", "random:tiny", "--backend", "fake", "--instances", "1") as server:
        server.wait_serving()
        for _ in range(4):
            os.kill(server.worker_of(0), signal.SIGKILL)
            server.wait_for("ready", instance=0)
        assert server.embed("still served").status_code == 200
        assert server.info()["instances"][0]["restarts"] == 4


def test_workers_import_nothing_from_the_working_directory(launch: Launch, tmp_path: Path) -> None:
    if sys.version_info < (3, 11):
        pytest.skip("PYTHONSAFEPATH came with Python 3.11")
    (tmp_path / "argparse.py").write_text("raise SystemExit('imported from the current folder')\n")
    launch_script = Path(sys.executable).parent / "launch"
    command = [launch_script, *FAKE, "--port", "0", "--log-json"]
    with subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        lines = []
        for line in process.stderr:
            lines.append(line)
            if '"serving"' in line or '"failed"' in line:
                break
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=20)
    assert '"serving"' in lines[-1], "".join(lines[-5:])
