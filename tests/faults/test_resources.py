"""Descriptors, memory, disks and folders that are exhausted or missing, and system calls that are refused."""

from __future__ import annotations

import contextlib
import os
import re
import resource
import signal
import socket
import subprocess
import time
from collections.abc import Iterator

import httpx
import psutil
import pytest

from tests import cgroups
from tests.e2e.running import Launch, Running
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
            resource.prlimit(pid, resource.RLIMIT_NOFILE, (3, limits[1]))
            os.kill(victim, signal.SIGKILL)
            for _ in range(4):
                failed = server.wait_for("spawn_failed", instance=0)
                assert "Too many open files" in failed["message"]
            with connections(server, 20):  # accepted and closed, or left in the backlog
                before = psutil.Process(pid).cpu_times()
                server.wait_for("spawn_failed", instance=0)
                after = psutil.Process(pid).cpu_times()
                assert client.get("/health").status_code == 200
            assert (after.user + after.system) - (before.user + before.system) < 1
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
def test_mode_5_admission_closes_before_the_memory_of_the_group_is_used_up(launch: Launch) -> None:
    with cgroups.made("launcher-memory-test") as group:
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
