"""Workers that die, fail and send wrong data at random: every request is answered, and every result is correct."""

from __future__ import annotations

import asyncio
import random
from typing import Any

import numpy as np
import pytest

from launcher.core.protocol.messages import Done
from launcher.errors import RequestError

pytestmark = pytest.mark.anyio


async def misbehave(front: Any, instance: int, rng: random.Random, stop: asyncio.Event, until: Any) -> None:
    """Consecutive workers of one instance, each of which ends in its own way."""
    while not stop.is_set():
        worker = await front.attach(instance)
        try:
            await worker.become_ready()
            await work_badly(worker, rng)
            await end(worker, rng.choice(["close", "garbage", "short", "another batch"]))
        except (OSError, AssertionError):
            assert stop.is_set()  # the test is over, and has closed the channel
        worker.close()
        await until(lambda: instance not in front.dispatcher._workers)


async def work_badly(worker: Any, rng: random.Random) -> None:
    for _ in range(rng.randrange(1, 12)):
        run, body = await worker.receive()
        if run is None:
            return
        kind = rng.random()
        if kind < 0.1:
            await worker.fail(run, "by chance")
        elif kind < 0.15:
            nothing = np.full(8 * len(run.lengths), np.nan, dtype=np.float32).tobytes()
            await worker.send(Done(run.batch, len(run.lengths), 8, 0.001, 16 * len(run.lengths)), nothing)
        else:
            await worker.answer(run, body)


async def end(worker: Any, ending: str) -> None:
    if ending == "garbage":
        await worker.write(b"Segmentation fault (core dumped)")
    elif ending in ("short", "another batch"):
        run, body = await worker.receive()
        if run is not None:
            results = worker.results(run, body)
            batch = run.batch + (ending == "another batch")
            done = Done(batch, len(run.lengths), 8, 0.001, 16 * len(run.lengths))
            await worker.send(done, results[: len(results) - 4 * (ending == "short")])


@pytest.mark.parametrize("seed", range(4))
async def test_every_request_is_answered_correctly_or_with_an_error(
    seed: int, make_front: Any, vector_of: Any, until: Any
) -> None:
    rng = random.Random(seed)
    front = make_front(3, queue_items=200)
    stop = asyncio.Event()
    instances = [asyncio.ensure_future(misbehave(front, i, rng, stop, until)) for i in range(2)]
    await front.serving(2)  # one instance is always ready
    refusals: set[int] = set()
    answers = {"right": 0, "refused": 0, "cancelled": 0}

    async def client(number: int) -> None:
        own = random.Random(seed * 1000 + number)
        for _ in range(15):
            items = [np.arange(4, 5 + own.randrange(12), dtype=np.int32) for _ in range(own.randrange(1, 12))]
            future = front.dispatcher.enqueue(items)
            if own.random() < 0.1:
                asyncio.get_running_loop().call_later(own.random() * 0.01, future.cancel)
            try:
                outcome = await future
            except RequestError as error:
                refusals.add(error.status)
                answers["refused"] += 1
                await asyncio.sleep(0.001)
            except asyncio.CancelledError:
                answers["cancelled"] += 1
            else:
                np.testing.assert_array_equal(outcome.results, [vector_of(item) for item in items])
                answers["right"] += 1
            front.scheduler.check()

    await asyncio.wait_for(asyncio.gather(*(client(number) for number in range(20))), 60)
    stop.set()
    for worker in front.dispatcher._workers.values():
        worker.channel.fail("the test is over")
    await asyncio.wait_for(asyncio.gather(*instances), 60)
    await until(lambda: front.dispatcher.in_flight == 0)
    assert sum(answers.values()) == 300
    assert answers["right"] > 150
    assert refusals <= {429, 500, 503}
    assert front.scheduler.idle
