"""Warm-up: runs every batch once before the worker is ready, and times it afterwards if its cost is not cached.

The first run of a shape pays for what libraries choose and cache per shape, and for the first access to memory pages.
No request should pay for that. Works with any backend.
"""

from __future__ import annotations

import time
from collections.abc import Sequence

from launcher.core.cost.cost_model import Measurement, work_of
from launcher.core.protocol.model_info import ModelInfo
from launcher.worker.interfaces import Backend, ItemBatch, ModelError, ReportProgress

# A batch is timed up to this many times, or until its runs add up to this many seconds. The shortest run counts: other
# load on the machine can only make a run longer.
MAX_TIMED_RUNS = 4
MAX_TIMED_SECONDS = 0.25
# In a run of at least this many seconds, one-time costs are negligible: the first run counts and is the only one.
LONG_RUN_SECONDS = 0.5


def run_warmup(
    backend: Backend,
    model_info: ModelInfo,
    batches: Sequence[Sequence[int]],
    report: ReportProgress,
    *,
    packed: bool,
    measure: bool = True,
) -> tuple[Measurement, ...]:
    """Run batches with items of these lengths. Returns the cost of each batch once warm, in order; nothing unless
    ``measure`` is set.

    ``packed`` is the layout of the backend. Raises ``ModelError`` if an item is too long for the model.
    """
    measured = []
    for number, lengths in enumerate(batches):
        report("warmup", number / len(batches), _describe(lengths))
        _check(lengths, model_info)
        batch = backend.sample_batch(lengths)
        first = _time(backend, batch)
        if measure:
            shortest = first if first >= LONG_RUN_SECONDS else _shortest_run(backend, batch)
            measured.append((*work_of(batch.lengths, packed=packed), shortest))
    report("warmup", 1.0, f"{len(batches)} batches {'measured' if measure else 'run once, cost from the cache'}")
    return tuple(measured)


def _shortest_run(backend: Backend, batch: ItemBatch) -> float:
    runs: list[float] = []
    while len(runs) < MAX_TIMED_RUNS and sum(runs) < MAX_TIMED_SECONDS:
        runs.append(_time(backend, batch))
    return min(runs)


def _time(backend: Backend, batch: ItemBatch) -> float:
    start = time.perf_counter()
    backend.run(batch)
    return time.perf_counter() - start


def _check(lengths: Sequence[int], model_info: ModelInfo) -> None:
    if not lengths or lengths[-1] < 1 or lengths[0] > model_info.max_length:
        raise ModelError(
            f"the warm-up has a batch of {_describe(lengths)}, but an item of {model_info.name} must have 1 to "
            f"{model_info.max_length} tokens"
        )


def _describe(lengths: Sequence[int]) -> str:
    if not lengths or lengths[0] == lengths[-1]:
        return f"{len(lengths)} x {lengths[0] if lengths else 0} tokens"
    return f"{len(lengths)} items of {lengths[-1]} to {lengths[0]} tokens"
