"""Real servers for the end-to-end tests: started as a user does, observed through their JSON log."""

from __future__ import annotations

import contextlib
import json
import os
import queue
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import httpx
import psutil


class Running:
    """A running ``launch``: its address, its log so far and its worker processes.

    ``prefix`` precedes the command and must exec it, as ``taskset`` does.
    """

    def __init__(self, *arguments: str, env: dict[str, str] | None = None, prefix: Sequence[str] = ()) -> None:
        command = [*prefix, sys.executable, "-m", "launcher", "--port", "0", "--log-json", *arguments]
        self.process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env={**os.environ, **(env or {})}
        )
        self.records: list[dict[str, Any]] = []
        self.other_lines: list[str] = []
        self._queue: queue.Queue[dict[str, Any] | None] = queue.Queue()
        threading.Thread(target=self._read, daemon=True).start()
        self.address = self.wait_for("starting")["address"]

    def _read(self) -> None:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            try:
                self._queue.put(json.loads(line))
            except ValueError:
                self.other_lines.append(line)
        self._queue.put(None)

    def wait_for(self, event: str, *, seconds: float = 120.0, **fields: Any) -> dict[str, Any]:
        """The next log record of this event with these fields; fails if the log ends or the time runs out first."""
        deadline = time.monotonic() + seconds
        while True:
            try:
                record = self._queue.get(timeout=max(0.01, deadline - time.monotonic()))
            except queue.Empty:
                raise AssertionError(f"no {event!r} {fields} in {seconds} s; the log: {self.story()}") from None
            if record is None:
                raise AssertionError(f"the log ended without {event!r} {fields}: {self.story()}")
            self.records.append(record)
            if record.get("event") == event and all(record.get(k) == v for k, v in fields.items()):
                return record

    def events_until_end(self) -> list[str]:
        """The events of the rest of the log; waits for its end."""
        rest = list(iter(lambda: self._queue.get(timeout=60), None))
        self.records += rest
        return [record["event"] for record in rest if "event" in record]

    def story(self) -> str:
        """The log so far, for failure messages."""
        return "\n".join([*(str(r.get("message", r)) for r in self.records[-40:]), *self.other_lines])

    def wait_serving(self) -> Running:
        self.wait_for("serving")
        return self

    def get(self, path: str) -> httpx.Response:
        return httpx.get(self.address + path, timeout=30)

    def post(self, path: str, **arguments: Any) -> httpx.Response:
        return httpx.post(self.address + path, timeout=60, **arguments)

    def embed(self, content: Any, **more: Any) -> httpx.Response:
        return self.post("/v1/embeddings", json={"input": content, **more})

    def info(self) -> dict[str, Any]:
        body: dict[str, Any] = self.get("/info").json()
        return body

    def workers(self) -> list[psutil.Process]:
        return psutil.Process(self.process.pid).children(recursive=True)

    def worker_of(self, instance: int) -> int:
        pid: int = self.info()["instances"][instance]["pid"]
        return pid

    def signal(self, number: int) -> None:
        self.process.send_signal(number)

    def end(self, seconds: float = 60.0) -> int:
        """Request shutdown and wait; returns the exit status."""
        if self.process.poll() is None:
            self.signal(signal.SIGTERM)
        return self.process.wait(seconds)


@contextlib.contextmanager
def running(*arguments: str, env: dict[str, str] | None = None, prefix: Sequence[str] = ()) -> Iterator[Running]:
    """A server that is stopped with its workers, whatever the test does."""
    server = Running(*arguments, env=env, prefix=prefix)
    try:
        yield server
    finally:
        left = [server.process.pid, *(p.pid for p in server.workers())] if server.process.poll() is None else []
        for pid in left:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        server.process.wait(60)


Launch = Callable[..., contextlib.AbstractContextManager[Running]]


def gone(pids: list[int], seconds: float = 30.0) -> bool:
    """Whether all of these processes exit within this time (zombies have exited)."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        alive = [p for p in pids if psutil.pid_exists(p) and psutil.Process(p).status() != psutil.STATUS_ZOMBIE]
        if not alive:
            return True
        time.sleep(0.02)
    return False


def wait_in_flight(server: Running, count: int) -> None:
    """Wait until this many requests are being computed or queued."""
    deadline = time.monotonic() + 60
    while f"launcher_requests_in_flight {count}" not in server.get("/metrics").text:
        assert time.monotonic() < deadline, server.get("/metrics").text
