"""Descriptors, memory, disks and folders that are exhausted or missing, and system calls that are refused."""

from __future__ import annotations

import contextlib
import http.client
import itertools
import json
import os
import random
import re
import resource
import signal
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import psutil
import pytest

from tests import cgroups
from tests.e2e.running import Launch, Running
from tests.faults import refuse
from tests.faults.silent import FAKE, silent

MIB = 1024 * 1024


def with_files(limit: int) -> tuple[str, ...]:
    """The prefix of a command that may open this many files."""
    return ("sh", "-c", f'ulimit -n {limit}; exec "$@"', "sh")


@contextlib.contextmanager
def connections(server: Running, count: int) -> Iterator[list[socket.socket]]:
    """Connections that send nothing."""
    url = httpx.URL(server.address)
    with contextlib.ExitStack() as opened:
        yield [
            opened.enter_context(socket.create_connection((url.host, url.port or 80), timeout=30)) for _ in range(count)
        ]


def metric(text: str, name: str) -> float:
    found = re.search(rf"^{name} (\S+)$", text, re.MULTILINE)
    assert found is not None, name
    return float(found[1])


def worker_of(client: httpx.Client, instance: int) -> int:
    pid: int = client.get("/ready").json()["instances"][str(instance)]["pid"]
    return pid


def wait_ready(client: httpx.Client, count: int) -> None:
    """Wait on an existing connection until this many instances are ready."""
    deadline = time.monotonic() + 60
    while [state["state"] for state in client.get("/ready").json()["instances"].values()].count("ready") < count:
        assert time.monotonic() < deadline, client.get("/ready").text
        time.sleep(0.05)


@pytest.mark.slow
def test_mode_60_connections_leave_descriptors_for_a_worker_that_is_replaced(launch: Launch) -> None:
    with launch(*FAKE, "--instances", "2", prefix=with_files(150)) as server:
        server.wait_serving()
        with httpx.Client(base_url=server.address, timeout=30) as client:
            assert client.get("/health").status_code == 200
            with connections(server, 200) as sockets:
                sockets[-1].sendall(b"GET /health HTTP/1.1\r\nhost: x\r\n\r\n")
                refusal = sockets[-1].recv(65536)
                assert refusal.startswith(b"HTTP/1.1 503 ")
                assert b"too_many_connections" in refusal
                os.kill(worker_of(client, 0), signal.SIGKILL)
                server.wait_for("restarting", instance=0)
                server.wait_for("ready", instance=0)
                wait_ready(client, 2)
                metrics = client.get("/metrics").text
                refused = metric(metrics, "launcher_connections_refused")
                assert refused > 0
                assert metric(metrics, "launcher_connections") + refused >= 200
        assert server.embed("a").status_code == 200
        assert server.end() == 0
    assert not [record for record in server.records if record.get("event") == "spawn_failed"]


@pytest.mark.slow
def test_mode_60_a_worker_that_cannot_be_started_for_lack_of_descriptors_is_tried_again(launch: Launch) -> None:
    options = ("--instances", "2", "--max-failures", "2", "--backoff-seconds", "0.05")
    with launch(*FAKE, *options) as server:
        server.wait_serving()
        pid = server.process.pid
        limits = resource.prlimit(pid, resource.RLIMIT_NOFILE)
        with httpx.Client(base_url=server.address, timeout=30) as client:
            victim = worker_of(client, 0)
            used = {int(name) for name in os.listdir(f"/proc/{pid}/fd")}  # noqa: PTH208  # names are enough
            lowest_free = next(number for number in itertools.count() if number not in used)
            resource.prlimit(pid, resource.RLIMIT_NOFILE, (lowest_free, limits[1]))
            os.kill(victim, signal.SIGKILL)
            for _ in range(4):
                failed = server.wait_for("spawn_failed", instance=0)
                assert "Too many open files" in failed["message"]
            with connections(server, 20):  # accepted and closed, or left in the backlog
                before, began = psutil.Process(pid).cpu_times(), time.monotonic()
                for _ in range(2):
                    server.wait_for("spawn_failed", instance=0)
                after = psutil.Process(pid).cpu_times()
                assert client.get("/health").status_code == 200
                seconds = time.monotonic() - began
            assert (after.user + after.system) - (before.user + before.system) < seconds / 2
            states = client.get("/ready").json()["instances"]
            assert states["0"]["state"] == "backoff"
            assert states["1"]["state"] == "ready"
            resource.prlimit(pid, resource.RLIMIT_NOFILE, limits)
            server.wait_for("ready", instance=0)
        assert server.embed("a").status_code == 200
        assert server.end() == 0


