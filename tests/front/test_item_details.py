"""Token types and prompt lengths reach the worker with the items that have them."""

from __future__ import annotations

import asyncio
from typing import Any

import numpy as np
import pytest

from launcher.core.protocol.messages import Run
from launcher.front.item_details import ItemDetails, with_details

pytestmark = pytest.mark.anyio


def ids(*values: int) -> np.ndarray:
    return np.array(values, dtype=np.int32)


def types(*values: int) -> np.ndarray:
    return np.array(values, dtype=np.uint8)


def test_a_run_without_details_stays_as_it_is() -> None:
    parts: list[Any] = []
    assert with_details(Run(1, (3, 2)), [(None, 0), (ItemDetails(), 0)], parts) == Run(1, (3, 2))
    assert parts == []


def test_items_without_types_get_zeros_and_items_without_a_prompt_its_length_zero() -> None:
    typed = ItemDetails(type_ids=(types(0, 1), types(0, 0, 1)))
    prompted = ItemDetails(prompt_lengths=(2, 0))
    parts: list[Any] = []
    run = with_details(Run(1, (4, 3, 2)), [(prompted, 0), (typed, 1), (None, 0)], parts)
    assert run == Run(1, (4, 3, 2), typed=True, prompt_lengths=(2, 0, 0))
    assert b"".join(parts) == bytes([0, 0, 0, 0, 0, 0, 1, 0, 0])


def test_items_without_a_route_get_that_of_the_encoder() -> None:
    static = ItemDetails(routes=(1, 1))
    run = with_details(Run(1, (4, 3, 2)), [(None, 0), (static, 1), (ItemDetails(), 0)], [])
    assert run == Run(1, (4, 3, 2), routes=(0, 1, 0))


async def test_typed_and_untyped_requests_share_a_batch(make_front: Any, vector_of: Any) -> None:
    front = make_front()
    worker = await front.ready()
    first = [front.dispatcher.enqueue([ids(4)]) for _ in range(2)]  # one runs, and one waits at the worker
    sent = [await worker.expect(Run)]
    untyped = front.dispatcher.enqueue([ids(5, 6), ids(7)])
    typed = front.dispatcher.enqueue([ids(8, 9, 10), ids(11)], details=ItemDetails(type_ids=(types(0, 1, 1), types(1))))
    await worker.answer(*sent[0])
    sent.append(await worker.expect(Run))
    if len(sent[1][0].lengths) == 1:
        await worker.answer(*sent[1])
        sent.append(await worker.expect(Run))
    run, body = sent[-1]
    assert sorted(run.lengths, reverse=True) == list(run.lengths) == [3, 2, 1, 1]
    assert run.typed
    tokens = sum(run.lengths)
    found = np.frombuffer(body, dtype=np.int32, count=tokens)
    assert found[:5].tolist() == [8, 9, 10, 5, 6]
    by_token = dict(zip(found.tolist(), body[4 * tokens :], strict=True))
    assert by_token == {8: 0, 9: 1, 10: 1, 5: 0, 6: 0, 7: 0, 11: 1}
    await worker.answer(run, body[: 4 * tokens])
    outcomes = await asyncio.gather(untyped, typed, *first)
    np.testing.assert_array_equal(outcomes[1].results, [vector_of([8, 9, 10]), vector_of([11])])
    np.testing.assert_array_equal(outcomes[0].results, [vector_of([5, 6]), vector_of([7])])


async def test_an_untyped_batch_has_no_types(make_front: Any) -> None:
    front = make_front()
    worker = await front.ready()
    future = front.dispatcher.enqueue([ids(5, 6)], details=ItemDetails())
    run, body = await worker.expect(Run)
    assert (run.typed, run.prompt_lengths, len(body)) == (False, (), 8)
    await worker.answer(run, body)
    await future
