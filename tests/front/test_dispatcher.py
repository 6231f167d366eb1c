"""The dispatcher with the real scheduler and real channels; the tests act as workers."""

from __future__ import annotations

import asyncio
import gc
import os
from typing import Any

import numpy as np
import pytest

from launcher.core.planning.length_classes import LengthClass
from launcher.core.protocol.frames import encode
from launcher.core.protocol.messages import Done, Failed, Loading, Ready, Run, Stop, Unusable
from launcher.core.scheduling.scheduler import ReplaceWorker
from launcher.errors import RequestError

pytestmark = pytest.mark.anyio


def ids(*values: int) -> np.ndarray:
    return np.array(values, dtype=np.int32)


def items_of(count: int) -> list[np.ndarray]:
    return [ids(*range(4, 4 + 1 + (index * 7) % 12)) for index in range(count)]


# ---------------------------------------------------------------------- results


async def test_results_are_in_the_order_of_the_request_although_batches_are_sorted(
    make_front: Any, vector_of: Any
) -> None:
    front = make_front(2)
    workers = [await front.serving(0), await front.serving(1)]
    items = items_of(50)
    outcome = await front.dispatcher.enqueue(items)
    assert outcome.results.dtype == np.float32
    np.testing.assert_array_equal(outcome.results, [vector_of(item) for item in items])
    for lengths in workers[0].batches + workers[1].batches:
        assert list(lengths) == sorted(lengths, reverse=True)
    front.scheduler.check()
    assert front.dispatcher.in_flight == 0


@pytest.mark.parametrize("count", [1, 2, 7, 64, 257])
async def test_any_number_of_items_is_answered_completely(count: int, make_front: Any, vector_of: Any) -> None:
    front = make_front(3)
    for instance in range(3):
        await front.serving(instance)
    items = items_of(count)
    outcome = await front.dispatcher.enqueue(items)
    np.testing.assert_array_equal(outcome.results, [vector_of(item) for item in items])


async def test_many_requests_at_once_get_their_own_results(make_front: Any, vector_of: Any) -> None:
    front = make_front(3, queue_items=10_000)
    for instance in range(3):
        await front.serving(instance)

    async def one(number: int) -> None:
        items = [ids(*range(4, 5 + (number + index) % 12)) for index in range(1 + number % 9)]
        outcome = await front.dispatcher.enqueue(items)
        np.testing.assert_array_equal(outcome.results, [vector_of(item) for item in items])

    await asyncio.gather(*(one(number) for number in range(300)))
    front.scheduler.check()
    assert front.scheduler.idle


async def test_a_request_without_items_is_answered_at_once(make_front: Any) -> None:
    front = make_front()
    await front.ready()
    outcome = await front.dispatcher.enqueue([])
    assert outcome.results.shape == (0, 8)


async def test_times_are_queue_then_compute_and_name_the_instances(make_front: Any) -> None:
    front = make_front()
    worker = await front.ready()
    start = front.dispatcher.now()
    future = front.dispatcher.enqueue([ids(4, 5)])
    run, body = await worker.expect(Run)
    await worker.answer(run, body, seconds=0.0)
    outcome = await future
    assert outcome.instances == (0,)
    assert outcome.queue_seconds >= 0
    assert outcome.compute_seconds >= 0
    assert outcome.queue_seconds + outcome.compute_seconds <= front.dispatcher.now() - start


async def test_short_and_long_items_of_a_request_go_to_their_classes(make_front: Any) -> None:
    front = make_front(2, classes=(LengthClass(1, 4), LengthClass(5, 16)))
    short, long = await front.ready(0), await front.ready(1)
    future = front.dispatcher.enqueue([ids(*range(4, 14)), ids(4), ids(5, 6)])
    run_short, body_short = await short.expect(Run)
    run_long, body_long = await long.expect(Run)
    assert (run_short.lengths, run_long.lengths) == ((2, 1), (10,))
    await long.answer(run_long, body_long)
    assert not future.done()
    await short.answer(run_short, body_short)
    assert set((await future).instances) == {0, 1}


# ----------------------------------------------------------------- rejections


async def test_nothing_is_admitted_before_an_instance_is_ready(make_front: Any) -> None:
    front = make_front()
    await front.attach()
    with pytest.raises(RequestError) as error:
        await front.dispatcher.enqueue([ids(4)])
    assert (error.value.status, error.value.code) == (503, "not_ready")
    assert error.value.retry_after
    assert front.dispatcher.in_flight == 0


