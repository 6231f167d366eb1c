"""Inputs that were being computed when workers were lost."""

from __future__ import annotations

import asyncio
from typing import Any

import numpy as np
import pytest

from launcher.core.protocol.messages import Done, Run
from launcher.errors import RequestError
from launcher.front.channel import CLOSED
from launcher.front.quarantine import Loss, Quarantine


def item(*ids: int) -> np.ndarray:
    return np.array(ids, dtype=np.int32)


BAD, GOOD = item(1, 2, 3), item(1, 2, 4)


def loss(at: float, instance: int = 0) -> Loss:
    return Loss(instance, "killed by SIGSEGV", at)


def test_two_losses_quarantine_an_input_that_was_alone_once() -> None:
    quarantine = Quarantine("embed", 100.0)
    assert not quarantine
    assert not quarantine.blame([BAD, GOOD], loss(0.0))
    assert quarantine.check([GOOD, BAD], 0.0) == (None, (0, 1))
    assert quarantine.blame([BAD], loss(1.0))
    refusal, suspects = quarantine.check([GOOD, BAD], 5.0)
    assert suspects == ()
    assert refusal is not None
    for part in ("input 1 is quarantined", "2 workers", "4 s ago", "SIGSEGV", "another 96 s"):
        assert part in refusal
    assert quarantine.check([GOOD], 5.0) == (None, (0,))
    assert (quarantine.count, quarantine.refused) == (1, 1)


def test_inputs_that_were_never_alone_stay_suspects() -> None:
    quarantine = Quarantine("embed", 100.0)
    for at in (0.0, 1.0, 2.0):
        assert not quarantine.blame([BAD, GOOD], loss(at))
    assert quarantine.check([BAD], 3.0) == (None, (0,))


def test_the_same_input_several_times_in_a_batch_counts_once_and_as_alone() -> None:
    quarantine = Quarantine("embed", 100.0)
    assert not quarantine.blame([BAD, BAD.copy()], loss(0.0))
    assert quarantine.blame([BAD], loss(1.0))


def test_a_result_clears_an_input() -> None:
    quarantine = Quarantine("embed", 100.0)
    quarantine.blame([BAD], loss(0.0))
    quarantine.clear_computed([GOOD, BAD])
    assert not quarantine
    assert not quarantine.blame([BAD], loss(1.0))


def test_entries_expire_are_bounded_and_can_be_cleared() -> None:
    quarantine = Quarantine("embed", 10.0, max_entries=3)
    quarantine.blame([BAD], loss(0.0))
    quarantine.blame([BAD], loss(1.0))
    for number in range(20):
        quarantine.blame([item(number)], loss(2.0))
    assert quarantine.check([BAD], 10.9)[0], "suspects are dropped first"
    assert quarantine.check([BAD], 11.0) == (None, ())
    quarantine.blame([BAD], loss(20.0))
    quarantine.blame([BAD], loss(20.0))
    assert quarantine.clear() == 1
    assert quarantine.check([BAD], 20.0) == (None, ())
    assert not quarantine


def test_the_way_in_which_the_process_ended_becomes_the_reason() -> None:
    quarantine = Quarantine("embed", 100.0)
    quarantine.blame([BAD], Loss(0, CLOSED, 0.0))
    quarantine.blame([BAD], Loss(1, CLOSED, 1.0))
    quarantine.explain(0, 0.0, "of another instance")
    quarantine.explain(1, 2.0, "of a later worker")
    quarantine.explain(1, 0.9, "exit status 77")
    quarantine.explain(1, 0.9, "it was killed after that")
    (entry,) = quarantine.report(3.0)
    assert entry["reason"] == "exit status 77"
    assert (entry["workers_lost"], entry["seconds_ago"], entry["expires_in"], entry["size"]) == (2, 2.0, 98.0, 3)


def test_nothing_is_remembered_if_it_is_disabled() -> None:
    quarantine = Quarantine("embed", 0.0)
    for at in range(3):
        assert not quarantine.blame([BAD], loss(at))
    assert quarantine.check([BAD], 3.0) == (None, ())


# -------------------------------------------------------- with the dispatcher


async def lose_batch(front: Any, instance: int) -> list[list[int]]:
    """A worker that dies with the next batch; returns the items of the batch."""
    worker = await front.ready(instance)
    run, body = await worker.expect(Run)
    worker.close()
    ids = np.frombuffer(body, dtype=np.int32)
    return [list(part) for part in np.split(ids, np.cumsum(run.lengths)[:-1])]


