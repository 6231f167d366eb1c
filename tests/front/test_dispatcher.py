from __future__ import annotations

import asyncio
from typing import Any

import numpy as np
import pytest

from launcher.core.messages import Run
from launcher.errors import RequestError

pytestmark = pytest.mark.anyio


def ids(*values: int) -> np.ndarray:
    return np.array(values, dtype=np.int32)


async def test_results_come_back_in_the_order_of_the_request_although_batches_are_sorted(
    make_front: Any, vector_of: Any
) -> None:
    front = make_front(2)
    workers = [await front.serving(0), await front.serving(1)]
    items = [ids(*range(4, 4 + 1 + (index * 7) % 12)) for index in range(50)]
    outcome = await front.dispatcher.submit(items)
    assert outcome.results.dtype == np.float32
    np.testing.assert_array_equal(outcome.results, [vector_of(item) for item in items])
    for lengths in workers[0].batches + workers[1].batches:
        assert list(lengths) == sorted(lengths, reverse=True)
    front.scheduler.check()
    assert front.dispatcher.in_flight == 0