async def test_a_full_queue_rejects_with_retry_after_and_keeps_its_requests(make_front: Any) -> None:
    front = make_front(queue_items=20)
    worker = await front.ready()
    futures = [front.dispatcher.enqueue([ids(4)]) for _ in range(20)]
    with pytest.raises(RequestError) as error:
        await front.dispatcher.enqueue([ids(4)])
    assert (error.value.status, error.value.code) == (429, "queue_full")
    assert error.value.retry_after is not None
    assert error.value.retry_after >= 1
    with pytest.raises(RequestError) as permanent:
        await front.dispatcher.enqueue([ids(4)] * 21)
    assert permanent.value.status == 413
    assert permanent.value.retry_after is None
    worker.serve_in_background()
    assert len(await asyncio.gather(*futures)) == 20


async def test_when_no_instance_is_left_waiting_requests_are_answered(make_front: Any) -> None:
    front = make_front()
    worker = await front.ready()
    future = front.dispatcher.enqueue([ids(4)])
    worker.close()
    await front.listener.wait("lost", 0)
    assert not future.done()  # it waits for another worker
    front.dispatcher.no_instances_left("the model cannot be loaded")
    with pytest.raises(RequestError, match="cannot be loaded") as error:
        await future
    assert error.value.status == 503


# -------------------------------------------------------- clients that cancel


async def test_a_request_that_is_cancelled_in_the_queue_is_never_sent(make_front: Any, until: Any) -> None:
    front = make_front()
    worker = await front.ready()
    taken = [front.dispatcher.enqueue([ids(4)])]
    runs = [await worker.expect(Run)]
    taken.append(front.dispatcher.enqueue([ids(5)]))
    runs.append(await worker.expect(Run))  # one running, one ready: further requests wait
    task = asyncio.ensure_future(front.dispatcher.enqueue([ids(50), ids(51)]))
    await until(lambda: front.dispatcher.in_flight == 3)
    task.cancel()
    await until(lambda: front.dispatcher.in_flight == 2)
    front.scheduler.check()
    taken.append(front.dispatcher.enqueue([ids(6)]))
    for run, body in runs:
        await worker.answer(run, body)
    run, body = await worker.expect(Run)
    assert np.frombuffer(body, dtype=np.int32).tolist() == [6]
    await worker.answer(run, body)
    await asyncio.gather(*taken)


async def test_results_of_a_cancelled_request_are_discarded(make_front: Any, until: Any) -> None:
    front = make_front()
    worker = await front.ready()
    future = front.dispatcher.enqueue([ids(4)])
    run, body = await worker.expect(Run)
    future.cancel()
    await until(lambda: front.dispatcher.in_flight == 0)
    await worker.answer(run, body)
    other = front.dispatcher.enqueue([ids(5)])
    run, body = await worker.expect(Run)
    await worker.answer(run, body)
    assert (await other).results.shape == (1, 8)
    front.scheduler.check()


async def test_cancelled_and_rejected_requests_leave_no_state(make_front: Any, until: Any) -> None:
    front = make_front(queue_items=5)
    worker = await front.ready()
    for _ in range(50):
        futures = [front.dispatcher.enqueue([ids(4)]) for _ in range(8)]
        for future in futures:
            future.cancel()
        await until(lambda: front.dispatcher.in_flight == 0)
    front.scheduler.check()
    worker.serve_in_background()
    assert (await front.dispatcher.enqueue([ids(4)])).results.shape == (1, 8)
    gc.collect()
    assert not [o for o in gc.get_objects() if type(o).__name__ == "_Request" and "front" in type(o).__module__]


# ---------------------------------------------------------- workers that fail


async def test_items_of_a_lost_worker_are_computed_by_another(make_front: Any, vector_of: Any) -> None:
    front = make_front(2)
    first, second = await front.ready(0), await front.ready(1)
    future = front.dispatcher.enqueue([ids(4, 5)])
    loser, other = await _running_worker(first, second)
    loser.close()
    other.serve_in_background()
    np.testing.assert_array_equal((await future).results, [vector_of([4, 5])])
    lost = [event for event in front.listener.events if event[0] == "lost"]
    assert len(lost) == 1
    assert lost[0][2] == "the worker closed its connection"


async def _running_worker(*workers: Any) -> Any:
    """The worker that received a batch (and does not answer it), and another one."""
    waiting = {asyncio.ensure_future(worker.receive()): worker for worker in workers}
    done, pending = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
    for task in pending:
        task.cancel()
    await asyncio.gather(*pending, return_exceptions=True)
    return waiting[done.pop()], waiting[pending.pop()]


async def test_a_batch_that_fails_twice_fails_its_request_but_not_the_worker(make_front: Any) -> None:
    front = make_front()
    worker = await front.ready()
    future = front.dispatcher.enqueue([ids(4)])
    for _ in range(2):
        run, _ = await worker.expect(Run)
        await worker.send(Failed(run.batch, "out of range"))
    with pytest.raises(RequestError, match="out of range") as error:
        await future
    assert error.value.status == 500
    worker.serve_in_background()
    assert (await front.dispatcher.enqueue([ids(5)])).results.shape == (1, 8)


