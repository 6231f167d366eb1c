"""Restarts and changes of the plan while 32 connections send requests: every request is answered, and correctly.

Vectors depend on the text only, so each response is compared with the first one for the same text.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from tests.e2e.running import Launch, Running

pytestmark = pytest.mark.slow

CONNECTIONS = 32
PATIENCE = 400  # seconds; only for "does not hang"
TEXTS = tuple(" ".join(["word"] * count) for count in (1, 3, 9, 20, 45, 100))
SERVER = (
    "--model", "random:tiny", "--backend", "fake", "--fake-seconds-per-token", "0.00005", "--oversubscribe",
    "--reserve-cores", "0", "--backoff-seconds", "0.05",
)  # fmt: skip

DEMO = ("--model", "demo", "--dtype", "fp32", "--oversubscribe", "--reserve-cores", "0")


class Load:
    """Requests from 32 connections, each pausing between its requests, since the new workers need the cpus to load.

    ``wrong`` has everything but right answers.
    """

    def __init__(self, server: Running, pause: float) -> None:
        self._pause = pause
        self._address = server.address
        self.vectors = {text: vectors_of(server.embed([text, TEXTS[0]])) for text in TEXTS}
        rows = [row.tobytes() for vectors in self.vectors.values() for row in vectors[:1]]
        assert len(set(rows)) == len(TEXTS), "the vectors of different texts are the same"
        self.wrong: list[str] = []
        self.answered = 0
        self._stop = threading.Event()
        self._lock = threading.Lock()
        self._threads = [threading.Thread(target=self._client, args=(number,)) for number in range(CONNECTIONS)]

    def _client(self, number: int) -> None:
        with httpx.Client(base_url=self._address, timeout=PATIENCE) as client:
            while not self._stop.is_set():
                number += 1
                self._request(client, TEXTS[number % len(TEXTS)])
                self._stop.wait(self._pause)

    def _request(self, client: httpx.Client, text: str) -> None:
        try:
            response = client.post("/v1/embeddings", json={"input": [text, TEXTS[0]]})
            right = response.status_code == 200 and np.allclose(vectors_of(response), self.vectors[text], atol=1e-5)
            problem = None if right else f"{response.status_code}: {response.text[:200]}"
        except httpx.HTTPError as error:
            problem = repr(error)
        with self._lock:
            self.answered += 1
            if problem is not None:
                self.wrong.append(problem)

    def wait_answers(self, count: int) -> None:
        """Wait for this many more answers, so that a change does not begin or end without load."""
        goal = self.answered + count
        while self.answered < goal and not self.wrong:
            self._stop.wait(0.01)

    def __enter__(self) -> Load:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join(PATIENCE)


def vectors_of(response: httpx.Response) -> Any:
    assert response.status_code == 200, response.text
    return np.array([entry["embedding"] for entry in response.json()["data"]])


@contextlib.contextmanager
def under_load(
    launch: Launch, *arguments: str, env: dict[str, str] | None = None, server: Sequence[str] = SERVER
) -> Iterator[tuple[Running, Load]]:
    """A serving server with load; afterwards no answer may be missing or wrong."""
    with launch(*server, *arguments, env=env) as running:
        running.wait_for("serving", seconds=PATIENCE)
        with Load(running, 2.0 if server is DEMO else 0.02) as load:
            load.wait_answers(2 * CONNECTIONS)
            yield running, load
            load.wait_answers(2 * CONNECTIONS)
        assert load.wrong == []


def admin(server: Running) -> httpx.Client:
    """A client of the server's admin socket."""
    port = server.address.rpartition(":")[2]
    path = Path(os.environ["XDG_RUNTIME_DIR"]) / "launch" / f"admin-{port}.sock"
    return httpx.Client(transport=httpx.HTTPTransport(uds=str(path)), base_url="http://admin", timeout=PATIENCE)


def change(server: Running, path: str, **body: Any) -> dict[str, Any]:
    with admin(server) as client:
        response = client.post(path, json=body)
    assert response.status_code in (200, 202), response.text
    report: dict[str, Any] = response.json()
    return report


def pids(server: Running) -> set[int]:
    return {one["pid"] for one in server.info()["instances"]}


def ctl(server: Running, *words: str) -> subprocess.CompletedProcess[str]:
    port = server.address.rpartition(":")[2]
    command = [sys.executable, "-m", "launcher", "ctl", *words, "--port", port]
    return subprocess.run(command, check=False, capture_output=True, text=True, timeout=PATIENCE)


