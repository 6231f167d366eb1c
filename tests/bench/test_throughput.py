"""The throughput of workers: figures follow from the batches, and a real run with the fake backend is consistent."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from launcher.bench.throughput import Batch, Measured, summary


@pytest.fixture(autouse=True)
def own_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Costs of the fake backend must not be stored in the user's cache."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def test_figures_follow_from_the_batches() -> None:
    batches = [Batch(0, 2, 30, 1.1, 1.0), Batch(0, 1, 10, 0.8, 1.0), Batch(1, 5, 60, 2.0, 4.0)]
    figures = summary(Measured(batches, {0: 50.0, 1: 75.0, 2: 0.0}, 4.0, 0.4))
    assert (figures["texts"], figures["texts_per_second"], figures["tokens_per_second"]) == (8, 2.0, 25.0)
    assert (figures["real_over_computed"], figures["prediction_error"], figures["front_cpu"]) == (0.8, 0.2, 0.1)
    assert (figures["batch_p50_ms"], figures["batch_p99_ms"], figures["busy"]) == (1000.0, 4000.0, 0.5)
    assert figures["by_instance"]["0"]["real_over_computed"] == 0.8
    assert figures["by_instance"]["0"]["busy"] == 0.5
    assert figures["by_instance"]["1"]["prediction_error"] == 0.5
    idle = figures["by_instance"]["2"]
    assert (idle["texts"], idle["batch_p50_ms"], idle["prediction_error"]) == (0, None, None)


def forward(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "launcher", "bench", "throughput", *arguments]
    environment = {**os.environ, "COLUMNS": "100", "TERM": "dumb"}
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False, env=environment)


@pytest.mark.slow
@pytest.mark.parametrize("queued", [(), ("--queued", "16")])
def test_a_run_computes_every_text_once_at_the_rate_of_its_workers(queued: tuple[str, ...]) -> None:
    seconds_per_token = 1e-4
    done = forward(
        *("--instances", "2", "--oversubscribe", "--model", "random:tiny", "--backend", "fake", "--json"),
        *("--fake-seconds-per-token", str(seconds_per_token), "-n", "300", "--warmup", "50", *queued),
    )
    assert done.returncode == 0, done.stderr
    figures = json.loads(done.stdout)
    assert figures["texts"] == sum(part["texts"] for part in figures["by_instance"].values()) == 250
    assert figures["batches"] == sum(part["batches"] for part in figures["by_instance"].values()) > 1
    assert 0 < figures["real_over_computed"] <= 1
    assert 0 < figures["busy"] <= 1
    computed = figures["tokens_per_second"] / figures["real_over_computed"]
    assert computed <= 2 / seconds_per_token * 1.01, "faster than the backend can be"
    assert figures["prediction_error"] >= 0


@pytest.mark.slow
def test_costs_are_measured_once_and_again_on_request() -> None:
    fake = ("--instances", "1", "--model", "random:tiny", "--backend", "fake", "--fake-seconds-per-token", "1e-5")
    runs = [forward(*fake, "-n", "50", "--json", *more) for more in ((), (), ("--measure",))]
    assert [json.loads(run.stdout)["costs"] for run in runs] == ["measured", "cached", "measured"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "status", "words"),
    [
        (("--fake-seconds-per-token", "0.1"), 2, ["--backend fake", "eager"]),
        (("--backend", "fake", "--fake-seconds-per-token", "inf"), 2, ["--fake-seconds-per-token", "number"]),
        (("--backend", "fake", "-n", "10", "--warmup", "10"), 2, ["10 texts", "warm-up"]),
        (("--texts", "a", "--tokens", "9"), 2, ["--texts and --tokens", "one"]),
        (("--lengths", "no/such/file"), 2, ["--lengths no/such/file", "cannot be read"]),
        (("--tokens", "9", "--longest", "9"), 2, ["--longest", "--tokens"]),
        (("--model", "no-such-model"), 2, ["no-such-model"]),
    ],
)
def test_contradictory_options_are_refused_before_anything_starts(
    arguments: tuple[str, ...], status: int, words: list[str]
) -> None:
    done = forward(*arguments)
    assert done.returncode == status, done.stderr
    assert "Traceback" not in done.stderr
    for word in words:
        assert word in done.stderr


def workers_of(pid: int) -> list[psutil.Process]:
    """The worker processes of a command, without binding probes."""
    children = psutil.Process(pid).children()
    with contextlib.suppress(psutil.NoSuchProcess):
        return [child for child in children if "launcher.worker" in child.cmdline()]
    return []


@pytest.mark.slow
def test_a_worker_that_is_lost_ends_the_measurement_with_the_reason() -> None:
    command = [sys.executable, "-m", "launcher", "bench", "throughput", "--instances", "1", "--model", "random:tiny"]
    process = subprocess.Popen(
        [*command, "--backend", "fake", "--fake-seconds-per-token", "0.01", "-n", "2000"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        deadline = time.monotonic() + 30
        while not (workers := workers_of(process.pid)):
            assert time.monotonic() < deadline, "no worker was started"
            time.sleep(0.01)
        workers[0].kill()
        output, log = process.communicate(timeout=30)
    finally:
        process.kill()
    assert process.returncode == 1
    assert not output
    assert "SIGKILL" in log.splitlines()[-1]
    assert "instance 0" in log.splitlines()[-1]
