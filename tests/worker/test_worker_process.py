"""A worker process with the fake backend: its replies, the errors it survives, and how it exits."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from launcher.core.protocol.messages import Setup, Stop
from launcher.worker.backends.fake import fake_result

SLOW = 5.0  # seconds per token: a batch runs longer than any test


def gone(pid: int, within: float = 10.0) -> bool:
    """Whether the process exits in time; a zombie has exited."""
    deadline = time.monotonic() + within
    while time.monotonic() < deadline:
        try:
            state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        except (FileNotFoundError, ProcessLookupError):
            return True
        if state == "Z":
            return True
        time.sleep(0.01)
    return False


def test_reports_what_it_loaded_and_the_time_of_each_warm_up_batch(start, fake_setup) -> None:
    worker = start("--threads", "3")
    worker.send(fake_setup(warmup=((4, 8), (1, 2)), seconds=0.001))

    ready = worker.ready()

    assert (ready.pid, ready.threads, ready.backend) == (worker.process.pid, 3, "fake")
    assert (ready.width, ready.labels, ready.accuracy) == (16, (), None)
    assert [work for *work, _ in ready.measured] == [[4, 32, 256], [1, 2, 4]]
    assert ready.measured[0][3] >= 0.032
    assert ready.warmup_seconds >= 2 * 0.034
    assert [message.stage for message in worker.loading] == ["import", "import", "load", "warmup", "warmup", "warmup"]
    assert all(0 <= message.done <= 1 for message in worker.loading)


def test_returns_the_results_of_each_batch_in_order(start, fake_setup) -> None:
    worker, setup = start(), fake_setup()
    worker.send(setup)
    worker.ready()
    batches = [[[1, 2, 3], [4, 5]], [[9]], [[7, 7], [8, 8], [9, 9]]]
    for number, items in enumerate(batches):
        worker.run(number, items)

    for number, items in enumerate(batches):
        done, values = worker.results()
        assert (done.batch, done.items) == (number, len(items))
        assert done.computed_tokens == sum(map(len, items))
        expected = [fake_result(np.array(item, dtype=np.int32), setup.model_info) for item in items]
        np.testing.assert_array_equal(values, np.stack(expected))


def test_a_classifier_returns_one_score_per_label(start, fake_setup) -> None:
    worker = start()
    worker.send(fake_setup(task="classify", labels=("bad", "good", "ugly")))
    assert worker.ready().labels == ("bad", "good", "ugly")
    worker.run(0, [[1, 2], [3]])

    _, values = worker.results()

    assert values.shape == (2, 3)
    np.testing.assert_allclose(values.sum(axis=1), 1, rtol=1e-5)


def test_takes_the_configured_time_per_token(start, fake_setup) -> None:
    worker = start()
    worker.send(fake_setup(seconds=0.002))
    worker.ready()
    for batch in range(10):  # the fastest of several, on a machine that does other things, too
        worker.run(batch, [[1] * 30, [2] * 5])

    seconds = [worker.results()[0].seconds for _ in range(10)]

    assert 0.07 <= min(seconds) < 0.7


def test_batches_sent_before_stop_are_finished(start, fake_setup) -> None:
    worker = start()
    worker.send(fake_setup(seconds=0.01))
    worker.ready()
    worker.run(1, [[1] * 10])
    worker.run(2, [[2] * 10])
    worker.send(Stop())

    assert [worker.results()[0].batch for _ in range(2)] == [1, 2]
    assert worker.receive() is None
    assert worker.exit_status() == 0


def test_results_still_arrive_when_the_front_sends_stop_and_shuts_down_its_writing_direction(start, fake_setup) -> None:
    worker = start()
    worker.send(fake_setup(seconds=0.02))
    worker.ready()
    worker.run(1, [[1] * 10])
    worker.send(Stop())
    worker.socket.shutdown(socket.SHUT_WR)

    assert worker.results()[0].batch == 1
    assert worker.exit_status() == 0


@pytest.mark.parametrize("when", ["before setup", "idle", "in a batch"])
def test_exits_immediately_when_the_channel_is_closed(start, fake_setup, when) -> None:
    worker = start()
    if when != "before setup":
        worker.send(fake_setup(seconds=SLOW))
        worker.ready()
    if when == "in a batch":
        worker.run(1, [[1] * 100])
    worker.socket.close()

    assert worker.process.wait(60) == 0


STARTER = """
import socket, subprocess, sys, time
channel = socket.socket(fileno=int(sys.argv[1]))
command = [sys.executable, "-m", "launcher.worker", "--instance", "0", "--threads", "1"]
worker = subprocess.Popen(command, stdin=channel)
print(worker.pid, flush=True)
time.sleep(600)
"""


def test_is_killed_with_its_parent_even_if_the_channel_stays_open(fake_setup) -> None:
    ours, theirs = socket.socketpair()
    starter = subprocess.Popen(
        [sys.executable, "-c", STARTER, str(theirs.fileno())],
        stdout=subprocess.PIPE,
        text=True,
        pass_fds=[theirs.fileno()],
    )
    assert starter.stdout is not None
    pid = int(starter.stdout.readline())
    from launcher.core.protocol.frames import encode

    ours.sendall(b"".join(encode(fake_setup(seconds=SLOW))))
    assert ours.recv(1)  # the worker runs and has sent a message
    starter.kill()
    starter.wait()
    starter.stdout.close()

    assert gone(pid)
    ours.close()
    theirs.close()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_ignores_termination_signals(start, fake_setup, number) -> None:
    worker = start()
    worker.send(fake_setup())
    worker.ready()
    worker.process.send_signal(number)
    worker.run(1, [[5, 6]])

    assert worker.results()[0].batch == 1
    assert worker.stop() == 0


@pytest.mark.parametrize(
    ("items", "reason"),
    [
        ([[1, 1000]], "token id 1000 is out of range; it must be from 0 to 999"),
        ([[-1]], "token id -1 is out of range"),
        ([[1], [2, 3]], "must be positive and in descending order"),
        ([[1] * 129], "an item has 129 tokens; the model accepts at most 128"),
    ],
)
def test_an_invalid_batch_fails_without_affecting_the_next(start, fake_setup, items, reason) -> None:
    worker = start()
    worker.send(fake_setup())
    worker.ready()
    worker.run(1, items)
    worker.run(2, [[1, 2]])

    failed = worker.failed()
    assert failed.batch == 1
    assert reason in failed.reason
    assert worker.results()[0].batch == 2


def test_a_body_of_the_wrong_size_fails_without_affecting_the_next(start, fake_setup) -> None:
    from launcher.core.protocol.messages import Run

    worker = start()
    worker.send(fake_setup())
    worker.ready()
    worker.send(Run(1, (3, 2)), b"\0" * 16)
    worker.run(2, [[1, 2]])

    assert "expected 20 bytes of token ids for 5 tokens, got 16" in worker.failed().reason
    assert worker.results()[0].batch == 2


@pytest.mark.parametrize("bytes_sent", [b"GET / HTTP/1.1\r\n\r\n", b"\x05\x00\x00\x00\x00\x00\x00\x00hello"])
def test_exits_with_status_6_on_garbage_on_the_channel(start, bytes_sent) -> None:
    worker = start()
    worker.socket.sendall(bytes_sent)

    assert worker.exit_status() == 6
    assert "protocol error on the channel" in worker.errors()


@pytest.mark.parametrize("after_ready", [False, True])
def test_exits_with_status_6_on_an_unexpected_message(start, fake_setup, after_ready) -> None:
    worker = start()
    if after_ready:
        worker.send(fake_setup())
        worker.ready()
        worker.send(fake_setup())
    else:
        worker.send(Stop())

    assert worker.exit_status() == 6


def test_reports_that_descriptor_0_is_not_a_socket() -> None:
    made = subprocess.run(
        [sys.executable, "-m", "launcher.worker", "--instance", "0", "--threads", "1"],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )

    assert made.returncode == 2
    assert "descriptor 0 is not a connected socket" in made.stderr


@pytest.mark.parametrize("arguments", [["--threads", "0"], ["--threads", "1", "--memory", "bind"], []])
def test_rejects_invalid_arguments(arguments) -> None:
    made = subprocess.run(
        [sys.executable, "-m", "launcher.worker", "--instance", "0", *arguments],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )

    assert made.returncode == 2
    assert "--" in made.stderr


def test_a_warm_up_batch_with_too_long_an_item_is_refused(start, fake_setup) -> None:
    worker = start()
    worker.send(fake_setup(warmup=((1, 129),)))

    assert "must have 1 to 128 tokens" in worker.unusable()
    assert worker.exit_status() == 4


def test_descriptor_0_is_dev_null_and_the_fake_backend_does_not_load_torch(start, fake_setup) -> None:
    worker = start()
    worker.send(fake_setup())
    pid = worker.ready().pid

    assert Path(f"/proc/{pid}/fd/0").readlink() == Path(os.devnull)
    assert "libtorch" not in Path(f"/proc/{pid}/maps").read_text()


# --- binding without numactl


def thread_masks(pid: int) -> list[str]:
    statuses = [(task / "status").read_text() for task in Path(f"/proc/{pid}/task").iterdir()]
    return [line.split()[1] for status in statuses for line in status.splitlines() if "Cpus_allowed_list" in line]


def test_binds_every_thread_to_the_given_cpus(start, fake_setup) -> None:
    cpu = min(os.sched_getaffinity(0))
    worker = start("--threads", "1", "--cpus", str(cpu))
    worker.send(fake_setup())

    masks = thread_masks(worker.ready().pid)

    assert len(masks) >= 2  # the hang-up watch is one of them
    assert set(masks) == {str(cpu)}


@pytest.mark.parametrize("cpus", ["4000", "{first},4000"])
def test_reports_which_cpus_are_not_available(start, cpus) -> None:
    worker = start("--threads", "1", "--cpus", cpus.format(first=min(os.sched_getaffinity(0))))

    reason = worker.unusable()

    assert "4000" in reason
    assert worker.exit_status() == 5


def memory_policies_are_allowed() -> bool:
    script = "from launcher.pinning import bind_memory; bind_memory('bind', [0])"
    return subprocess.run([sys.executable, "-c", script], capture_output=True, check=False).returncode == 0


@pytest.mark.skipif(not memory_policies_are_allowed(), reason="set_mempolicy is refused on this machine")
@pytest.mark.parametrize("policy", ["bind", "interleave"])
def test_binds_memory_to_the_given_nodes(start, fake_setup, policy) -> None:
    worker = start("--threads", "1", "--memory", policy, "--nodes", "0")
    worker.send(fake_setup())
    pid = worker.ready().pid

    heap = [line for line in Path(f"/proc/{pid}/numa_maps").read_text().splitlines() if "anon=" in line]

    assert heap
    assert all(line.split()[1].startswith(f"{policy}:0") for line in heap)


def test_reports_which_nodes_were_refused(start) -> None:
    worker = start("--threads", "1", "--memory", "bind", "--nodes", "63")

    reason = worker.unusable()

    assert "memory bind on node 63 was refused by set_mempolicy" in reason
    assert worker.exit_status() == 5


def test_setup_is_unchanged_by_encoding_and_decoding(fake_setup: Callable[..., Setup]) -> None:
    import msgspec

    setup = fake_setup(warmup=((2, 3),), notes=("a note",))

    assert msgspec.msgpack.decode(msgspec.msgpack.encode(setup), type=Setup) == setup
    assert json.loads(msgspec.json.encode(setup))["model_info"]["notes"] == ["a note"]