@pytest.fixture(autouse=True, scope="module")
def runtime_folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_RUNTIME_DIR", str(tmp_path_factory.mktemp("run")))
        yield


@pytest.fixture
def failing_workers(tmp_path: Path) -> tuple[Path, dict[str, str]]:
    """A file and an environment: while the file exists, new workers end before they load."""
    flag = tmp_path / "flag"
    (tmp_path / "sitecustomize.py").write_text(
        "import os, sys\n"
        f"if os.path.exists({str(flag)!r}) and 'launcher.worker' in sys.orig_argv:\n"
        "    raise SystemExit('the disk is on fire')\n"
    )
    # Python ignores errors in sitecustomize, but not SystemExit.
    return flag, {"PYTHONPATH": os.pathsep.join(filter(None, [str(tmp_path), os.environ.get("PYTHONPATH", "")]))}


def test_mode_39_a_restart_of_the_demo_model_under_load_has_no_error(launch: Launch) -> None:
    with under_load(launch, "--instances", "1", server=DEMO) as (server, _):
        before = pids(server)
        report = change(server, "/admin/restart")
        assert (report["state"], report["steps_done"]) == ("new", 1)
        assert not before & pids(server)


def test_mode_39_a_rolling_restart_of_all_instances_under_load_has_no_error(launch: Launch) -> None:
    with under_load(launch, "--instances", "2") as (server, _):
        before = pids(server)
        report = change(server, "/admin/restart")
        assert (report["state"], report["steps_done"], report["instances"]) == ("new", 2, [0, 1])
        assert not before & pids(server)
        assert server.get("/ready").status_code == 200


@pytest.mark.parametrize("order", ["beside", "in_place"])
def test_mode_39_another_number_of_instances_and_other_classes_under_load(launch: Launch, order: str) -> None:
    with under_load(launch, "--instances", "2") as (server, load):
        for body, count in (
            ({"instances": 1}, 1),
            ({"classes": "32:1,max:1", "oversubscribe": False}, 2),
            ({"instances": 2, "oversubscribe": True}, 2),
        ):
            report = change(server, "/admin/plan", order=order, **body)
            assert (report["state"], len(report["instances"])) == ("new", count)
            load.wait_answers(CONNECTIONS)
            instances = server.info()["instances"]
            assert [one["id"] for one in instances] == report["instances"]
            assert all((one["class"] is not None) == ("classes" in body) for one in instances)
            gauges = [
                line for line in server.get("/metrics").text.splitlines() if line.startswith("launcher_instance_ready")
            ]
            assert len(gauges) == count
            assert all(line.endswith(" 1.0") for line in gauges)


@pytest.mark.parametrize("order", ["auto", "in_place"])
def test_mode_39_a_single_instance_is_replaced_without_an_error(launch: Launch, order: str) -> None:
    with under_load(launch, "--instances", "1") as (server, _):
        before = pids(server)
        report = change(server, "/admin/plan", order=order, instances=1)
        assert (report["state"], len(report["instances"])) == ("new", 1)
        assert not before & pids(server)


@pytest.mark.parametrize("order", ["beside", "in_place"])
def test_mode_39_a_new_worker_that_ends_while_it_loads_leaves_the_old_state(
    launch: Launch, failing_workers: tuple[Path, dict[str, str]], order: str
) -> None:
    flag, environment = failing_workers
    with under_load(launch, "--instances", "2", env=environment) as (server, load):
        before = server.info()["instances"]
        flag.touch()
        thread = threading.Timer(0.0, lambda: None)
        if order == "in_place":  # the old one can be started again
            thread = threading.Thread(target=lambda: (server.wait_for("change", state="restoring"), flag.unlink()))
        thread.start()
        report = change(server, "/admin/plan", order=order, instances=1)
        thread.join()
        assert report["state"] == "old"
        assert "the disk is on fire" in report["reason"]
        after = server.info()["instances"]
        assert [(one["id"], one["cpus"]) for one in after] == [(one["id"], one["cpus"]) for one in before]
        load.wait_answers(CONNECTIONS)
        flag.unlink(missing_ok=True)
        done = ctl(server, "restart", "--json")
        assert (done.returncode, json.loads(done.stdout)["state"]) == (0, "new"), done.stderr
        flag.touch()
        done = ctl(server, "plan", "--instances", "1", "--order", "beside")
        assert (done.returncode, done.stdout.count("old state")) == (1, 1), done.stderr


