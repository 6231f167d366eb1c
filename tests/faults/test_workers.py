"""Workers that are killed, stop, hang, crash or send wrong data, with real processes. Numbers are failure modes."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.e2e.running import Launch, Running
from tests.faults.misbehaving.sitecustomize import (
    EXIT,
    GARBAGE,
    KILL,
    MARKER,
    MISSING,
    NAN,
    PARTIAL,
    SEGFAULT,
    SPIN,
    WAIT,
)

pytestmark = pytest.mark.slow

FAKE = ("--model", "random:tiny", "--backend", "fake", "--token-ids", "accept")
TWO = (*FAKE, "--instances", "2")
MISBEHAVING = str(Path(__file__).parent / "misbehaving")


@pytest.fixture
def misbehaving(launch: Launch) -> Iterator[Callable[..., Any]]:
    """Start a server whose workers misbehave at some inputs."""

    def start(*arguments: str, **env: str) -> Any:
        return launch(*arguments, env={"PYTHONPATH": MISBEHAVING, **env})

    return start


def bad(token: int) -> list[int]:
    """An input with which workers misbehave."""
    return [101, MARKER, token, 102]


def good(number: int) -> list[int]:
    return [101, 2000 + number, 102]


def vectors(reply: httpx.Response) -> list[list[float]]:
    assert reply.status_code == 200, reply.text
    return [entry["embedding"] for entry in reply.json()["data"]]


def in_background(server: Running, inputs: Sequence[Any]) -> tuple[list[httpx.Response], list[threading.Thread]]:
    """Send each input in a request of its own, at the same time."""
    replies: list[httpx.Response] = []
    threads = [threading.Thread(target=lambda i=i: replies.append(server.embed([i]))) for i in inputs]
    for thread in threads:
        thread.start()
    return replies, threads


def join(threads: Sequence[threading.Thread]) -> None:
    for thread in threads:
        thread.join(60)
        assert not thread.is_alive()


def poll(condition: Callable[[], Any]) -> Any:
    """The first true value of ``condition``."""
    deadline = time.monotonic() + 60
    while not (value := condition()):
        assert time.monotonic() < deadline, "the condition did not become true"
    return value


def lost(server: Running) -> int:
    """The number of workers lost so far."""
    lines = server.get("/metrics").text.splitlines()
    return int(sum(float(line.split()[-1]) for line in lines if line.startswith("launcher_instance_lost_total{")))


def all_ready(server: Running) -> bool:
    return all(state["responds"] for state in server.get("/ready").json()["instances"].values())


# ------------------------------------------------------------- killed, stopped


def test_mode_01_a_worker_killed_while_idle_is_restarted(launch: Launch) -> None:
    with launch(*TWO) as server:
        server.wait_serving()
        for signal_number in (signal.SIGKILL, signal.SIGSEGV):
            os.kill(server.worker_of(0), signal_number)
            assert server.embed([good(1)]).status_code == 200
            assert signal_number.name in server.wait_for("exited", instance=0)["message"]
            server.wait_for("ready", instance=0)
            poll(lambda: all_ready(server))
        assert server.info()["quarantine"] == [], "no input was running"


def test_mode_02_the_batch_of_a_killed_worker_is_computed_by_another(launch: Launch) -> None:
    with launch(*TWO, "--hang-seconds", "60") as server:
        server.wait_serving()
        expected = vectors(server.embed([good(n) for n in range(40)]))
        victim = server.worker_of(0)
        os.kill(victim, signal.SIGSTOP)  # so that it is in the middle of a batch
        replies, threads = in_background(server, [good(n) for n in range(40)])
        poll(lambda: server.get("/ready").json()["instances"]["0"]["running_seconds"] is not None)
        os.kill(victim, signal.SIGKILL)
        join(threads)
        assert [reply.status_code for reply in replies] == [200] * 40
        assert sorted(vectors(reply)[0] for reply in replies) == sorted(expected)
        assert lost(server) == 1


def test_mode_03_a_stopped_worker_does_not_keep_a_request_waiting(launch: Launch) -> None:
    with launch(*TWO) as server:
        server.wait_serving()
        for pid in (server.worker_of(0), server.worker_of(1)):
            os.kill(pid, signal.SIGSTOP)
        replies, threads = in_background(server, [good(n) for n in range(2)])
        poll(lambda: server.get("/ready").status_code == 503)
        os.kill(server.worker_of(1), signal.SIGCONT)
        join(threads)
        assert [reply.status_code for reply in replies] == [200, 200]
        assert "stopped" in server.wait_for("overdue")["message"]
        server.wait_for("exited", instance=0)
        poll(lambda: all_ready(server))


def test_mode_03_the_only_worker_is_replaced_when_it_is_stopped(launch: Launch) -> None:
    with launch(*FAKE, "--instances", "1") as server:
        server.wait_serving()
        os.kill(server.worker_of(0), signal.SIGSTOP)
        assert server.embed([good(1)]).status_code == 200
        events = [record["event"] for record in server.records if "event" in record]
        server.wait_for("ready", instance=0)
        events = [record["event"] for record in server.records if "event" in record]
        assert events.index("overdue") < events.index("killing") < events.index("exited") < events.index("restarting")
        assert lost(server) == 1


def test_mode_04_an_input_that_crashes_native_code_fails_alone(misbehaving: Callable[..., Any]) -> None:
    with misbehaving(*TWO) as server:
        assert fails_alone(server, SEGFAULT) == "killed by SIGSEGV"


def test_mode_05_an_input_with_which_workers_are_killed_for_memory_fails_alone(misbehaving: Callable[..., Any]) -> None:
    with misbehaving(*TWO) as server:
        assert fails_alone(server, KILL) == "killed by SIGKILL"


def test_mode_06_a_worker_that_exits_with_0_is_lost_and_started_again(misbehaving: Callable[..., Any]) -> None:
    with misbehaving(*FAKE, "--instances", "1", "--max-attempts", "1", "--quarantine-seconds", "0") as server:
        server.wait_serving()
        expected = vectors(server.embed([good(1)]))
        for count in (1, 2):
            reply = server.embed([bad(EXIT)])
            assert (reply.status_code, reply.json()["error"]["code"]) == (500, "instance_failed")
            assert "exit status 0" in server.wait_for("exited", instance=0)["message"]
            server.wait_for("ready", instance=0)
            poll(lambda: all_ready(server))
            assert lost(server) == count
            assert vectors(server.embed([good(1)])) == expected


def test_mode_08_a_bad_input_fails_alone_and_is_refused_until_it_is_cleared(
    misbehaving: Callable[..., Any], tmp_path: Path
) -> None:
    with misbehaving(*TWO, XDG_RUNTIME_DIR=str(tmp_path)) as server:
        assert fails_alone(server, EXIT) == "exit status 0"
        socket = httpx.HTTPTransport(uds=str(next(tmp_path.glob("launch/admin-*.sock"))))
        with httpx.Client(transport=socket, base_url="http://admin", timeout=60) as client:
            assert client.post("/admin/quarantine/clear").json() == {"cleared": 1}
        assert server.info()["quarantine"] == []
        assert server.embed([bad(EXIT)]).status_code == 500
        assert lost(server) == 4


def fails_alone(server: Running, token: int) -> str:
    """Check that an input with which workers exit costs two workers, and no other input fails; returns the reason."""
    server.wait_serving()
    replies, threads = in_background(server, [bad(token), *(good(n) for n in range(20))])
    join(threads)
    by_status: dict[int, list[httpx.Response]] = {}
    for reply in replies:
        by_status.setdefault(reply.status_code, []).append(reply)
    (failed,) = by_status.pop(500)
    assert failed.json()["error"]["code"] == "instance_failed"
    assert "2 workers were lost" in failed.json()["error"]["message"]
    assert set(by_status) <= {200, 503}, "503: no worker was ready when it arrived"
    poll(lambda: all_ready(server))
    assert lost(server) == 2
    refused = server.embed([good(1), bad(token)])
    assert (refused.status_code, refused.json()["error"]["code"]) == (422, "input_quarantined")
    assert "input 1 is quarantined" in refused.json()["error"]["message"]
    assert server.embed([good(1)]).status_code == 200
    (entry,) = server.info()["quarantine"]
    assert "launcher_quarantined_inputs 1.0" in server.get("/metrics").text
    reason: str = entry["reason"]
    return reason


def test_mode_09_garbage_or_half_a_frame_ends_the_worker_only(misbehaving: Callable[..., Any]) -> None:
    with misbehaving(*TWO, "--quarantine-seconds", "0") as server:
        server.wait_serving()
        expected = vectors(server.embed([good(1)]))
        for number, token in enumerate((GARBAGE, PARTIAL)):
            reply = server.embed([bad(token)])
            assert (reply.status_code, reply.json()["error"]["code"]) == (500, "instance_failed")
            poll(lambda: all_ready(server))
            assert lost(server) == 2 * (number + 1)
            assert vectors(server.embed([good(1)])) == expected


def test_mode_10_wrong_counts_and_nan_are_errors_and_cost_no_worker(misbehaving: Callable[..., Any]) -> None:
    with misbehaving(*TWO) as server:
        server.wait_serving()
        for token, said in ((NAN, "NaN"), (MISSING, "shape")):
            reply = server.embed([good(1), bad(token)])
            assert reply.status_code == 500
            assert said in reply.json()["error"]["message"]
        assert lost(server) == 0
        assert server.info()["quarantine"] == []
        assert server.embed([good(1)]).status_code == 200


def test_mode_11_a_slow_worker_gets_less_work(misbehaving: Callable[..., Any], tmp_path: Path) -> None:
    switch = tmp_path / "slow"
    with misbehaving(*TWO, LAUNCH_TEST_SLOW=str(switch)) as server:
        server.wait_serving()
        switch.write_text("0")
        shares = [share_of_first(server) for _ in range(4)]
        assert lost(server) == 0, "slow is not a hang"
        assert shares[-1] < 0.2, shares


def share_of_first(server: Running) -> float:
    """The share of instance 0 in the items of some requests."""

    def items() -> list[float]:
        lines = server.get("/metrics").text.splitlines()
        found = [line for line in lines if line.startswith("launcher_batch_items_sum")]
        return [float(line.split()[-1]) for line in sorted(found)]

    before = items()
    for number in range(60):
        assert server.embed([good(number)]).status_code == 200
    done = [after - earlier for after, earlier in zip(items(), before, strict=True)]
    return done[0] / sum(done)


def test_mode_12_if_all_of_a_class_are_dead_others_serve_it(launch: Launch) -> None:
    with launch(*FAKE, "--classes", "64:1,max:1", "--backoff-seconds", "5") as server:
        server.wait_serving()
        long = [101, *(2000 + n for n in range(200)), 102]
        expected = vectors(server.embed([long]))
        os.kill(server.worker_of(1), signal.SIGKILL)
        server.wait_for("restarting", instance=1)
        assert server.get("/ready").status_code == 200
        assert vectors(server.embed([long])) == expected
        server.wait_for("ready", instance=1)


# ------------------------------------------------------------- hangs, readiness


def test_mode_40_it_is_ready_only_when_workers_are_and_health_never_waits(launch: Launch) -> None:
    with launch(*FAKE, "--instances", "1") as server:
        assert server.get("/health").status_code == 200
        server.wait_serving()
        assert server.get("/ready").json()["ready"] is True
        os.kill(server.worker_of(0), signal.SIGSTOP)
        replies, threads = in_background(server, [good(1)])
        poll(lambda: server.get("/ready").status_code == 503)
        assert server.get("/health").status_code == 200
        join(threads)
        assert replies[0].status_code == 200
        poll(lambda: server.get("/ready").status_code == 200)


def test_mode_62_a_deep_check_finds_a_worker_that_stopped_while_idle(launch: Launch) -> None:
    with launch(*TWO) as server:
        server.wait_serving()
        body = server.get("/ready?deep=1").json()
        assert body["computes"] == {"0": True, "1": True}
        assert all(state["seconds_since_batch"] < 60 for state in body["instances"].values())
        os.kill(server.worker_of(0), signal.SIGSTOP)
        assert server.get("/ready").json()["instances"]["0"]["responds"], "nothing is known yet"
        body = server.get("/ready?deep=1").json()
        assert body["computes"] == {"0": False, "1": True}
        assert body["ready"] is True, "the other instance serves"
        server.wait_for("killing", instance=0)
        server.wait_for("ready", instance=0)
        assert poll(lambda: server.get("/ready?deep=1").json()["computes"]["0"])
        for pid in (server.worker_of(0), server.worker_of(1)):
            os.kill(pid, signal.SIGSTOP)
        reply = server.get("/ready?deep=1")
        assert (reply.status_code, reply.json()["ready"]) == (503, False)


@pytest.mark.parametrize(("token", "activity"), [(WAIT, "inactive"), (SPIN, "active")])
def test_mode_62_inputs_that_hang_are_found_whatever_the_worker_does(
    misbehaving: Callable[..., Any], token: int, activity: str
) -> None:
    with misbehaving(*TWO, "--busy-hang-seconds", "3") as server:
        server.wait_serving()
        replies, threads = in_background(server, [bad(token), good(1), good(2)])
        join(threads)
        assert sorted(reply.status_code for reply in replies) == [200, 200, 500]
        assert activity in server.wait_for("overdue")["message"]
        assert lost(server) == 2
        poll(lambda: all_ready(server))
        assert server.embed([bad(token)]).status_code == 422


def test_mode_63_a_client_that_repeats_a_bad_input_costs_two_workers(misbehaving: Callable[..., Any]) -> None:
    with misbehaving(*TWO) as server:
        server.wait_serving()
        statuses = []
        for attempt in range(20):
            if attempt == 10:
                poll(lambda: all_ready(server))
            replies, threads = in_background(server, [bad(SEGFAULT), bad(SEGFAULT)])
            join(threads)
            statuses += [reply.status_code for reply in replies]
        assert set(statuses) <= {500, 503, 422}
        assert statuses.count(422) >= 20
        assert lost(server) == 2
        assert server.embed([good(1)]).status_code == 200


def test_mode_62_a_worker_that_stops_while_it_loads_is_replaced(
    launch: Launch, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    with launch(*FAKE, "--instances", "1") as server:
        server.wait_serving()
        os.kill(server.worker_of(0), signal.SIGKILL)
        started = server.wait_for("started", instance=0)
        pid = int(started["message"].split()[-1])
        os.kill(pid, signal.SIGSTOP)
        assert "far longer than usual" in server.wait_for("killing", instance=0)["message"]
        server.wait_for("ready", instance=0)
        assert server.embed([good(1)]).status_code == 200


# --------------------------------------------------------------------- restart


def test_mode_64_a_restarted_worker_repeats_neither_checks_nor_measurements(launch: Launch) -> None:
    with launch("--model", "random:tiny", "--instances", "1") as server:
        server.wait_serving()
        text = "the twin computes the same"
        expected = vectors(server.embed(text))
        first = server.info()["instances"][0]["worker"]
        os.kill(server.worker_of(0), signal.SIGKILL)
        server.wait_for("exited", instance=0)
        seen = len(server.records)
        server.wait_for("ready", instance=0)
        stages = {
            record["stage"]: record["message"] for record in server.records[seen:] if record.get("event") == "loading"
        }
        assert "as in an earlier worker" in stages["check"]
        assert "2 batches run once, cost from the cache" in stages["warmup"]
        again = server.info()["instances"][0]["worker"]
        for name in ("accuracy", "packed", "notes", "dtype"):
            assert again[name] == first[name]
        assert vectors(server.embed(text))[0] == pytest.approx(expected[0], rel=1e-5, abs=1e-6)
