"""``AsyncEngine``: the same results as ``Engine``, on the caller's loop."""

from __future__ import annotations

import asyncio
import os
import signal
import threading
from collections.abc import AsyncIterator, Iterator
from typing import Any

import numpy as np
import psutil
import pytest

from launcher import AsyncEngine, Engine
from launcher.api.results import entities
from launcher.engine.streaming import chunk_limit
from launcher.errors import InstanceError, RequestError, UsageError
from tests.api.conftest import FAKE, children, kill_permanently, worker_pids
from tests.e2e.running import gone

pytestmark = pytest.mark.slow


def test_results_equal_those_of_engine(engine: Engine) -> None:
    texts = [f"{'word ' * (number % 40)}{number}" for number in range(1000)]
    expected = engine.embed(texts)

    async def from_coroutine() -> AsyncIterator[str]:
        for text in texts:
            yield text

    async def main() -> None:
        async with AsyncEngine("random:tiny", **FAKE) as other:
            np.testing.assert_array_equal(await other.embed(texts), expected)
            np.testing.assert_array_equal(await other.embed(iter(texts)), expected)
            np.testing.assert_array_equal(await other.embed(from_coroutine()), expected)
            np.testing.assert_array_equal(await other.embed(texts[3]), expected[3])
            streamed = [vector async for vector in other.embed_stream(from_coroutine())]
            np.testing.assert_array_equal(np.stack(streamed), expected)
            together = await asyncio.gather(*(other.embed(text) for text in texts[:200]))
            np.testing.assert_array_equal(np.stack(together), expected[:200])
            assert [list(one.cpus) for one in other.plan.instances] == [
                entry["cpus"] for entry in other.info()["instances"]
            ]

    asyncio.run(main())


def test_texts_are_read_a_bounded_number_ahead_and_a_stream_can_be_abandoned() -> None:
    taken = 0

    def texts() -> Iterator[str]:
        nonlocal taken
        while True:
            taken += 1
            yield f"text {taken}"

    async def main() -> None:
        async with AsyncEngine("random:tiny", **FAKE) as engine:
            done = 0
            async for _ in engine.embed_stream(texts()):
                done += 1
                if done % 1000 == 0:
                    assert taken <= done + chunk_limit(2) * 256
                if done == 5000:
                    break
            assert (await engine.embed("still there")).ndim == 1

    asyncio.run(main())


def test_cancelling_a_call_leaves_the_engine_usable() -> None:
    async def main() -> None:
        async with AsyncEngine("random:tiny", max_queue_items=64, **FAKE) as engine:
            pids = worker_pids(engine.info())
            for pid in pids:
                os.kill(pid, signal.SIGSTOP)
            calls = [asyncio.create_task(engine.embed([f"text {n}" for n in range(60)])) for _ in range(3)]
            await asyncio.sleep(0.1)
            for call in calls:
                call.cancel()
            for pid in pids:
                os.kill(pid, signal.SIGCONT)
            for end in await asyncio.gather(*calls, return_exceptions=True):
                assert isinstance(end, asyncio.CancelledError)
            again = await asyncio.wait_for(engine.embed([f"text {n}" for n in range(60)]), 60)
            assert again.shape[0] == 60

    asyncio.run(main())


def test_errors_equal_those_of_engine() -> None:
    async def main() -> None:
        engine = AsyncEngine("random:tiny", max_failures=1, backoff_seconds=0.01, **FAKE)
        with pytest.raises(UsageError, match="not started"):
            await engine.embed("early")
        async with engine:
            with pytest.raises(RequestError, match=r"texts\[1\].* empty"):
                await engine.embed(["fine", ""])
            with pytest.raises(UsageError, match="use embed"):
                await engine.tag("text")
            with pytest.raises(UsageError, match="already started"):
                await engine.start()
            await asyncio.to_thread(kill_permanently, engine.info)
            with pytest.raises(InstanceError, match="no instance is left"):
                await engine.embed("text")
        await engine.close()
        with pytest.raises((UsageError, InstanceError)):
            await engine.embed("late")

    asyncio.run(main())


def test_a_loop_that_ends_without_closing_leaves_no_worker() -> None:
    async def main() -> list[int]:
        engine = AsyncEngine("random:tiny", **FAKE)
        await engine.start()
        return worker_pids(engine.info())

    pids = asyncio.run(main())
    assert len(pids) == 2
    assert not any(psutil.pid_exists(pid) for pid in pids), "killed and reaped"


def test_a_start_that_is_cancelled_leaves_no_worker() -> None:
    async def main() -> None:
        engine = AsyncEngine("random:tiny", instances=1, reserve_cores=0)
        start = asyncio.create_task(engine.start())
        while engine._session is None or not engine._session.engine.states()["0"]["pid"]:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
        pid = engine._session.engine.states()["0"]["pid"]
        start.cancel()
        with pytest.raises(asyncio.CancelledError):
            await start
        assert gone([pid])

    asyncio.run(main())


def test_starting_twice_at_once_starts_one_set_of_workers() -> None:
    async def main() -> None:
        before = children()
        engine = AsyncEngine("random:tiny", **FAKE)
        first, second = await asyncio.gather(engine.start(), engine.start(), return_exceptions=True)
        assert first is None
        assert isinstance(second, UsageError)
        assert children() - before == set(worker_pids(engine.info()))
        await engine.close()
        assert children() == before

    asyncio.run(main())


def test_an_engine_that_is_closed_during_its_start_does_not_start() -> None:
    async def main() -> None:
        engine = AsyncEngine("random:tiny", **FAKE)
        start = asyncio.create_task(engine.start())
        await asyncio.sleep(0)
        await engine.close()
        with pytest.raises(UsageError, match="closed"):
            await start
        with pytest.raises(UsageError):
            await engine.embed("late")

    asyncio.run(main())


def test_a_bad_option_is_refused_by_the_constructor() -> None:
    with pytest.raises(UsageError, match="did you mean 'instances'"):
        AsyncEngine(instanzes=1)  # type: ignore[call-arg]


def test_large_results_are_decoded_beside_the_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    threads: list[threading.Thread] = []

    def recording(*arguments: Any) -> Any:
        decode = entities(*arguments)

        def decode_(computed: Any) -> Any:
            threads.append(threading.current_thread())
            return decode(computed)

        return decode_

    monkeypatch.setattr("launcher.api.async_engine.entities", recording)
    texts = [f"{'one two three ' * 30}{index}" for index in range(700)]

    async def main() -> None:
        async with AsyncEngine("random:tiny", **FAKE, task="tag") as engine:
            alone = [await engine.tag(text[-6:], aggregation="none") for text in texts[:3]]
            assert all(alone)
            assert set(threads) == {threading.main_thread()}
            threads.clear()
            found = await engine.tag(texts, aggregation="none")
            assert len(found) == len(texts)
            assert any(thread is not threading.main_thread() for thread in threads)
            assert found[:2] == [await engine.tag(text, aggregation="none") for text in texts[:2]]

    asyncio.run(main())