def test_mode_39_workers_that_are_killed_in_the_middle_of_a_change_lose_nothing(launch: Launch) -> None:
    with under_load(launch, "--instances", "2") as (server, _):
        before = pids(server)
        started = change(server, "/admin/plan", instances=2, order="beside", wait=False)
        assert started["state"] in ("preparing", "retiring", "starting")
        server.wait_for("started", instance=2)
        (new,) = (one["pid"] for one in server.info()["instances"] if one["id"] == 2)
        assert new not in before
        for pid in (new, min(before)):
            os.kill(pid, signal.SIGKILL)
        assert server.wait_for("change", state="new", seconds=PATIENCE)
        assert not before & pids(server)


def test_mode_39_a_shutdown_in_the_middle_of_a_change_answers_what_was_admitted(launch: Launch) -> None:
    for order in ("beside", "in_place"):
        with launch(*SERVER, "--instances", "1") as server:
            server.wait_serving()
            load = Load(server, 0.02)
            with load:
                load.wait_answers(CONNECTIONS)
                change(server, "/admin/plan", instances=1, order=order, wait=False)
                server.wait_for("change", state="starting")
                server.signal(signal.SIGTERM)
                assert server.process.wait(60) == 0
            allowed = ("503", "ConnectError", "RemoteProtocolError", "ReadError")
            assert [problem for problem in load.wrong if not problem.startswith(allowed)] == []


def test_only_one_change_runs_at_a_time_and_a_plan_that_is_not_possible_changes_nothing(launch: Launch) -> None:
    with under_load(launch, "--instances", "2") as (server, _), admin(server) as client:
        before = pids(server)
        refused = client.post("/admin/plan", json={"instances": 1, "classes": "32:1,max:1"})
        assert (refused.status_code, refused.json()["error"]["code"]) == (400, "plan_not_possible")
        assert client.post("/admin/plan", json={"instnaces": 1}).status_code == 400
        assert pids(server) == before
        change(server, "/admin/restart", wait=False)
        second = client.post("/admin/restart")
        assert (second.status_code, second.json()["error"]["code"]) == (409, "change_in_progress")
        server.wait_for("change", state="new")
        assert client.get("/admin/change").json()["state"] == "new"
        assert not before & pids(server)


def test_the_administration_needs_the_socket_or_the_key(launch: Launch, tmp_path: Path) -> None:
    with launch(*SERVER, "--instances", "1", "--admin-socket", str(tmp_path / "own.sock")) as server:
        assert server.post("/admin/restart").status_code == 403
        assert oct((tmp_path / "own.sock").stat().st_mode & 0o777) == "0o600"
        done = subprocess.run(
            [sys.executable, "-m", "launcher", "ctl", "status", "--socket", str(tmp_path / "own.sock")],
            check=False, capture_output=True, text=True, timeout=60,
        )  # fmt: skip
        assert (done.returncode, "no change so far" in done.stdout) == (0, True), done.stderr
        assert ctl(server, "status").returncode == 2  # not at the default path
        assert server.end() == 0
    assert not (tmp_path / "own.sock").exists()
    key = tmp_path / "key"
    key.write_text("a-secret-key\n")
    with launch(
        *SERVER, "--instances", "1", "--admin-key-file", str(key), env={"LAUNCH_API_KEY": "a-client-key"}
    ) as server:
        for given, status in (("", 401), ("wrong", 401), ("a-client-key", 401), ("a-secret-key", 200)):
            headers = {"Authorization": f"Bearer {given}"} if given else {}
            assert httpx.get(server.address + "/admin/change", headers=headers).status_code == status
            assert (httpx.get(server.address + "/info", headers=headers).status_code == 200) == (given[:3] == "a-c")
        assert ctl(server, "status").returncode == 0, "the socket needs no key"
        done = subprocess.run(
            [sys.executable, "-m", "launcher", "ctl", "status", "--url", server.address],
            check=False, capture_output=True, text=True, timeout=60,
            env={**os.environ, "LAUNCH_ADMIN_KEY": "a-secret-key"},
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        assert server.end() == 0
        assert "a-secret-key" not in server.story()
