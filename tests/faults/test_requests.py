"""Requests that are late, abandoned, empty, uneven or wrong, against the demo model. Numbers are failure modes."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import psutil
import pytest

from tests.e2e.running import Launch, Running, wait_in_flight
from tests.faults.http_clients import connected, post

pytestmark = pytest.mark.slow

BUSY = 150  # inputs that occupy all instances for a while
TEXTS = [f"text number {number} " + "of a few words " * (number % 7) for number in range(41)]


@pytest.fixture(scope="module")
def server(launch: Launch) -> Iterator[Running]:
    with launch("--instances", "2", "--dtype", "fp32", "--token-ids", "accept") as running:
        running.wait_serving()
        yield running


@pytest.fixture(scope="module")
def alone(server: Running) -> np.ndarray:
    """The vector of each text, computed by itself."""
    return np.vstack([vectors(server.embed(text)) for text in TEXTS])


def vectors(reply: httpx.Response) -> np.ndarray:
    assert reply.status_code == 200, reply.text
    data = reply.json()["data"]
    assert [entry["index"] for entry in data] == list(range(len(data)))
    return np.array([entry["embedding"] for entry in data], dtype=np.float32)


def counter(server: Running, name: str) -> float:
    lines = server.get("/metrics").text.splitlines()
    return sum(float(line.split()[-1]) for line in lines if line.startswith((f"{name} ", f"{name}{{")))


def busy(server: Running) -> threading.Thread:
    """Occupies all instances for a while."""
    thread = threading.Thread(target=server.embed, args=([[2000 + n % 500] * 256 for n in range(BUSY)],))
    thread.start()
    wait_in_flight(server, 1)
    return thread


def test_mode_18_a_deadline_that_passes_in_the_queue_is_a_504_and_computes_nothing(server: Running) -> None:
    # The prediction refuses most of them at once; both refusals compute nothing.
    thread = busy(server)
    before = counter(server, "launcher_batch_items_sum")
    reply = server.post(
        "/v1/embeddings", json={"input": [[101, 3000, 102]] * 300}, headers={"x-launcher-deadline-ms": "1"}
    )
    assert reply.status_code == 504
    assert reply.json()["error"]["code"] in ("deadline_exceeded", "deadline_unreachable")
    thread.join()
    assert counter(server, "launcher_batch_items_sum") - before <= BUSY


def test_mode_19_the_items_of_a_client_that_left_are_dropped(server: Running) -> None:
    thread = busy(server)
    before = counter(server, "launcher_batch_items_sum")
    with connected(server) as client:
        client.sendall(post([[3000] * 200] * 1500))
        wait_in_flight(server, 2)
    thread.join()
    wait_in_flight(server, 0)
    done = counter(server, "launcher_batch_items_sum") - before
    assert done < BUSY + 1500, "the items of the client that left were computed"


def test_mode_24_an_idle_front_takes_almost_no_cpu_time(server: Running) -> None:
    front = psutil.Process(server.process.pid)
    used = []
    for _ in range(3):
        before = front.cpu_times()
        threading.Event().wait(2.0)
        after = front.cpu_times()
        used.append(after.user + after.system - before.user - before.system)
    assert min(used) < 0.02 * 2.0, used


@pytest.mark.parametrize("count", [0, 1, 2, 3, 40, 41])
def test_mode_25_batches_of_any_size_are_answered(server: Running, alone: np.ndarray, count: int) -> None:
    reply = server.embed(TEXTS[:count])
    if count == 0:
        assert reply.status_code == 400
        assert reply.json()["error"]["param"] == "input"
        return
    found = vectors(reply)
    assert len(found) == count
    assert np.abs(found - alone[:count]).max() < 1e-5


def test_mode_26_split_responses_are_complete_and_in_order_and_fail_as_a_whole(
    server: Running, alone: np.ndarray
) -> None:
    replies: dict[int, httpx.Response] = {}
    orders = {seed: list(np.random.default_rng(seed).permutation(len(TEXTS))) for seed in range(16)}

    def send(seed: int) -> None:
        replies[seed] = server.embed([TEXTS[index] for index in orders[seed]])

    threads = [threading.Thread(target=send, args=(seed,)) for seed in orders]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    for seed, order in orders.items():
        assert np.abs(vectors(replies[seed]) - alone[order]).max() < 1e-5
    broken = server.embed([*TEXTS[:20], [30_522], *TEXTS[20:]])  # one id that the model does not have
    assert broken.status_code == 400
    assert "data" not in broken.json()


@pytest.mark.parametrize(
    ("text", "status"),
    [
        ("", {200, 400}),
        (" \t\n ", {200, 400}),
        ([101, 30_522], {400}),
        ([-1], {400}),
        ([2**70], {400}),
        ("a" * 1_000_001, {400, 413}),
    ],
)
def test_mode_28_texts_without_words_and_ids_out_of_range_are_answered(
    server: Running, text: Any, status: set[int]
) -> None:
    reply = server.embed([text])
    assert reply.status_code in status, reply.text
    if reply.status_code == 200:
        assert np.isfinite(vectors(reply)).all()
    else:
        assert reply.json()["error"]["message"]
    assert server.embed("still alive").status_code == 200


@pytest.mark.parametrize("dimensions", [0, -1, 385, 10**9, 2**70, True, 1.5, "8", [8]])
def test_mode_29_impossible_dimensions_are_refused(server: Running, dimensions: object) -> None:
    reply = server.embed("a text", dimensions=dimensions)
    assert reply.status_code == 400, reply.text
    assert reply.json()["error"]["param"] == "dimensions"
    assert vectors(server.embed("a text", dimensions=8)).shape == (1, 8)


@pytest.mark.parametrize("encoding", ["hex", "FLOAT", "", 1, True, ["float"]])
def test_mode_30_an_unknown_encoding_is_refused(server: Running, encoding: object) -> None:
    reply = server.embed("a text", encoding_format=encoding)
    assert reply.status_code == 400, reply.text
    assert reply.json()["error"]["param"] == "encoding_format"


def test_mode_31_an_unknown_model_is_refused_with_the_name_of_the_served_one(server: Running) -> None:
    reply = server.embed("a text", model="another")
    assert reply.status_code == 404
    served = server.get("/v1/models").json()["data"][0]["id"]
    assert served in reply.json()["error"]["message"]
    assert server.embed("a text", model=served).status_code == 200


def test_mode_51_a_text_has_the_same_vector_alone_in_any_batch_and_on_any_instance(
    server: Running, alone: np.ndarray
) -> None:
    before = {entry["id"]: entry["pid"] for entry in server.info()["instances"]}
    assert len(before) == 2
    worst = 0.0
    for size in (1, 3, 17, 41):
        for start in range(0, len(TEXTS), size):
            found = vectors(server.embed(TEXTS[start : start + size]))
            worst = max(worst, float(np.abs(found - alone[start : start + size]).max()))
    assert worst < 1e-5
    lines = server.get("/metrics").text.splitlines()
    items = [float(one.split()[-1]) for one in lines if one.startswith("launcher_batch_items_sum{")]
    assert len(items) == 2
    assert min(items) > 0, "only one instance has computed"


def test_mode_52_vectors_in_bf16_are_close_to_those_in_fp32(launch: Launch, alone: np.ndarray) -> None:
    with launch("--instances", "1", "--dtype", "bf16") as bf16:
        bf16.wait_serving()
        found = vectors(bf16.embed(TEXTS))
    cosine = (found * alone).sum(axis=1) / np.linalg.norm(found, axis=1) / np.linalg.norm(alone, axis=1)
    assert cosine.min() > 0.999


def test_mode_07_a_model_that_cannot_be_loaded_ends_the_start_with_the_reason(tmp_path: Path) -> None:
    from launcher.host.model.resolve import demo_folder

    for path in demo_folder().iterdir():
        if path.name != "model.safetensors" and path.is_file():
            (tmp_path / path.name).write_bytes(path.read_bytes())
    (tmp_path / "1_Pooling").mkdir(exist_ok=True)
    for path in (demo_folder() / "1_Pooling").iterdir():
        (tmp_path / "1_Pooling" / path.name).write_bytes(path.read_bytes())
    (tmp_path / "model.safetensors").write_bytes(b"\x08\0\0\0\0\0\0\0not json")
    command = [sys.executable, "-m", "launcher", "--port", "0", "--model", str(tmp_path), "--instances", "1"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode in (1, 2), done.stderr
    assert "model.safetensors" in done.stderr
    assert "Traceback" not in done.stderr


def test_mode_45_a_machine_of_one_core_is_served(launch: Launch) -> None:
    cpu = min(os.sched_getaffinity(0))
    arguments = ("--model", "random:tiny", "--backend", "fake")
    with launch(*arguments, prefix=("taskset", "-c", str(cpu))) as one:
        one.wait_serving()
        assert [entry["cpus"] for entry in one.info()["instances"]] == [[cpu]]
        assert one.embed("a text").status_code == 200