@pytest.mark.slow
def test_mode_60_too_few_descriptors_for_any_connection_are_refused_at_start() -> None:
    with silent("--instances", "2", prefix=with_files(40), stderr=subprocess.PIPE) as server:
        assert server.process.wait(60) == 3
        assert server.process.stderr is not None
        assert b"the limit of 40 open files leaves none for connections" in server.process.stderr.read()


@pytest.mark.slow
def test_mode_05_admission_closes_before_the_memory_of_the_group_is_used_up(launch: Launch) -> None:
    with cgroups.made(cgroups.fresh_name()) as group:
        options = ("--instances", "1", "--memory-reserve", str(100 * MIB))
        with launch(*FAKE, *options, prefix=group.prefix()) as server:
            server.wait_serving()
            assert server.embed("a").status_code == 200
            used = int(group.get("memory.usage_in_bytes"))
            group.set("memory.limit_in_bytes", str(used + 50 * MIB))
            server.wait_for("memory_short")
            refused = server.embed("a")
            assert refused.status_code == 503
            assert refused.json()["error"]["code"] == "memory_short"
            assert "retry-after" in refused.headers
            assert server.get("/health").status_code == 200
            metrics = server.get("/metrics").text
            assert metric(metrics, "launcher_memory_admission_open") == 0
            assert metric(metrics, "launcher_memory_limit_bytes") < used + 51 * MIB
            group.set("memory.limit_in_bytes", str(used + 400 * MIB))
            server.wait_for("memory_free")
            assert server.embed("a").status_code == 200
            assert server.end() == 0


def in_sandbox(*calls: str) -> tuple[str, ...]:
    """The prefix of a command for which these system calls are refused."""
    prefix = (sys.executable, str(Path(__file__).with_name("refuse.py")), ",".join(calls))
    if subprocess.run([*prefix, "true"], check=False, timeout=60).returncode == refuse.IMPOSSIBLE:
        pytest.skip("system calls cannot be refused here")
    return prefix


EVERY_CALL = tuple(refuse.NUMBERS["x86_64"])


@pytest.mark.slow
@pytest.mark.parametrize("calls", [("sched_getaffinity",), EVERY_CALL], ids=["getaffinity", "all"])
def test_mode_44_a_server_works_where_system_calls_for_binding_are_refused(
    launch: Launch, calls: tuple[str, ...]
) -> None:
    with launch(*FAKE, "--instances", "2", prefix=in_sandbox(*calls)) as server:
        server.wait_serving()
        pids = [server.worker_of(instance) for instance in (0, 1)]
        os.kill(pids[0], signal.SIGKILL)
        server.wait_for("restarting", instance=0)
        server.wait_for("ready", instance=0)
        assert server.embed("a").status_code == 200
        assert server.end() == 0
    assert "Traceback" not in server.story()


@pytest.mark.slow
def test_mode_44_programs_run_where_system_calls_are_refused() -> None:
    command = [sys.executable, "-m", "launcher", "run", "--instances", "2", "--", "sh", "-c", "echo {instance}"]
    ended = subprocess.run(
        [*in_sandbox(*EVERY_CALL), *command], capture_output=True, text=True, check=False, timeout=120
    )
    assert ended.returncode == 0, ended.stderr
    assert sorted(ended.stdout.splitlines()) == ["[0] 0", "[1] 1"]
    assert "prctl(PR_SET_CHILD_SUBREAPER) was refused" in ended.stderr
    assert "setsid is refused" in ended.stderr
    assert "Traceback" not in ended.stderr


