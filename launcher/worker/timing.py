"""How long a piece of work takes here and now, for choices that are made by measuring when a model is loaded."""

from __future__ import annotations

import time
from collections.abc import Callable

ROUNDS = 3
# Noise of a measurement: this much slower still counts as not slower.
TOLERANCE = 1.02


def fastest(run: Callable[[], object]) -> float:
    """Seconds of the fastest of some runs; one before that is not counted."""
    run()
    seconds = []
    for _ in range(ROUNDS):
        start = time.perf_counter()
        run()
        seconds.append(time.perf_counter() - start)
    return min(seconds)
