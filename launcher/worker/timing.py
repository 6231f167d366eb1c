"""Measured choices: an option that does not change results is kept only if it is not slower on this machine.

Separate because any backend can use it when it loads a model.
"""

from __future__ import annotations

import time
from collections.abc import Callable

RUNS = 3
# Measurement noise: a run that takes this much longer still counts as not slower.
TOLERANCE = 1.02


def shortest_time(run: Callable[[], object]) -> float:
    """Seconds of the shortest of some runs, after one that is not counted."""
    run()
    seconds = []
    for _ in range(RUNS):
        start = time.perf_counter()
        run()
        seconds.append(time.perf_counter() - start)
    return min(seconds)


def keep_if_not_slower(
    run: Callable[[], object], set_option: Callable[[bool], None], attempts: int = 1
) -> float | None:
    """Time ``run`` without and with an option. Returns None if the option stays on.

    Otherwise it is off, and the result is its slowdown: the time with the option over the time without it, in the last
    of ``attempts`` comparisons, each of which found it slower.
    """
    for _ in range(attempts):
        set_option(False)
        without = shortest_time(run)
        set_option(True)
        ratio = shortest_time(run) / without
        if ratio <= TOLERANCE:
            return None
    set_option(False)
    return ratio