# Mounts are private to the command. The capabilities let an unknown user read the files of this environment.
READ_ONLY = 'for d in /tmp /var/tmp "$HOME"; do mount --bind $d $d && mount -o remount,bind,ro $d; done && exec "$@"'
UNKNOWN_USER = ("setpriv", "--reuid=12345", "--regid=12345", "--clear-groups")
READER = ("--inh-caps=+dac_read_search", "--ambient-caps=+dac_read_search")


def without_folders() -> tuple[str, ...]:
    """The prefix of a command: an empty environment, a user without an entry, and no folder that can be written."""
    prefix = ("unshare", "--mount", "sh", "-c", READ_ONLY, "sh", "env", "-i", "--chdir=/", *UNKNOWN_USER, *READER)
    try:
        tried = subprocess.run([*prefix, sys.executable, "-c", ""], check=False, capture_output=True, timeout=60)
    except FileNotFoundError as error:
        pytest.skip(str(error))
    if tried.returncode:
        pytest.skip(f"an environment without folders cannot be made here: {tried.stderr.decode()}")
    return (*prefix, "env", f"PYTHONPATH={Path(__file__).parents[2]}", "LAUNCH_REGISTRY=off")


@pytest.mark.slow
def test_mode_65_a_server_needs_neither_home_nor_user_nor_a_temporary_folder(launch: Launch) -> None:
    with launch("--model", "random:tiny", "--instances", "1", prefix=without_folders()) as server:
        warning = server.wait_for("costs")
        assert "cannot be written" in warning["message"]
        server.wait_serving()
        assert server.embed("a").status_code == 200
        assert server.end() == 0
    assert "Traceback" not in server.story()


@pytest.mark.slow
def test_mode_65_commands_need_neither_home_nor_user_nor_a_temporary_folder() -> None:
    launch = (*without_folders(), sys.executable, "-m", "launcher")
    for arguments in (
        ("topology", "--json"),
        ("run", "--instances", "2", "--", "true"),
        ("bench", "throughput", *FAKE, "--count", "200", "--json"),
    ):
        ended = subprocess.run([*launch, *arguments], capture_output=True, text=True, check=False, timeout=120)
        assert ended.returncode == 0, ended.stderr
        assert "Traceback" not in ended.stderr
    ended = subprocess.run(
        [*launch, "topology", "--model", "~/model"], capture_output=True, text=True, check=False, timeout=120
    )
    assert ended.returncode == 2
    assert "the home folder is unknown" in ended.stderr


def shell(command: str) -> subprocess.CompletedProcess[str]:
    """Run a command line in which ``launch`` is the launcher and no file can have more than 1 KiB."""
    script = f'launch() {{ (ulimit -f 1; "{sys.executable}" -m launcher "$@"); }}\n{command}'
    return subprocess.run(["bash", "-c", script], capture_output=True, text=True, check=False, timeout=120)


@pytest.mark.slow
def test_a_file_that_cannot_be_written_completely_is_named(tmp_path: Path) -> None:
    for option, name in (("--save", "machine.json"), ("--svg", "plan.svg")):
        ended = shell(f"launch topology {option} {tmp_path / name}")
        assert ended.returncode == 2
        assert ended.stderr.splitlines()[-1].startswith(f"launch: {option} {tmp_path / name}: ")
        assert "File too large" in ended.stderr
        assert "Traceback" not in ended.stderr


@pytest.mark.slow
def test_programs_continue_when_their_log_files_are_full(tmp_path: Path) -> None:
    ended = shell(f"launch run --instances 2 --quiet --log-dir {tmp_path} -- seq 10000")
    assert ended.returncode == 0, ended.stderr
    for instance in (0, 1):
        file = tmp_path / f"instance-{instance}.log"
        assert file.read_bytes().startswith(b"1\n2\n3\n")
        assert f"output of the programs is lost, because {file} cannot be written: File too large" in ended.stderr


