"""Many workers at once: every kind of exit, restarts, limits and shutdown. All processes are real."""

from __future__ import annotations

import logging
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import anyio
import pytest

from launcher.core.lifecycle.worker import State
from launcher.host.process.spawn_worker import Launch
from launcher.host.process.supervisor import Supervisor
from launcher.options import SuperviseOptions

pytestmark = pytest.mark.anyio

QUICK = SuperviseOptions(backoff_seconds=0.01, backoff_limit_seconds=0.04, max_failures=3, start_seconds=20)
HOLD = 3600.0  # a back-off that no test waits for

# Reports that it is ready, then waits: one byte means `Stop`, end-of-file that the front has exited.
GOOD = "import socket; s = socket.socket(fileno=0); s.send(b'r'); s.recv(1)"
DEAF = "import socket, time; s = socket.socket(fileno=0); s.send(b'r'); time.sleep(600)"
SLOW = "import time; time.sleep(600)"


@pytest.fixture
def anyio_backend() -> tuple[str, dict[str, bool]]:
    return "asyncio", {"use_uvloop": True}  # what the front runs on; test_spawn runs on both loops


def python(code: str, instance: int = 0) -> Launch:
    return Launch(instance, (sys.executable, "-I", "-S", "-c", code), {})


class Front:
    """Takes the place of the dispatcher: holds the channels and reports when a worker is ready."""

    def __init__(self) -> None:
        self.story: list[tuple[object, ...]] = []
        self.channels: dict[int, socket.socket] = {}
        self.supervisor: Supervisor
        self._news = anyio.Event()

    def started(self, instance: int, pid: int, sock: socket.socket) -> None:
        self.channels[instance] = sock
        self._tell("started", instance, pid)

    def exited(self, instance: int, pid: int, description: str) -> None:
        self.channels.pop(instance).close()
        self._tell("exited", instance, description)

    def restarting(self, instance: int, delay: float) -> None:
        self._tell("restarting", instance, delay)

    def failed(self, instance: int, reason: str) -> None:
        self._tell("failed", instance, reason)

    def told(self, *beginning: object) -> list[tuple[object, ...]]:
        return [event for event in self.story if event[: len(beginning)] == beginning]

    async def until(self, *beginning: object, times: int = 1) -> tuple[object, ...]:
        """The last event with this beginning, once it has occurred ``times`` times."""
        with anyio.fail_after(60):
            while len(self.told(*beginning)) < times:
                await self._news.wait()
        return self.told(*beginning)[-1]

    async def warm(self, instance: int = 0) -> int:
        """Wait until the current worker of the instance reports that it is ready; its pid."""
        with anyio.fail_after(60):
            while instance not in self.channels:
                await self._news.wait()
            await anyio.wait_readable(self.channels[instance])
        assert self.channels[instance].recv(1) == b"r"
        pid = self.pid(instance)
        self.supervisor.ready(instance, pid)
        assert self.state(instance) == "ready"
        return pid

    def state(self, instance: int = 0) -> State:
        return self.supervisor.states()[instance]["state"]

    def pid(self, instance: int = 0) -> int:
        pid = self.supervisor.states()[instance]["pid"]
        assert pid is not None
        return pid

    def tell_all_to_stop(self) -> None:
        for channel in self.channels.values():
            channel.send(b"s")

    def _tell(self, *event: object) -> None:
        self.story.append(event)
        self._news.set()
        self._news = anyio.Event()


@asynccontextmanager
async def supervised(*codes: str | Launch, options: SuperviseOptions = QUICK) -> AsyncIterator[Front]:
    """A running supervisor with one instance per code; checks at the end that no process is left."""
    front = Front()
    launches = [python(code, instance) if isinstance(code, str) else code for instance, code in enumerate(codes)]
    front.supervisor = Supervisor(launches, options, front)
    async with anyio.create_task_group() as group:
        group.start_soon(front.supervisor.run)
        yield front
        front.supervisor.stop_now()
    pids = [event[2] for event in front.told("started")]
    assert not [pid for pid in pids if exists(pid)], "a worker is left or was not reaped"
    assert len(front.told("exited")) == len(pids), "every start is followed by an exit"
    assert not front.channels


def exists(pid: object) -> bool:
    return Path(f"/proc/{pid}").exists()


def count_descriptors() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


