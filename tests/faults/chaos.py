"""Random faults while clients check every vector: ``scripts/chaos --seconds N``.

Faults of workers (killed, stopped, garbage, slow, rolling restart) begin when all instances respond, so that one more
can answer. Clients send interactive, bulk and late requests and leave without a response, by FIN or by RST. A response
is wrong if a vector differs from that at the beginning, and lost if a client that waited got none. Other statuses than
200 are counted.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import random
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import numpy as np
import psutil

from tests.e2e.running import Running, running
from tests.faults.http_clients import connected, post, reset

SERVER = ("--instances", "2", "--dtype", "fp32", "--oversubscribe", "--reserve-cores", "0")
TEXTS = [f"text number {number} " + "of a few words " * (number % 12) for number in range(64)]
TOLERANCE = 1e-5  # as in the test of mode 51
INTERACTIVE_CLIENTS = 6
RECOVERY_SECONDS = 120.0
MISBEHAVING = Path(__file__).parent / "misbehaving"


@dataclass
class Outcome:
    """What clients and samples saw. Written by several threads under ``lock``."""

    statuses: Counter[str] = field(default_factory=Counter)
    events: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)
    lost: list[str] = field(default_factory=list)
    answered: list[float] = field(default_factory=list)  # when an interactive request got its 200
    health: list[float] = field(default_factory=list)  # seconds
    memory: list[tuple[float, int]] = field(default_factory=list)  # seconds, bytes
    descriptors: list[int] = field(default_factory=list)
    lock: threading.Lock = field(default_factory=threading.Lock)

    @property
    def silence(self) -> float:
        """The longest time without a 200."""
        return float(np.diff(sorted(self.answered)).max())

    @property
    def memory_slope(self) -> float:
        """Growth of the front in kB/s, after the first quarter of the time."""
        times, sizes = np.array(self.memory[len(self.memory) // 4 :], dtype=np.float64).T
        return float(np.polyfit(times, sizes / 1000, 1)[0])

    def table(self) -> str:
        """The outcome as a table."""
        median, high = np.percentile(self.health, [50, 99]) * 1000
        rows = {
            "requests": f"{self.statuses.total() + len(self.lost):,}",
            "wrong vectors": len(self.wrong),
            "lost": len(self.lost),
            "statuses": ", ".join(f"{name} × {count:,}" for name, count in sorted(self.statuses.items())),
            "events": ", ".join(f"{name} × {count}" for name, count in sorted(self.events.items())),
            "longest time without a 200": f"{self.silence:.2f} s",
            "/health p50, p99": f"{median:.1f} ms, {high:.1f} ms",
            "memory slope of the front": f"{self.memory_slope:.1f} kB/s",
            "descriptors: first, maximum, last": f"{self.descriptors[0]}, {max(self.descriptors)}, "
            f"{self.descriptors[-1]}",
        }
        return "\n".join(f"{name:<36}{value}" for name, value in rows.items())


class Chaos:
    """Clients and faults for a server that serves the demo model. ``say`` gets a line for each event."""

    def __init__(self, server: Running, folder: Path, seed: int, say: Callable[[str], None]) -> None:
        self.outcome = Outcome()
        self._server, self._folder, self._say = server, folder, say
        self._random = random.Random(seed)
        self._stop = threading.Event()
        self._expected = vectors(server.embed(TEXTS))

    def run(self, seconds: float) -> Outcome:
        """Disturb the server for this long, then wait until it has recovered."""
        actions = [
            *[self._interactive] * INTERACTIVE_CLIENTS, self._bulk, self._late, self._leaving, self._health,
            self._samples,
        ]  # fmt: skip
        threads = [threading.Thread(target=self._repeat, args=(action, n)) for n, action in enumerate(actions)]
        for thread in threads:
            thread.start()
        try:
            self._disturb(time.monotonic() + seconds)
        finally:
            self._stop.set()
            for thread in threads:
                thread.join()
        return self.outcome

    # ------------------------------------------------------------------ faults

    def _disturb(self, end: float) -> None:
        faults = [self._kill, self._suspend, self._garbage, self._slow, self._restart]
        order: list[Callable[[int], str]] = []
        while time.monotonic() < end:
            if not order:  # each kind once, in random order
                order = self._random.sample(faults, len(faults))
            fault, instance = order.pop(), self._random.randrange(2)
            began = time.monotonic()
            said = fault(instance)
            self.outcome.events[fault.__name__.strip("_")] += 1
            self._recover()
            self._say(f"{said}; recovered after {time.monotonic() - began:.1f} s")
            self._stop.wait(self._random.uniform(0.2, 1.0))

    def _recover(self) -> None:
        deadline = time.monotonic() + RECOVERY_SECONDS
        while not all(one["responds"] for one in self._server.get("/ready").json()["instances"].values()):
            assert time.monotonic() < deadline, f"the instances did not recover: {self._server.story()}"
            time.sleep(0.05)

    def _kill(self, instance: int) -> str:
        return self._signal(instance, signal.SIGKILL)

    def _suspend(self, instance: int) -> str:
        return self._signal(instance, signal.SIGSTOP)

    def _signal(self, instance: int, number: signal.Signals) -> str:
        pid = self._server.worker_of(instance)
        os.kill(pid, number)
        self._wait_replaced(instance, pid)
        return f"{number.name} to the worker of instance {instance}"

    def _garbage(self, instance: int) -> str:
        pid = self._server.worker_of(instance)
        (self._folder / f"garbage-{instance}").touch()
        self._wait_replaced(instance, pid)
        return f"garbage from instance {instance}"

    def _wait_replaced(self, instance: int, pid: int) -> None:
        deadline = time.monotonic() + RECOVERY_SECONDS
        while self._server.worker_of(instance) == pid:
            assert time.monotonic() < deadline, f"instance {instance} was not replaced: {self._server.story()}"
            time.sleep(0.05)

    def _slow(self, instance: int) -> str:
        switch = self._folder / f"slow-{instance}"
        switch.touch()
        time.sleep(self._random.uniform(1.0, 3.0))
        switch.unlink()
        return f"instance {instance} was slow"

    def _restart(self, _: int) -> str:
        command = [sys.executable, "-m", "launcher", "ctl", "restart", "--socket", str(self._folder / "admin.sock")]
        done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=RECOVERY_SECONDS)
        assert done.returncode == 0, done.stderr
        return "rolling restart"

    # ----------------------------------------------------------------- clients

    def _repeat(self, action: Callable[[httpx.Client, random.Random], None], number: int) -> None:
        chosen = random.Random(number)
        with httpx.Client(base_url=self._server.address, timeout=RECOVERY_SECONDS) as client:
            while not self._stop.is_set():
                action(client, chosen)

    def _interactive(self, client: httpx.Client, chosen: random.Random) -> None:
        if self._ask(client, chosen.sample(range(len(TEXTS)), chosen.randint(1, 4))) == 200:
            with self.outcome.lock:
                self.outcome.answered.append(time.monotonic())
        self._stop.wait(0.02)

    def _bulk(self, client: httpx.Client, chosen: random.Random) -> None:
        self._ask(client, chosen.choices(range(len(TEXTS)), k=200), {"x-launcher-priority": "bulk"})
        self._stop.wait(0.5)

    def _late(self, client: httpx.Client, chosen: random.Random) -> None:
        deadline = str(chosen.choice((1, 20, 100, 1000)))
        self._ask(client, chosen.sample(range(len(TEXTS)), 8), {"x-launcher-deadline-ms": deadline})
        self._stop.wait(0.1)

    def _ask(self, client: httpx.Client, rows: list[int], headers: dict[str, str] | None = None) -> int:
        """The status of the response, or 0 if there was none."""
        texts = [TEXTS[row] for row in rows]
        try:
            reply = client.post("/v1/embeddings", json={"input": texts}, headers=headers)
        except httpx.HTTPError as error:
            with self.outcome.lock:
                self.outcome.lost.append(repr(error))
            return 0
        right = reply.status_code != 200 or np.allclose(vectors(reply), self._expected[rows], rtol=0, atol=TOLERANCE)
        code = "" if reply.status_code == 200 else f" {reply.json()['error']['code']}"
        with self.outcome.lock:
            self.outcome.statuses[f"{reply.status_code}{code}"] += 1
            if not right:
                self.outcome.wrong.append(f"rows {rows}, with {headers}")
        return reply.status_code

    def _leaving(self, _: httpx.Client, chosen: random.Random) -> None:
        connection = connected(self._server)
        request = post(chosen.choices(TEXTS, k=chosen.randint(1, 100)))
        connection.sendall(request[: chosen.choice((len(request), len(request) // 2))])
        self._stop.wait(chosen.uniform(0.0, 0.05))
        end = chosen.choice(("FIN", "RST"))
        reset(connection) if end == "RST" else connection.close()
        with self.outcome.lock:
            self.outcome.events[f"disconnect by {end}"] += 1
        self._stop.wait(0.1)

    def _health(self, client: httpx.Client, _: random.Random) -> None:
        began = time.perf_counter()
        try:
            assert client.get("/health").status_code == 200
        except (httpx.HTTPError, AssertionError) as error:
            self.outcome.lost.append(f"/health: {error!r}")
        self.outcome.health.append(time.perf_counter() - began)
        self._stop.wait(0.02)

    def _samples(self, *_: object) -> None:
        front = psutil.Process(self._server.process.pid)
        self.outcome.memory.append((time.monotonic(), front.memory_info().rss))
        self.outcome.descriptors.append(front.num_fds())
        self._stop.wait(0.25)


def vectors(reply: httpx.Response) -> np.ndarray:
    """The vectors of a response, a row each."""
    assert reply.status_code == 200, reply.text
    return np.array([entry["embedding"] for entry in reply.json()["data"]], dtype=np.float32)


@contextlib.contextmanager
def chaotic_server() -> Iterator[tuple[Running, Path]]:
    """A server with two instances of the demo model, and the folder through which its workers are disturbed."""
    with tempfile.TemporaryDirectory() as name:
        environment = {"PYTHONPATH": str(MISBEHAVING), "LAUNCH_TEST_FAULTS": name, "LAUNCH_REGISTRY": "off"}
        with running(*SERVER, "--admin-socket", f"{name}/admin.sock", env=environment) as server:
            yield server.wait_serving(), Path(name)


def main() -> int:
    """Returns the exit status: 1 if a vector was wrong or a response lost."""
    parser = argparse.ArgumentParser(prog="scripts/chaos", description="Disturb a server, and check every vector.")
    parser.add_argument("--seconds", type=float, default=60.0, help="how long to disturb it (default: 60)")
    parser.add_argument("--seed", type=int, help="order of the faults (default: random)")
    parser.add_argument("--verbose", action="store_true", help="print a line for each fault")
    options = parser.parse_args()
    seed = random.SystemRandom().getrandbits(32) if options.seed is None else options.seed
    with chaotic_server() as (server, folder):
        say = (lambda line: print(line, flush=True)) if options.verbose else (lambda _: None)
        outcome = Chaos(server, folder, seed, say).run(options.seconds)
    print(f"{'seed':<36}{seed}\n{outcome.table()}")
    for problem in [*outcome.wrong, *outcome.lost][:20]:
        print(problem, file=sys.stderr)
    return int(bool(outcome.wrong or outcome.lost))


if __name__ == "__main__":
    sys.exit(main())