@pytest.mark.slow
def test_a_server_continues_when_the_cache_is_full(launch: Launch, tmp_path: Path) -> None:
    limit = ("sh", "-c", 'ulimit -f 0; exec "$@"', "sh")
    with launch(*FAKE, "--instances", "2", env={"XDG_CACHE_HOME": str(tmp_path)}, prefix=limit) as server:
        server.wait_serving()
        assert server.embed("a").status_code == 200
        assert server.end() == 0
        server.events_until_end()
    warnings = [record["message"] for record in server.records if record.get("event") == "costs"]
    assert len(warnings) == 1
    assert f"cannot be written to {tmp_path}/launcher/costs: File too large" in warnings[0]


class Caller:
    """One connection, which sends many requests one after another."""

    def __init__(self, server: Running) -> None:
        url = httpx.URL(server.address)
        self._connection = http.client.HTTPConnection(url.host, url.port or 80, timeout=60)

    def embed(self, words: int, headers: dict[str, str] | None = None) -> int:
        """Embed a text of this many words; returns the status."""
        body = json.dumps({"input": "a " * words})
        self._connection.request(
            "POST", "/v1/embeddings", body, {"Content-Type": "application/json", **(headers or {})}
        )
        response = self._connection.getresponse()
        response.read()
        return response.status


def resident(server: Running) -> int:
    """Bytes of the front."""
    used: int = psutil.Process(server.process.pid).memory_info().rss
    return used


@pytest.mark.slow
def test_mode_48_memory_is_flat_with_texts_of_random_lengths(launch: Launch) -> None:
    lengths = random.Random(1)
    with launch(*FAKE, "--instances", "2") as server:
        server.wait_serving()
        caller = Caller(server)
        sizes: list[int] = []
        for _ in range(3):
            assert {caller.embed(lengths.randint(1, 500)) for _ in range(1000)} == {200}
            sizes.append(resident(server))
        # 1 kB kept for each request would be 1 MB in each round.
        assert sizes[2] - sizes[1] < MIB
        assert server.end() == 0


@pytest.mark.slow
def test_mode_49_connections_leave_no_descriptors(launch: Launch) -> None:
    with launch(*FAKE, "--instances", "1") as server:
        server.wait_serving()
        front = psutil.Process(server.process.pid)
        with httpx.Client(base_url=server.address, timeout=30) as client:
            assert client.get("/health").status_code == 200
            before = front.num_fds()
            for index in range(300):
                with connections(server, 1) as (sock,):
                    sock.sendall(b"GET /health HTTP/1.1\r\nhost: x\r\n\r\n"[: 10 if index % 3 == 0 else None])
                    if index % 3 == 1:
                        assert sock.recv(65536).startswith(b"HTTP/1.1 200 ")
                    elif index % 3 == 2:  # ended by RST
                        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            deadline = time.monotonic() + 60
            while front.num_fds() > before:
                assert time.monotonic() < deadline, f"{front.num_fds()} descriptors, {before} before"
                time.sleep(0.05)
            assert metric(client.get("/metrics").text, "launcher_connections") == 1
        assert server.end() == 0


@pytest.mark.slow
def test_mode_50_requests_that_miss_their_deadline_leave_nothing(launch: Launch) -> None:
    with launch(*FAKE, "--instances", "1", "--fake-seconds-per-token", "0.001") as server:
        server.wait_serving()
        caller = Caller(server)
        late = {"X-Launcher-Deadline-Ms": "1"}
        sizes: list[int] = []
        for _ in range(3):
            assert {caller.embed(400, late) for _ in range(1000)} == {504}
            sizes.append(resident(server))
        assert sizes[2] - sizes[1] < MIB
        metrics = server.get("/metrics").text
        assert metric(metrics, "launcher_requests_in_flight") == 0
        assert caller.embed(3) == 200
        assert server.end() == 0