def runs(pid: int) -> bool:
    """Exists and is not a zombie."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def wait_until(condition: Callable[[], bool], seconds: float) -> bool:
    """Whether ``condition`` became true in time."""
    deadline = time.monotonic() + seconds
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.005)
    return condition()


async def test_all_instances_start_and_stop_when_told_to() -> None:
    async with supervised(GOOD, GOOD, GOOD) as front:
        pids = [await front.warm(instance) for instance in range(3)]
        assert len(set(pids)) == 3
        front.tell_all_to_stop()
        with anyio.fail_after(60):
            await front.supervisor.stop(grace=5)
        assert [front.state(instance) for instance in range(3)] == ["stopped"] * 3
        assert {event[2] for event in front.told("exited")} == {"exit status 0"}


@pytest.mark.parametrize(
    ("death", "described"),
    [
        (signal.SIGKILL, "killed by SIGKILL"),
        (signal.SIGSEGV, "killed by SIGSEGV"),
        (signal.SIGTERM, "killed by SIGTERM"),
    ],
)
async def test_a_killed_idle_worker_is_restarted_and_the_others_are_unaffected(
    death: signal.Signals, described: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "launcher.supervisor")
    async with supervised(GOOD, GOOD) as front:
        first, other = await front.warm(0), await front.warm(1)
        os.kill(first, death)
        event = await front.until("exited", 0)
        # Another process that the OOM killer kills in the meantime is mentioned after it.
        assert event[:2] == ("exited", 0)
        assert str(event[2]).startswith(described)
        await front.until("started", 0, times=2)
        second = await front.warm(0)
        assert second != first
        assert (front.pid(1), front.state(1)) == (other, "ready")
        assert front.supervisor.states()[0]["restarts"] == 1
    said = [record.getMessage() for record in caplog.records if record.__dict__["instance"] == 0]
    assert any(
        re.fullmatch(rf"worker, pid {first}, exited after .* s in state ready: {described}.*", line) for line in said
    )
    assert "restarts on the same cores in 0.0 s (consecutive failure 1)" in said


async def test_the_next_worker_gets_the_same_command_and_environment() -> None:
    code = """
