"""The echo server answers the requests of the load generator, and ends with its worker."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator

import psutil
import pytest

COMMAND = [sys.executable, "-m", "launcher", "bench"]


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


@pytest.fixture
def echo_server() -> Iterator[Callable[..., tuple[subprocess.Popen[str], int]]]:
    """Starts a server on a free port and waits until it is reachable."""
    started: list[subprocess.Popen[str]] = []

    def start(*options: str) -> tuple[subprocess.Popen[str], int]:
        port = free_port()
        process = subprocess.Popen(
            [*COMMAND, "echo", "--port", str(port), "--width", "16", *options], stderr=subprocess.PIPE, text=True
        )
        started.append(process)
        for _ in range(200):
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", port)) == 0:
                    return process, port
            time.sleep(0.1)
        raise TimeoutError

    yield start
    for process in started:
        process.kill()
        process.communicate()


CPU = str(max(os.sched_getaffinity(0)))


@pytest.mark.parametrize("options", [(), ("--worker-cpu", CPU)])
def test_every_request_is_answered(
    echo_server: Callable[..., tuple[subprocess.Popen[str], int]], options: tuple[str, ...]
) -> None:
    process, port = echo_server(*options)
    load = [*COMMAND, "load", "--url", f"http://127.0.0.1:{port}", "-c", "8", "-n", "500", "--warmup", "0", "--json"]
    figures = json.loads(subprocess.run(load, capture_output=True, text=True, check=True, timeout=60).stdout)
    assert (figures["latency_ms"]["count"], figures["errors"]) == (500, {})
    workers = psutil.Process(process.pid).children()
    assert [worker.cpu_affinity() for worker in workers] == [[int(CPU)]] * (len(options) // 2)
    assert set(psutil.Process(process.pid).cpu_affinity()) == os.sched_getaffinity(0)


@pytest.mark.parametrize("of_worker", [True, False])
def test_both_processes_end_together(
    echo_server: Callable[..., tuple[subprocess.Popen[str], int]], of_worker: bool
) -> None:
    process, _ = echo_server("--worker-cpu", CPU)
    (worker,) = psutil.Process(process.pid).children()
    if of_worker:
        worker.kill()
        _, said = process.communicate(timeout=10)
        assert process.returncode == 1
        assert "the worker process exited" in said
    else:
        process.kill()
        process.wait(60)
    for _ in range(100):
        if not worker.is_running() or worker.status() == psutil.STATUS_ZOMBIE:  # it may not have been reaped
            return
        time.sleep(0.1)
    raise AssertionError("the worker lives on")


def test_an_unusable_port_or_cpu_is_an_error() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        found = subprocess.run([*COMMAND, "echo", "--port", port], check=False, capture_output=True, text=True)
    assert found.returncode == 2
    assert f"--port {port}" in found.stderr
    far = [*COMMAND, "echo", "--port", str(free_port()), "--worker-cpu", "100000"]
    found = subprocess.run(far, check=False, capture_output=True, text=True, timeout=60)
    assert found.returncode == 2
    assert "--worker-cpu 100000" in found.stderr