async def test_a_bad_input_fails_only_its_own_request(make_front: Any, vector_of: Any) -> None:
    front = make_front()
    worker = await front.ready()
    good = [front.dispatcher.enqueue([ids(10 + n)]) for n in range(3)]
    bad = front.dispatcher.enqueue([ids(9)])

    async def refuse_nines() -> None:
        while True:
            run, body = await worker.receive()
            if 9 in np.frombuffer(body, dtype=np.int32):
                await worker.fail(run, "a nine")
            else:
                await worker.answer(run, body)

    task = asyncio.ensure_future(refuse_nines())
    for n, future in enumerate(good):
        np.testing.assert_array_equal((await future).results, [vector_of([10 + n])])
    with pytest.raises(RequestError, match="a nine"):
        await bad
    task.cancel()


@pytest.mark.parametrize(
    ("changes", "cut", "complaint"),
    [
        ({"items": 1}, 0, "1 results for 2 items"),
        ({"items": 3}, 0, "3 results for 2 items"),
        ({"width": 7}, 0, "7 values in a row instead of 8"),
        ({"batch": 99}, 0, "batch 99 arrived"),
        ({"seconds": float("nan")}, 0, "nan s for 2 computed tokens"),
        ({"seconds": -1.0}, 0, "-1.0 s for 2 computed tokens"),
        ({"computed_tokens": 1}, 0, "1 computed tokens, 2 were sent"),
        ({}, 4, "60 bytes of results instead of 64"),
    ],
)
async def test_a_worker_with_mismatched_results_is_dropped_and_its_items_go_elsewhere(
    changes: dict[str, Any], cut: int, complaint: str, make_front: Any, vector_of: Any
) -> None:
    front = make_front(2)
    liar, honest = await front.ready(0), await front.attach(1)
    future = front.dispatcher.enqueue([ids(4), ids(5)])
    run, body = await liar.expect(Run)
    results = liar.results(run, body)
    values = {"batch": run.batch, "items": 2, "width": 8, "seconds": 0.001, "computed_tokens": 2, **changes}
    await liar.send(Done(**values), results[: len(results) - cut])
    assert complaint in await front.listener.wait("lost", 0)
    assert (await liar.receive())[0] is None  # its channel is closed
    await honest.become_ready()
    honest.serve_in_background()
    np.testing.assert_array_equal((await future).results, [vector_of([4]), vector_of([5])])


async def test_nothing_is_sent_to_a_worker_that_was_just_dropped_and_no_attempt_is_lost(
    make_front: Any, vector_of: Any
) -> None:
    front = make_front(2)
    await front.ready(0)
    second = await front.ready(1)
    nonsense = b"".join(bytes(part) for part in encode(Loading("load", 0.1)))
    front.dispatcher._workers[0].channel.data_received(nonsense)
    future = front.dispatcher.enqueue([ids(4)])  # before the loop sees the end of the connection
    await second.expect(Run)
    second.close()  # the first attempt
    third = await front.attach(0)
    await third.become_ready()
    third.serve_in_background()
    np.testing.assert_array_equal((await future).results, [vector_of([4])])


UNASKED = [
    Done(1, 1, 8, 0.1, 1),
    Failed(1, "why not"),
    Ready(1, 1, "", "", 8, (), "", 0, 0, (), None),
    Loading("load", 0.1),
    Unusable("changed my mind"),
]


@pytest.mark.parametrize("message", UNASKED, ids=lambda message: type(message).__name__)
async def test_an_unexpected_message_ends_the_worker(message: Any, make_front: Any) -> None:
    front = make_front()
    worker = await front.ready()
    await worker.send(message)
    assert "worker" in await front.listener.wait("lost", 0)
    assert [event for event in front.listener.events if event[0] in ("loading", "unusable")] == []


async def test_results_that_are_not_finite_are_a_failure_and_never_delivered(make_front: Any) -> None:
    front = make_front()
    worker = await front.ready()
    future = front.dispatcher.enqueue([ids(4)])
    for _ in range(2):
        run, _ = await worker.expect(Run)
        await worker.send(Done(run.batch, 1, 8, 0.001, 1), np.full(8, np.nan, dtype=np.float32).tobytes())
    with pytest.raises(RequestError, match="not finite"):
        await future


async def test_a_worker_with_another_width_than_the_model_is_not_used(make_front: Any) -> None:
    front = make_front()
    worker = await front.attach()
    await worker.become_ready(width=9)
    assert "9 values, but the model has 8" in await front.listener.wait("lost", 0)


async def test_a_hanging_worker_is_dropped_on_the_schedulers_request(make_front: Any) -> None:
    front = make_front()
    await front.ready()
    front.dispatcher._carry_out([ReplaceWorker(0, "a batch has been running for 31.0 s")])
    assert await front.listener.wait("lost", 0) == "a batch has been running for 31.0 s"