import os, socket
s = socket.socket(fileno=0); s.send(b'r')
s.recv(1); s.send(f"{os.environ['OMP_NUM_THREADS']} {sorted(os.sched_getaffinity(0))}".encode())
"""
    cpu = min(os.sched_getaffinity(0))
    command = ("taskset", "-c", str(cpu), sys.executable, "-I", "-S", "-c", code)
    launch = Launch(0, command, {"OMP_NUM_THREADS": "5", "PATH": os.environ["PATH"]})
    answers = []
    async with supervised(launch, options=SuperviseOptions(backoff_seconds=0.01, max_failures=10)) as front:
        for start in (1, 2):
            await front.until("started", 0, times=start)
            await front.warm()
            front.channels[0].send(b"?")
            await anyio.wait_readable(front.channels[0])
            answers.append(front.channels[0].recv(100).decode())
            await front.until("exited", 0, times=start)
    assert answers == [f"5 [{cpu}]"] * 2


async def test_a_worker_that_exits_with_status_0_unasked_is_restarted() -> None:
    async with supervised("import socket; socket.socket(fileno=0).send(b'r')") as front:
        assert await front.until("exited", 0) == ("exited", 0, "exit status 0")
        await front.until("started", 0, times=2)


async def test_a_crash_at_load_is_retried_up_to_the_limit_and_no_further() -> None:
    async with supervised("raise SystemExit('no weights')", GOOD) as front:
        await front.warm(1)
        failure = await front.until("failed", 0)
        assert failure[2] == "3 consecutive failures, the last: exit status 1; last output: 'no weights'"
        assert [delay for *_, delay in front.told("restarting", 0)] == [0.01, 0.02]
        assert len(front.told("started", 0)) == 3
        assert front.state(0) == "failed"
        assert front.state(1) == "ready", "one broken instance must not end the others"
        os.kill(front.pid(1), signal.SIGKILL)
        await front.until("started", 1, times=2)
        assert len(front.told("started", 0)) == 3, "it stays failed while others are restarted"


async def test_a_command_that_cannot_be_executed_fails_with_its_reason() -> None:
    async with supervised(Launch(0, ("/no/such/program",), {})) as front:
        reason = (await front.until("failed", 0))[2]
        assert "/no/such/program" in str(reason)
        assert "3 consecutive failures" in str(reason)
        assert not front.told("started")


async def test_a_permanently_failed_worker_is_not_restarted() -> None:
    async with supervised(SLOW) as front:
        await front.until("started", 0)
        front.supervisor.unusable(0, "the model has no safetensors file", front.pid())
        assert await front.until("failed", 0) == ("failed", 0, "the model has no safetensors file")
        assert len(front.told("started")) == 1


async def test_a_hung_worker_is_killed_and_restarted() -> None:
    async with supervised(DEAF) as front:
        pid = await front.warm()
        os.kill(pid, signal.SIGSTOP)
        front.supervisor.kill(0, "batch 3 hangs", pid)
        assert await front.until("exited", 0) == ("exited", 0, "killed: batch 3 hangs")
        await front.until("started", 0, times=2)
        assert await front.warm() != pid


async def test_reports_of_an_earlier_worker_are_ignored() -> None:
    async with supervised(GOOD) as front:
        first = await front.warm()
        os.kill(first, signal.SIGKILL)
        await front.until("started", 0, times=2)
        second = await front.warm()
        front.supervisor.kill(0, "its channel is broken", first)
        front.supervisor.unusable(0, "said long ago", first)
        front.supervisor.ready(0, first)
        assert (front.state(), front.pid()) == ("ready", second)


async def test_a_worker_that_is_not_ready_in_time_is_killed_and_counted() -> None:
    options = SuperviseOptions(start_seconds=0.05, max_failures=2, backoff_seconds=0.01)
    async with supervised(SLOW, options=options) as front:
        reason = (await front.until("failed", 0))[2]
        assert re.fullmatch(r"2 consecutive failures, the last: not ready after 0\.\d s", str(reason))
        assert all(str(event[2]).startswith("killed: not ready after") for event in front.told("exited", 0))


async def test_a_worker_that_was_ready_for_a_while_starts_a_new_series_of_failures() -> None:
    options = SuperviseOptions(backoff_seconds=0.01, max_failures=2, settled_seconds=0.0)
    async with supervised(GOOD, options=options) as front:
        for start in range(1, 5):
            await front.until("started", 0, times=start)
            os.kill(await front.warm(), signal.SIGKILL)
            await front.until("exited", 0, times=start)
        assert front.state() == "backoff"
        assert front.supervisor.states()[0]["failures"] == 1


async def test_loading_workers_are_killed_at_once_on_stop() -> None:
    async with supervised(SLOW, SLOW) as front:
        await front.until("started", 1)
        with anyio.fail_after(60):
            await front.supervisor.stop(grace=600)
        assert [front.state(0), front.state(1)] == ["stopped", "stopped"]


async def test_a_ready_worker_that_does_not_exit_is_killed_after_the_grace_period() -> None:
    async with supervised(DEAF, GOOD) as front:
        await front.warm(0)
        await front.warm(1)
        front.tell_all_to_stop()
        before = time.monotonic()
        await front.supervisor.stop(grace=0.3)
        assert time.monotonic() - before > 0.25
        assert front.told("exited", 0) == [("exited", 0, "killed: did not stop within the grace period")]
        assert front.told("exited", 1) == [("exited", 1, "exit status 0")]


async def test_a_second_signal_kills_stopping_workers() -> None:
    async with supervised(DEAF, DEAF) as front:
        await front.warm(0)
        await front.warm(1)
        with anyio.fail_after(60):
            async with anyio.create_task_group() as group:
                group.start_soon(front.supervisor.stop, 600.0)
                await anyio.lowlevel.checkpoint()
                assert front.state(0) == "stopping"
                front.supervisor.stop_now()
        assert front.state(0) == front.state(1) == "stopped"


async def test_while_draining_nothing_is_restarted_and_back_off_ends() -> None:
    options = SuperviseOptions(backoff_seconds=HOLD, backoff_limit_seconds=HOLD)
    async with supervised(GOOD, GOOD, options=options) as front:
        waiting, serving = await front.warm(0), await front.warm(1)
        os.kill(waiting, signal.SIGKILL)
        await front.until("restarting", 0)
        front.supervisor.begin_drain()
        assert (front.state(0), front.state(1)) == ("stopped", "ready")
        os.kill(serving, signal.SIGKILL)
        await front.until("exited", 1)
        assert front.state(1) == "stopped"
        with anyio.fail_after(60):
            await front.supervisor.stop(grace=HOLD)
        assert len(front.told("started")) == 2


async def test_a_stop_before_the_start_starts_nothing() -> None:
    front = Front()
    front.supervisor = Supervisor([python(GOOD)], QUICK, front)
    front.supervisor.stop_now()
    with anyio.fail_after(60):
        await front.supervisor.run()
        await front.supervisor.stop(grace=1)
    assert front.story == []
    assert front.state() == "stopped"


async def test_a_stop_ends_while_there_is_no_instance() -> None:
    async with supervised(SLOW) as front:
        await front.until("started", 0)
        await front.supervisor.remove(0, grace=HOLD)
        with anyio.fail_after(60):
            await front.supervisor.stop(grace=HOLD)


async def test_a_drain_between_two_starts_starts_no_other_instance() -> None:
    class Drains(Front):
        def started(self, instance: int, pid: int, sock: socket.socket) -> None:
            super().started(instance, pid, sock)
            self.supervisor.begin_drain()

    front = Drains()
    front.supervisor = Supervisor([python(SLOW), python(SLOW, 1)], QUICK, front)
    async with anyio.create_task_group() as group:
        group.start_soon(front.supervisor.run)
        await front.until("started", 0)
        await anyio.wait_all_tasks_blocked()
        assert (front.state(0), front.state(1)) == ("loading", "stopped")
        front.supervisor.stop_now()
    assert len(front.told("started")) == 1


async def test_a_cancelled_supervisor_leaves_no_process() -> None:
    front = Front()
    front.supervisor = Supervisor([python(DEAF), python(SLOW, 1)], QUICK, front)
    async with anyio.create_task_group() as group:
        group.start_soon(front.supervisor.run)
        await front.until("started", 1)
        pids = [front.pid(0), front.pid(1)]
        group.cancel_scope.cancel()
    assert not [pid for pid in pids if exists(pid)]
    assert len(front.told("exited")) == 2


async def test_an_exception_in_a_listener_ends_the_supervisor_and_leaves_no_process() -> None:
    front = Front()

    def fail(instance: int, delay: float) -> None:
        raise RuntimeError("a bug in the glue")

    front.restarting = fail  # type: ignore[method-assign]
    front.supervisor = Supervisor([python(GOOD), python(SLOW, 1)], QUICK, front)
    with pytest.raises(Exception) as caught:  # noqa: PT011, PT012  # a group of errors; Python 3.10 has no name for it
        async with anyio.create_task_group() as group:
            group.start_soon(front.supervisor.run)
            os.kill(await front.warm(), signal.SIGKILL)
            await anyio.sleep(10)
    assert "a bug in the glue" in repr(caught.getrepr(style="short"))
    assert not [event for event in front.told("started") if exists(event[2])]


async def test_restarts_leak_no_descriptor() -> None:
    options = SuperviseOptions(backoff_seconds=0.0, max_failures=1000)
    async with supervised("", options=options) as front:
        await front.until("exited", 0, times=3)
        before = count_descriptors()
        await front.until("exited", 0, times=25)
        # A worker that is being started has a channel, a pipe and a pidfd.
        assert count_descriptors() <= before + 6


async def test_states_have_what_ready_and_info_show() -> None:
    start = time.monotonic()
    async with supervised(GOOD, "raise SystemExit(3)", options=SuperviseOptions(backoff_seconds=HOLD)) as front:
        pid = await front.warm(0)
        await front.until("restarting", 1)
        states = front.supervisor.states()
    assert (states[0]["state"], states[0]["pid"], states[0]["restarts"], states[0]["reason"]) == (
        "ready",
        pid,
        0,
        None,
    )
    assert (states[1]["state"], states[1]["pid"], states[1]["failures"]) == ("backoff", None, 1)
    assert states[1]["reason"] == "exit status 3"
    assert all(0 <= state["for_seconds"] <= time.monotonic() - start for state in states.values())


FRONT_PROGRAM = """
import os, sys
import anyio
from launcher.host.process.spawn_worker import Launch
from launcher.host.process.supervisor import Supervisor
from launcher.options import SuperviseOptions

