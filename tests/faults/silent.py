"""Servers whose log cannot be read, so that the port is chosen here and the state is read over HTTP."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from typing import Any

import httpx
import psutil

FAKE = ("--model", "random:tiny", "--backend", "fake")


def free_port() -> int:
    """A port that is free now."""
    with socket.create_server(("127.0.0.1", 0)) as sock:
        port: int = sock.getsockname()[1]
    return port


class Silent:
    """A running server at a known address."""

    def __init__(self, process: subprocess.Popen[bytes], port: int) -> None:
        self.process = process
        self.address = f"http://127.0.0.1:{port}"

    def get(self, path: str) -> httpx.Response:
        return httpx.get(self.address + path, timeout=30)

    def embed(self) -> httpx.Response:
        return httpx.post(self.address + "/v1/embeddings", json={"input": "a"}, timeout=60)

    def worker(self, instance: int) -> int | None:
        pid: int | None = self.get("/ready").json()["instances"][str(instance)]["pid"]
        return pid

    def wait_ready(self, seconds: float = 120.0) -> Silent:
        """Wait until every instance is ready."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            assert self.process.poll() is None, f"the server has ended: {self.process.returncode}"
            with contextlib.suppress(httpx.HTTPError):
                states = self.get("/ready").json()["instances"].values()
                if all(state["state"] == "ready" for state in states):
                    return self
            time.sleep(0.05)
        raise AssertionError(f"not ready in {seconds} s")

    def replace_worker(self, instance: int) -> None:
        """Kill the worker of an instance, and wait until another one is ready."""
        pid = self.worker(instance)
        assert pid is not None
        os.kill(pid, signal.SIGKILL)
        deadline = time.monotonic() + 60
        while self.worker(instance) in (None, pid):
            assert time.monotonic() < deadline, "no other worker was started"
            time.sleep(0.05)
        self.wait_ready()

    def end(self, seconds: float = 60.0) -> int:
        """Request shutdown and wait; returns the exit status."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(seconds)


@contextlib.contextmanager
def silent(*arguments: str, prefix: Sequence[str] = (), **popen: Any) -> Iterator[Silent]:
    """A server of the fake backend, which is killed with its workers whatever the test does."""
    port = free_port()
    command = [*prefix, sys.executable, "-m", "launcher", *FAKE, "--port", str(port), *arguments]
    process = subprocess.Popen(command, stdin=subprocess.DEVNULL, **popen)
    try:
        yield Silent(process, port)
    finally:
        if process.poll() is None:
            for one in (*psutil.Process(process.pid).children(recursive=True), psutil.Process(process.pid)):
                with contextlib.suppress(psutil.NoSuchProcess):
                    one.kill()
        process.wait(10)
