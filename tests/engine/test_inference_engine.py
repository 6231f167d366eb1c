"""The engine with real workers of the fake backend: lost and failed instances, drain, ``--strict``."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import anyio
import msgspec
import numpy as np
import numpy.typing as npt
import psutil
import pytest

from launcher.core.protocol.messages import Ready
from launcher.core.report.topology_report import Command
from launcher.engine.configuration import configure
from launcher.engine.inference_engine import EngineSettings, InferenceEngine
from launcher.errors import InstanceError, ModelRefusedError, RequestError, UsageError
from launcher.options import MachineOptions, ModelOptions, ServeOptions, SuperviseOptions
from launcher.prepare.prepared_instances import Prepared, renumbered
from launcher.prepare.workers import prepare_workers
from tests.e2e.running import gone

pytestmark = [pytest.mark.anyio, pytest.mark.slow]

QUICK = SuperviseOptions(max_failures=2, backoff_seconds=0.01)
OPTIONS = ServeOptions(
    machine=MachineOptions(instances=2, oversubscribe=True, reserve_cores=0),
    model=ModelOptions(model="random:tiny", backend="fake"),
    supervise=QUICK,
)
ENDS_AT_ONCE = (sys.executable, "-c", "raise SystemExit('nothing to serve')")
REFUSES = """
import socket
from launcher.core.protocol.messages import Unusable
from launcher.worker.channel import Channel
channel = Channel(socket.socket(fileno=0))
channel.receive()
channel.send(Unusable("config.json sets a key to a value"))
raise SystemExit(4)
"""
REFUSES_THE_MODEL = (sys.executable, "-c", REFUSES)


@pytest.fixture
def anyio_backend() -> tuple[str, dict[str, bool]]:
    return "asyncio", {"use_uvloop": True}


@pytest.fixture(autouse=True)
def own_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


class RecordingObserver:
    """An observer that records its notifications."""

    def __init__(self) -> None:
        self.ready = 0
        self.failures: list[InstanceError] = []

    def all_ready(self) -> None:
        self.ready += 1

    def changed(self, prepared: Prepared) -> None:
        """Not recorded."""

    def failed(self, error: InstanceError) -> None:
        self.failures.append(error)


def prepared_with(options: ServeOptions = OPTIONS, **broken: tuple[str, ...]) -> Prepared:
    """The preparation of ``options``; ``broken`` has other commands for instances, named ``instance_0`` and so on."""
    prepared = prepare_workers(options, model_needed=True)
    instances = [
        replace(one, command=Command(broken.get(f"instance_{one.plan.id}", one.command.command), one.command.env))
        for one in prepared.instances
    ]
    return replace(prepared, instances=tuple(instances))


@contextlib.asynccontextmanager
async def running(engine: InferenceEngine) -> AsyncIterator[InferenceEngine]:
    """The engine while it runs; checks afterwards that no worker is left."""
    pids: set[int] = set()
    async with anyio.create_task_group() as group:
        group.start_soon(engine.run)
        try:
            with anyio.fail_after(30):
                yield engine
        finally:
            pids |= set(workers_of(engine))
            engine.stop_now()
            engine.close()
    assert gone(sorted(pids))


def workers_of(engine: InferenceEngine) -> list[int]:
    return [state["pid"] for state in engine.states().values() if state["pid"] is not None]


def suspend(engine: InferenceEngine) -> None:
    """Stop the workers with SIGSTOP; they can still be killed."""
    for pid in workers_of(engine):
        os.kill(pid, signal.SIGSTOP)


def tokens(number: int = 7) -> npt.NDArray[np.int32]:
    return np.array([101, number, 102], dtype=np.int32)


async def until(condition: Callable[[], object]) -> None:
    while not condition():  # noqa: ASYNC110  # what is waited for happens in other processes
        await anyio.sleep(0.01)


async def test_it_computes_and_leaves_no_worker() -> None:
    told = RecordingObserver()
    async with running(InferenceEngine(OPTIONS, prepared_with(), observer=told)) as engine:
        await engine.wait_ready()
        assert (told.ready, engine.is_ready()) == (1, True)
        outcome = await engine.dispatcher.enqueue([tokens(), tokens(8)])
        assert outcome.results.shape == (2, engine.model_info.result_width)
        await engine.drain(5.0)
        assert not engine.is_ready()
        await engine.stop()
        assert workers_of(engine) == []
    assert not told.failures


async def test_info_has_plan_binding_command_costs_and_verification_of_each_instance() -> None:
    async with running(InferenceEngine(OPTIONS, prepared_with())) as engine:
        await engine.wait_ready()
        await until(lambda: all(one["verification"] for one in engine.info()["instances"]))
        for entry, instance in zip(engine.info()["instances"], engine.prepared.instances, strict=True):
            assert (entry["id"], entry["state"]) == (instance.plan.id, "ready")
            assert entry["command"] == list(instance.command.command)
            assert entry["binding"]["level"] == instance.binding.level
            assert entry["cost"]["source"] in ("measured", "cached")
            assert entry["worker"]["measured"]


async def test_a_lost_instance_is_replaced_and_its_work_done() -> None:
    told = RecordingObserver()
    async with running(InferenceEngine(OPTIONS, prepared_with(), observer=told)) as engine:
        await engine.wait_ready()
        suspend(engine)
        answers = [engine.dispatcher.enqueue([tokens(number)]) for number in (1, 2)]
        before = workers_of(engine)
        os.kill(before[0], signal.SIGKILL)
        os.kill(before[1], signal.SIGCONT)
        for answer in answers:
            assert (await answer).results.shape[0] == 1
        await until(lambda: told.ready == 2)
        assert set(workers_of(engine)) - set(before)
        assert engine.failure is None


async def test_without_restarts_the_engine_fails_with_the_first_lost_instance() -> None:
    told = RecordingObserver()
    settings = EngineSettings(restart=False)
    async with running(InferenceEngine(OPTIONS, prepared_with(), settings, told)) as engine:
        await engine.wait_ready()
        suspend(engine)
        answer = engine.dispatcher.enqueue([tokens()])
        os.kill(workers_of(engine)[0], signal.SIGKILL)
        with pytest.raises(RequestError, match=r"instance 0 .*SIGKILL"):
            await answer
        assert [str(error) for error in told.failures] == [str(engine.failure)]


async def test_when_all_instances_have_failed_the_engine_fails_with_the_reason() -> None:
    told = RecordingObserver()
    prepared = prepared_with(instance_0=ENDS_AT_ONCE, instance_1=ENDS_AT_ONCE)
    async with running(InferenceEngine(OPTIONS, prepared, observer=told)) as engine:
        with pytest.raises(InstanceError, match=r"no instance is left: .*nothing to serve"):
            await engine.wait_ready()
        await until(lambda: told.failures)
        with pytest.raises(RequestError, match="the last instance to fail was"):
            await engine.dispatcher.enqueue([tokens()])


@pytest.mark.parametrize("restart", [True, False])
async def test_a_model_that_the_workers_refuse_is_an_error_of_the_user(restart: bool) -> None:
    prepared = prepared_with(instance_0=REFUSES_THE_MODEL, instance_1=REFUSES_THE_MODEL)
    async with running(InferenceEngine(OPTIONS, prepared, EngineSettings(restart=restart))) as engine:
        with pytest.raises(ModelRefusedError, match=r"^config\.json sets a key to a value$") as caught:
            await engine.wait_ready()
        assert caught.value.exit_code == 2


async def test_if_one_instance_fails_permanently_the_others_do_its_work() -> None:
    async with running(InferenceEngine(OPTIONS, prepared_with(instance_1=ENDS_AT_ONCE))) as engine:
        await engine.wait_ready()
        assert (await engine.dispatcher.enqueue([tokens()])).instances == (0,)
        assert engine.states()["1"]["state"] == "failed"


async def test_a_drain_finishes_admitted_requests_and_refuses_new_ones() -> None:
    async with running(InferenceEngine(OPTIONS, prepared_with())) as engine:
        await engine.wait_ready()
        suspend(engine)
        admitted = engine.dispatcher.enqueue([tokens()])
        async with anyio.create_task_group() as group:
            group.start_soon(engine.drain, 10.0)
            await until(lambda: engine.draining)
            with pytest.raises(RequestError, match="shutting down"):
                await engine.dispatcher.enqueue([tokens()])
            assert not admitted.done()
            for pid in workers_of(engine):
                os.kill(pid, signal.SIGCONT)
        assert admitted.done()
        assert admitted.result().results.shape[0] == 1


async def test_requests_that_outlast_the_drain_timeout_are_answered_with_an_error() -> None:
    async with running(InferenceEngine(OPTIONS, prepared_with())) as engine:
        await engine.wait_ready()
        suspend(engine)
        admitted = engine.dispatcher.enqueue([tokens()])
        await engine.drain(0.05)
        with pytest.raises(RequestError, match="graceful shutdown timeout has expired"):
            await admitted


async def test_a_drain_does_not_wait_for_workers_that_have_died() -> None:
    async with running(InferenceEngine(OPTIONS, prepared_with())) as engine:
        await engine.wait_ready()
        suspend(engine)
        admitted = engine.dispatcher.enqueue([tokens()])
        async with anyio.create_task_group() as group:
            group.start_soon(engine.drain, 30.0)
            await until(lambda: engine.draining)
            for pid in workers_of(engine):
                os.kill(pid, signal.SIGKILL)
        # Both workers may have received the batch before the exit of the second one is noticed.
        with pytest.raises(RequestError, match=r"the last instance exited|was lost while computing"):
            await admitted


async def test_with_strict_an_instance_that_runs_elsewhere_is_stopped() -> None:
    options = replace(OPTIONS, machine=replace(OPTIONS.machine, strict=True))
    prepared = prepare_workers(options, model_needed=True)
    # The worker is bound as before, but compared with another plan.
    elsewhere = [
        replace(one, plan=replace(one.plan, cpus=(max(psutil.Process().cpu_affinity() or [0]) + 1,)))
        for one in prepared.instances
    ]
    async with running(InferenceEngine(options, replace(prepared, instances=tuple(elsewhere)))) as engine:
        await until(lambda: engine.failure)
        assert "--strict" in str(engine.failure)


async def test_a_cancelled_run_leaves_no_worker() -> None:
    engine = InferenceEngine(OPTIONS, prepared_with())
    async with anyio.create_task_group() as group:
        group.start_soon(engine.run)
        await engine.wait_ready()
        pids = workers_of(engine)
        group.cancel_scope.cancel()
    engine.close()
    assert len(pids) == 2
    assert gone(pids)


async def test_a_restart_revives_an_instance_that_has_failed_for_good() -> None:
    async with running(InferenceEngine(OPTIONS, prepared_with(instance_1=ENDS_AT_ONCE))) as engine:
        await engine.wait_ready()
        assert engine.states()["1"]["state"] == "failed"
        result = await engine.restart_instances(configure(OPTIONS, prepared_with()))
        assert (result.state, result.instances) == ("new", (0, 1))
        assert {state["state"] for state in engine.states().values()} == {"ready"}
        assert engine.is_ready()


async def test_a_plan_whose_worker_refuses_the_model_leaves_the_old_instances() -> None:
    async with running(InferenceEngine(OPTIONS, prepared_with())) as engine:
        await engine.wait_ready()
        before = set(workers_of(engine))
        result = await engine.apply_plan(prepared_with(instance_0=REFUSES_THE_MODEL), order="beside")
        assert result.state == "old"
        assert "config.json sets a key to a value" in (result.reason or "")
        assert set(workers_of(engine)) == before
        assert len((await engine.dispatcher.enqueue([tokens()])).results) == 1
        assert engine.failure is None


async def test_if_neither_new_nor_old_instances_start_the_engine_fails(tmp_path: Path) -> None:
    once = tmp_path / "once"
    script = f"import os, sys; os.path.exists({str(once)!r}) and sys.exit('gone'); open({str(once)!r}, 'x')"
    prepared = prepared_with(replace(OPTIONS, machine=replace(OPTIONS.machine, instances=1)))
    (one,) = prepared.instances
    words = list(one.command.command)
    start = words.index("-m", words.index(sys.executable))
    run = "; import runpy; sys.argv = sys.argv[1:]; runpy.run_module('launcher.worker', run_name='__main__')"
    words[start : start + 2] = ["-c", script + run, "launcher.worker"]
    prepared = replace(prepared, instances=(replace(one, command=Command(tuple(words), one.command.env)),))
    told = RecordingObserver()
    async with running(InferenceEngine(OPTIONS, prepared, observer=told)) as engine:
        await engine.wait_ready()
        result = await engine.apply_plan(
            prepared_with(instance_0=ENDS_AT_ONCE, instance_1=ENDS_AT_ONCE), order="in_place"
        )
        assert result.state == "old"
        assert "did not become ready again either" in (result.reason or "")
        await until(lambda: told.failures)
        with pytest.raises(RequestError):
            await engine.dispatcher.enqueue([tokens()])


async def test_an_engine_that_has_ended_or_has_another_model_refuses_a_change() -> None:
    engine = InferenceEngine(OPTIONS, prepared_with())
    with pytest.raises(UsageError, match="while the server runs"):
        await engine.restart_instances()
    async with running(engine):
        await engine.wait_ready()
        other = configure(OPTIONS, prepared_with())
        other = replace(other, model_info=msgspec.structs.replace(other.model_info, normalize=False))
        with pytest.raises(UsageError, match="the model cannot be changed"):
            await engine.restart_instances(other)


SLEEPS = (sys.executable, "-c", "import time; time.sleep(600)")


async def test_a_plan_that_replaces_instances_which_never_were_ready_makes_the_engine_ready() -> None:
    told = RecordingObserver()
    prepared = prepared_with(instance_0=SLEEPS, instance_1=SLEEPS)
    async with running(InferenceEngine(OPTIONS, prepared, observer=told)) as engine:
        await until(lambda: len(workers_of(engine)) == 2)
        assert not engine.is_ready()
        result = await engine.apply_plan(prepared_with(), order="beside")
        assert result.state == "new"
        await engine.wait_ready()
        assert (engine.is_ready(), told.ready) == (True, 1)


@pytest.mark.parametrize("broken", [SLEEPS, ENDS_AT_ONCE], ids=["loading", "waits to be restarted"])
async def test_a_drain_does_not_wait_for_a_new_instance_that_cannot_become_ready(broken: tuple[str, ...]) -> None:
    one = replace(OPTIONS, machine=replace(OPTIONS.machine, instances=1))
    supervise = SuperviseOptions(max_failures=5, backoff_seconds=3600.0, backoff_limit_seconds=3600.0)
    async with running(InferenceEngine(replace(one, supervise=supervise), prepared_with(one))) as engine:
        await engine.wait_ready()
        async with anyio.create_task_group() as group:
            group.start_soon(partial(engine.apply_plan, prepared_with(one, instance_0=broken), order="in_place"))
            state = "loading" if broken is SLEEPS else "backoff"
            await until(lambda: state in [one["state"] for one in engine.states().values()])
            admitted = engine.dispatcher.enqueue([tokens()])
            group.start_soon(engine.drain, 3600.0)
            await until(lambda: engine.draining)
            for pid in workers_of(engine):
                os.kill(pid, signal.SIGKILL)
            with pytest.raises(RequestError, match="last instance exited"):
                await admitted


async def test_who_waits_for_a_change_is_not_cancelled_if_the_engine_ends_before_it_begins(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    engine = InferenceEngine(OPTIONS, prepared_with())
    began = anyio.Event()

    async def steps(*_: object) -> None:
        began.set()
        await anyio.sleep_forever()

    monkeypatch.setattr(engine, "_steps", steps)
    async with anyio.create_task_group() as group:
        group.start_soon(engine.run)
        await anyio.wait_all_tasks_blocked()
        waiting = asyncio.ensure_future(engine.restart_instances())
        await began.wait()
        engine.stop_now()
    engine.close()
    with pytest.raises(UsageError, match="while the server runs"):
        await waiting


async def test_an_instance_that_is_restored_too_late_to_start_does_not_break_the_end_of_the_change() -> None:
    engine = InferenceEngine(OPTIONS, prepared_with())
    engine._was_ready = True
    outcome = engine.begin_start(renumbered(engine.prepared.instances[0], 7), engine.configuration, standby=False)
    assert "shutting down" in (await outcome or "")
    engine._end_change(None)
    engine.close()


async def test_with_strict_a_change_goes_on_if_a_binding_cannot_be_verified(monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*_: object) -> None:
        raise OSError("too many open files")

    monkeypatch.setattr("launcher.engine.inference_engine.verify", refused)
    options = replace(OPTIONS, machine=replace(OPTIONS.machine, strict=True))
    engine = InferenceEngine(options, prepared_with(options))
    outcome = engine.begin_start(renumbered(engine.prepared.instances[0], 7), engine.configuration, standby=True)
    engine._views[7].outcome = outcome = asyncio.get_running_loop().create_future()
    await engine._verify(7, Ready(1, 1, "", "", 8, (), "", 0, 0, (), None))
    assert outcome.done()
    assert outcome.result() is None
    engine.close()


async def test_a_worker_is_replaced_although_a_child_of_it_keeps_its_channel_open(tmp_path: Path) -> None:
    folder = tmp_path / "children"
    folder.mkdir()
    child = "import os, time; open(sys.argv[1] + '/' + str(os.getpid()), 'x'); time.sleep(60)"
    start = "import subprocess, sys; subprocess.Popen([sys.executable, '-c', 'import sys; ' + sys.argv[1], sys.argv[2]]"
    run = ", start_new_session=True); del sys.argv[:2]; import runpy"
    run += "; runpy.run_module('launcher.worker', run_name='__main__')"
    prepared = prepared_with(replace(OPTIONS, machine=replace(OPTIONS.machine, instances=1)))
    (one,) = prepared.instances
    words = list(one.command.command)
    at = words.index("-m", words.index(sys.executable))
    words[at : at + 2] = ["-c", start + run, child, str(folder)]
    prepared = replace(prepared, instances=(replace(one, command=Command(tuple(words), one.command.env)),))
    try:
        async with running(InferenceEngine(OPTIONS, prepared)) as engine:
            await engine.wait_ready()
            await until(lambda: list(folder.iterdir()))
            (pid,) = workers_of(engine)
            os.kill(pid, signal.SIGKILL)
            await until(lambda: engine.is_ready() and pid not in workers_of(engine))
            assert len((await engine.dispatcher.enqueue([tokens()])).results) == 1
    finally:
        for path in folder.iterdir():
            with contextlib.suppress(ProcessLookupError):
                os.kill(int(path.name), signal.SIGKILL)