class Silent:
    def __init__(self): self.channels = []
    def started(self, instance, pid, sock):
        self.channels.append(sock)
        print(pid, flush=True)
    def exited(self, instance, pid, description): pass
    def restarting(self, instance, delay): pass
    def failed(self, instance, reason): pass

command = (sys.executable, "-m", "launcher.worker", "--instance", "0", "--threads", "1")
launches = [Launch(instance, command, dict(os.environ)) for instance in range(3)]
anyio.run(Supervisor(launches, SuperviseOptions(), Silent()).run)
"""


@pytest.mark.parametrize("stopped", [False, True], ids=["workers run", "workers are stopped"])
def test_when_the_front_is_killed_no_worker_is_left_within_a_second(stopped: bool) -> None:
    with subprocess.Popen([sys.executable, "-c", FRONT_PROGRAM], stdout=subprocess.PIPE, text=True) as front:
        assert front.stdout is not None
        pids = [int(front.stdout.readline()) for _ in range(3)]
        assert all(runs(pid) for pid in pids)
        if stopped:  # a stopped process cannot read end-of-file; the parent-death signal does not need it to
            assert wait_until(lambda: all(has_death_signal_set(pid) for pid in pids), 10)
            for pid in pids:
                os.kill(pid, signal.SIGSTOP)
        front.kill()
        front.wait()
        assert wait_until(lambda: not any(runs(pid) for pid in pids), 1.0), f"one of {pids} is still there"


def has_death_signal_set(pid: int) -> bool:
    """Judged from outside: the worker requests the signal before it starts its second thread."""
    status = Path(f"/proc/{pid}/status").read_text()
    return int(re.search(r"^Threads:\t(\d+)", status, re.MULTILINE)[1]) > 1  # type: ignore[index]