def bad_front(make_front: Any, instances: int) -> Any:
    front = make_front(instances)
    front.dispatcher.quarantine = Quarantine("embed", 100.0)
    return front


async def gone(front: Any, instance: int, until: Any) -> None:
    await until(lambda: instance not in front.dispatcher._workers)


@pytest.mark.anyio
async def test_equal_requests_in_flight_fail_together_and_others_are_answered(
    make_front: Any, until: Any, vector_of: Any
) -> None:
    front = bad_front(make_front, 1)
    first = asyncio.ensure_future(lose_batch(front, 0))
    await front.listener.wait("ready", 0)
    warm_up = front.dispatcher.enqueue([item(4)])  # occupies the worker
    requests = [front.dispatcher.enqueue([BAD]) for _ in range(10)]
    good = front.dispatcher.enqueue([GOOD])
    await first
    await gone(front, 0, until)
    lost = 1
    while not all(request.done() for request in requests):
        worker = await front.ready(0)
        while True:
            run, body = await worker.receive()
            if list(np.frombuffer(body, dtype=np.int32)[:3]) == list(BAD) and run.lengths == (3,):
                break
            if run.lengths.count(3) > 1:
                break
            await worker.answer(run, body)
        worker.close()
        await gone(front, 0, until)
        front.scheduler.check()
        lost += 1
        assert lost <= 4
        front.listener.events.clear()
    await front.serving(0)
    np.testing.assert_array_equal((await good).results, [vector_of(GOOD)])
    np.testing.assert_array_equal((await warm_up).results, [vector_of(item(4))])
    for request in requests:
        error = request.exception()
        assert isinstance(error, RequestError)
        assert (error.status, error.code) == (500, "instance_failed")
        assert "quarantined" in str(error)
    with pytest.raises(RequestError, match="quarantined") as refused:
        await front.dispatcher.enqueue([GOOD, BAD])
    assert (refused.value.status, refused.value.code) == (422, "input_quarantined")
    front.scheduler.check()
    assert front.scheduler.idle


@pytest.mark.anyio
async def test_a_client_that_gives_up_and_repeats_costs_two_workers(make_front: Any, until: Any) -> None:
    front = bad_front(make_front, 1)
    for attempt in range(2):
        losing = asyncio.ensure_future(lose_batch(front, 0))
        await until(lambda: front.scheduler.responds(0))
        bad = front.dispatcher.enqueue([BAD])
        if attempt == 0:
            bad.cancel()
        await losing
        await gone(front, 0, until)
        front.listener.events.clear()
        front.scheduler.check()
    assert isinstance(bad.exception(), RequestError)
    await front.serving(0)
    with pytest.raises(RequestError, match="quarantined"):
        await front.dispatcher.enqueue([BAD])


@pytest.mark.anyio
async def test_a_suspect_is_computed_alone(make_front: Any) -> None:
    front = bad_front(make_front, 1)
    front.dispatcher.quarantine.blame([BAD, GOOD], loss(front.dispatcher.now()))
    worker = await front.serving(0)
    await front.dispatcher.enqueue([item(9, 9), BAD, item(8, 8)])
    assert sorted(worker.batches) == [(2, 2), (3,)]
    assert front.dispatcher.quarantine.check([BAD, GOOD], front.dispatcher.now()) == (None, (1,)), "it is cleared"


@pytest.mark.anyio
async def test_a_worker_that_answers_wrongly_is_lost_with_the_batch_that_it_answered(
    make_front: Any, until: Any
) -> None:
    front = bad_front(make_front, 1)
    worker = await front.ready(0)
    bad, good = front.dispatcher.enqueue([BAD]), front.dispatcher.enqueue([GOOD])
    run, _ = await worker.expect(Run)
    await worker.expect(Run)  # the next batch, which has not begun
    await worker.send(Done(run.batch, 2, 8, 0.001, 3))
    await gone(front, 0, until)
    assert front.dispatcher.quarantine.check([BAD, GOOD], front.dispatcher.now()) == (None, (0,))
    bad.cancel()
    good.cancel()


@pytest.mark.anyio
async def test_only_the_items_of_a_late_batch_are_noted_as_computed_by_others(make_front: Any) -> None:
    front = bad_front(make_front, 2)
    late = await front.ready(0)
    future = front.dispatcher.enqueue([BAD])
    await late.expect(Run)
    front.dispatcher._late.add(0)
    await front.serving(1)
    for number in range(10):
        await front.dispatcher.enqueue([item(number)])
    (sent,) = front.dispatcher._workers[0].sent
    assert not sent.computed
    future.cancel()
