"""Warm-up: every shape that will be used runs twice before the worker is ready, the second time with the clock on.

The first run of a shape pays for what libraries choose and cache per shape and for pages touched first; no request
may pay for it. Works on any backend.
"""

from __future__ import annotations

import time
from collections.abc import Sequence

import numpy as np

from launcher.core.cost import Measurement
from launcher.core.models import ModelCard
from launcher.worker.backends import Backend, Ids, ModelRefused, Report

_STRIDE = 7919  # a prime: neighbouring ids are far apart, as in text


def warm_up(
    backend: Backend, card: ModelCard, shapes: Sequence[tuple[int, int]], report: Report
) -> tuple[Measurement, ...]:
    """What the second run of each shape (rows, width) took, in order. Raises ``ModelRefused``."""
    measured = []
    for number, (rows, width) in enumerate(shapes):
        report("warmup", number / len(shapes), f"{rows} x {width} tokens")
        if rows < 1 or not 1 <= width <= card.max_length:
            raise ModelRefused(
                f"a warm-up of {rows} x {width} tokens was asked for; {card.name} takes 1 to {card.max_length} tokens"
            )
        ids, lengths = warm_up_ids(rows, width, card), (width,) * rows
        backend.run(ids, lengths)
        start = time.perf_counter()
        backend.run(ids, lengths)
        measured.append((rows, rows * width, rows * width**2, time.perf_counter() - start))
    report("warmup", 1.0, f"{len(shapes)} shapes")
    return tuple(measured)


def warm_up_ids(rows: int, width: int, card: ModelCard) -> Ids:
    """Ids of ``rows`` items of ``width`` tokens: spread over the vocabulary, never the padding's."""
    spread = np.arange(rows * width, dtype=np.int64) * _STRIDE % card.vocab_size
    spread[spread == card.pad_id] = (card.pad_id + 1) % card.vocab_size
    return spread.astype(np.int32)
