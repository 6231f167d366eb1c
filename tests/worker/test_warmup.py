"""What the warm-up runs, how often, and what it tells of it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence

import numpy as np
import pytest

from launcher.core.protocol.model_info import ModelInfo
from launcher.worker.backends import Ids, Loaded, ModelRefused, Output, Report
from launcher.worker.warmup import MOST_RUNS, warm_up

BATCHES = ((16,), (8, 8, 8), (40, 7, 3))


class Counting:
    """A backend that computes nothing and counts what it is asked for."""

    def __init__(self) -> None:
        self.runs: Counter[tuple[int, ...]] = Counter()

    def load(self, report: Report) -> Loaded:
        return Loaded("none", 1)

    def run(self, ids: Ids, lengths: Sequence[int]) -> Output:
        assert len(ids) == sum(lengths)
        self.runs[tuple(lengths)] += 1
        return Output(np.zeros((len(lengths), 1), np.float32), len(ids))


def quiet(stage: str, done: float, detail: str) -> None:
    pass


@pytest.mark.parametrize(("packed", "work"), [(True, (3, 50, 1658)), (False, (3, 120, 4800))])
def test_each_batch_is_run_once_more_than_it_is_timed_and_its_work_is_told(
    model_info: Callable[..., ModelInfo], packed: bool, work: tuple[int, int, int]
) -> None:
    backend = Counting()
    measured = warm_up(backend, model_info(), BATCHES, quiet, packed=packed)
    assert backend.runs == dict.fromkeys(BATCHES, 1 + MOST_RUNS)
    assert [m[:3] for m in measured] == [(1, 16, 256), (3, 24, 192), work]
    assert all(m[3] > 0 for m in measured)


def test_what_is_known_is_run_once_and_not_timed(model_info: Callable[..., ModelInfo]) -> None:
    backend, said = Counting(), []
    measured = warm_up(
        backend, model_info(), BATCHES, lambda *message: said.append(message), packed=True, measure=False
    )
    assert measured == ()
    assert backend.runs == dict.fromkeys(BATCHES, 1)
    assert said[-1] == ("warmup", 1.0, "3 batches run once, their cost is known")
    assert [done for _, done, _ in said] == sorted(done for _, done, _ in said)


@pytest.mark.parametrize("lengths", [(), (100_000,), (4, 0)])
def test_a_batch_that_the_model_does_not_take_is_refused(
    model_info: Callable[..., ModelInfo], lengths: tuple[int, ...]
) -> None:
    with pytest.raises(ModelRefused, match="takes 1 to"):
        warm_up(Counting(), model_info(), (lengths,), quiet, packed=True)
