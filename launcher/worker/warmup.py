"""Warm-up: every batch of it runs once before the worker is ready, and where its cost is not known, with the clock on
after that.

The first run of a shape pays for what libraries choose and cache per shape and for pages touched first; no request
may pay for it. Works on any backend.
"""

from __future__ import annotations

import time
from collections.abc import Sequence

import numpy as np

from launcher.core.cost.model import Measurement, work_of
from launcher.core.protocol.model_info import ModelInfo
from launcher.worker.backends import Backend, Ids, ModelRefused, Report

_STRIDE = 7919  # a prime: neighbouring ids are far apart, as in text

# A batch is timed so often, or until so many seconds went into it; the shortest counts, since whatever else runs on
# the machine can only make it longer.
MOST_RUNS = 4
ENOUGH_SECONDS = 0.25
# What the first run pays for is little against so many seconds: then it counts, and is the only one.
LONG_SECONDS = 0.5


def warm_up(
    backend: Backend,
    model_info: ModelInfo,
    batches: Sequence[Sequence[int]],
    report: Report,
    *,
    packed: bool,
    measure: bool = True,
) -> tuple[Measurement, ...]:
    """What batches of these lengths took once they were warm, in order; nothing unless ``measure``.

    ``packed`` says how the backend lays items out. Raises ``ModelRefused``.
    """
    measured = []
    for number, lengths in enumerate(batches):
        report("warmup", number / len(batches), _words(lengths))
        _check(lengths, model_info)
        ids = warm_up_ids(1, sum(lengths), model_info)
        first = _seconds(backend, ids, lengths)
        if measure:
            shortest = first if first >= LONG_SECONDS else _shortest_run(backend, ids, lengths)
            measured.append((*work_of(lengths, packed=packed), shortest))
    report("warmup", 1.0, f"{len(batches)} batches {'measured' if measure else 'run once, their cost is known'}")
    return tuple(measured)


def _shortest_run(backend: Backend, ids: Ids, lengths: Sequence[int]) -> float:
    runs: list[float] = []
    while len(runs) < MOST_RUNS and sum(runs) < ENOUGH_SECONDS:
        runs.append(_seconds(backend, ids, lengths))
    return min(runs)


def _seconds(backend: Backend, ids: Ids, lengths: Sequence[int]) -> float:
    start = time.perf_counter()
    backend.run(ids, lengths)
    return time.perf_counter() - start


def _check(lengths: Sequence[int], model_info: ModelInfo) -> None:
    if not lengths or lengths[-1] < 1 or lengths[0] > model_info.max_length:
        raise ModelRefused(
            f"a warm-up of {_words(lengths)} was asked for; {model_info.name} takes 1 to {model_info.max_length} tokens"
        )


def _words(lengths: Sequence[int]) -> str:
    if not lengths or lengths[0] == lengths[-1]:
        return f"{len(lengths)} x {lengths[0] if lengths else 0} tokens"
    return f"{len(lengths)} items of {lengths[-1]} to {lengths[0]} tokens"


def warm_up_ids(rows: int, width: int, model_info: ModelInfo) -> Ids:
    """Ids of ``rows`` items of ``width`` tokens: spread over the vocabulary, never the padding's."""
    spread = np.arange(rows * width, dtype=np.int64) * _STRIDE % model_info.vocab_size
    spread[spread == model_info.pad_id] = (model_info.pad_id + 1) % model_info.vocab_size
    return spread.astype(np.int32)