# ---------------------------------------------------- lifecycle of a worker


async def test_progress_and_unusable_are_passed_on(make_front: Any) -> None:
    front = make_front()
    worker = await front.attach()
    await worker.send(Loading("load", 0.5, "weights"))
    await worker.send(Unusable("no weights"))
    assert (await front.listener.wait("loading", 0)).detail == "weights"
    assert await front.listener.wait("unusable", 0) == "no weights"


async def test_an_instance_can_have_consecutive_workers_but_not_two_at_once(make_front: Any) -> None:
    front = make_front()
    first = await front.ready()
    with pytest.raises(ValueError, match="has a worker already"):
        await front.attach()
    first.close()
    await front.listener.wait("lost", 0)
    second = await front.attach()
    await second.become_ready()
    second.serve_in_background()
    await front.ready_again(0)
    assert (await front.dispatcher.enqueue([ids(4)])).results.shape == (1, 8)
    assert b'launcher_restarts_total{class="all",instance="0"} 1.0' in front.metrics.render()


async def test_an_instance_retires_without_a_batch_that_was_withdrawn_from_it(make_front: Any) -> None:
    front = make_front()
    late = await front.ready()
    futures = [front.dispatcher.enqueue([ids(4)]), front.dispatcher.enqueue([ids(5)])]
    run, body = await late.expect(Run)
    await late.expect(Run)  # the ready batch
    front.dispatcher._carry_out(front.scheduler.tick(front.dispatcher.now() + 1000.0))
    retiring = asyncio.ensure_future(front.dispatcher.retire(0))
    await asyncio.sleep(0)
    assert not retiring.done()
    await late.answer(run, body)
    await late.expect(Stop)
    await retiring
    for future in futures:
        future.cancel()


async def test_a_channel_that_outlives_its_process_is_lost_once(make_front: Any, vector_of: Any) -> None:
    front = make_front()
    first = await front.ready()
    future = front.dispatcher.enqueue([ids(4)])
    await first.expect(Run)
    front.dispatcher.process_ended(0)
    assert "closed its connection" in await front.listener.wait("lost", 0)
    second = await front.attach()
    await second.become_ready()
    second.serve_in_background()
    np.testing.assert_array_equal((await future).results, [vector_of([4])])
    assert [event[0] for event in front.listener.events].count("lost") == 1
    front.scheduler.check()


async def test_reconnecting_leaks_no_descriptor(make_front: Any) -> None:
    front = make_front()
    counts = []
    for _ in range(20):
        worker = await front.attach()
        worker.close()
        await front.listener.wait("lost", 0)
        front.listener.events.clear()
        counts.append(len(os.listdir("/proc/self/fd")))  # noqa: PTH208
    assert counts[-1] <= counts[1]


async def test_a_drain_rejects_new_requests_and_ends_with_the_last_result(make_front: Any) -> None:
    front = make_front()
    worker = await front.ready()
    future = front.dispatcher.enqueue([ids(4)])
    front.dispatcher.begin_drain()
    with pytest.raises(RequestError) as error:
        await front.dispatcher.enqueue([ids(4)])
    assert (error.value.status, error.value.code) == (503, "draining")
    drained = asyncio.ensure_future(front.dispatcher.drained())
    run, body = await worker.expect(Run)
    assert not drained.done()
    await worker.answer(run, body)
    await asyncio.wait_for(drained, 60)
    assert future.done()
    front.dispatcher.stop_workers()
    await worker.expect(Stop)
    worker.close()
    assert await front.listener.wait("lost", 0) == "stopped as requested"


async def test_a_drain_without_requests_ends_at_once(make_front: Any) -> None:
    front = make_front()
    front.dispatcher.begin_drain()
    await asyncio.wait_for(front.dispatcher.drained(), 60)


async def test_the_ready_batch_is_cut_by_the_timer_before_the_running_one_ends(make_front: Any) -> None:
    front = make_front()
    worker = await front.ready()  # reports 1 ms per batch
    first = front.dispatcher.enqueue([ids(4)])
    run, body = await worker.expect(Run)
    second = front.dispatcher.enqueue([ids(5)])
    # Only the timer can send this one: the first batch is not answered.
    next_run, next_body = await worker.expect(Run)
    await worker.answer(run, body)
    await worker.answer(next_run, next_body)
    await asyncio.gather(first, second)


async def test_an_idle_dispatcher_sleeps(make_front: Any) -> None:
    front = make_front()
    await front.serving()
    await front.dispatcher.enqueue([ids(4)])
    ticks = []
    front.dispatcher._scheduler.tick = lambda now: ticks.append(now) or []
    await asyncio.sleep(0.2)
    assert len(ticks) <= 1
