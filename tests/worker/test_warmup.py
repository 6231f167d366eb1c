"""What the warm-up runs, how often, and what it reports."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence

import numpy as np
import pytest

from launcher.core.protocol.model_info import ModelInfo
from launcher.worker.interfaces import BatchOutput, ItemBatch, LoadedModel, ModelError, ReportProgress
from launcher.worker.sample_inputs import synthetic_batch
from launcher.worker.warmup import MAX_TIMED_RUNS, run_warmup

BATCHES = ((16,), (8, 8, 8), (40, 7, 3))


class Counting:
    """A backend that computes nothing and counts the batches it is given."""

    def __init__(self, model_info: ModelInfo) -> None:
        self.model_info = model_info
        self.runs: Counter[tuple[int, ...]] = Counter()

    def load(self, report: ReportProgress) -> LoadedModel:
        return LoadedModel("none", 1)

    def sample_batch(self, lengths: Sequence[int]) -> ItemBatch:
        return synthetic_batch(lengths, self.model_info)

    def run(self, batch: ItemBatch) -> BatchOutput:
        assert len(batch.ids) == sum(batch.lengths)
        self.runs[tuple(batch.lengths)] += 1
        return BatchOutput(np.zeros((len(batch.lengths), 1), np.float32), len(batch.ids))


def quiet(stage: str, done: float, detail: str) -> None:
    pass


@pytest.mark.parametrize(("packed", "work"), [(True, (3, 50, 1658)), (False, (3, 120, 4800))])
def test_each_batch_runs_once_before_it_is_timed_and_its_work_is_reported(
    model_info: Callable[..., ModelInfo], packed: bool, work: tuple[int, int, int]
) -> None:
    backend = Counting(model_info())
    measured = run_warmup(backend, model_info(), BATCHES, quiet, packed=packed)
    assert backend.runs == dict.fromkeys(BATCHES, 1 + MAX_TIMED_RUNS)
    assert [m[:3] for m in measured] == [(1, 16, 256), (3, 24, 192), work]
    assert all(m[3] > 0 for m in measured)


def test_batches_of_known_cost_run_once_and_are_not_timed(model_info: Callable[..., ModelInfo]) -> None:
    backend, said = Counting(model_info()), []
    measured = run_warmup(
        backend, model_info(), BATCHES, lambda *message: said.append(message), packed=True, measure=False
    )
    assert measured == ()
    assert backend.runs == dict.fromkeys(BATCHES, 1)
    assert said[-1] == ("warmup", 1.0, "3 batches run once, cost from the cache")
    assert [done for _, done, _ in said] == sorted(done for _, done, _ in said)


@pytest.mark.parametrize("lengths", [(), (100_000,), (4, 0)])
def test_a_batch_with_an_item_of_invalid_length_is_refused(
    model_info: Callable[..., ModelInfo], lengths: tuple[int, ...]
) -> None:
    with pytest.raises(ModelError, match="must have 1 to"):
        run_warmup(Counting(model_info()), model_info(), (lengths,), quiet, packed=True)
