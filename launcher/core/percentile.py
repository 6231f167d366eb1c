"""The nearest-rank percentile, for values and for weighted values.

The only definition in the program: load figures, histograms of lengths and simulated latencies all use it. It returns a
value that occurs and does not interpolate.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Iterable, Sequence


def nearest_rank(cumulative: Sequence[float], percent: float) -> int:
    """The index of the first entry that at least ``percent`` of the total weight does not exceed.

    ``cumulative`` holds the running sums of the weights of the entries in ascending order; it must not be empty.
    """
    return min(bisect_left(cumulative, percent / 100 * cumulative[-1]), len(cumulative) - 1)


def percentile(values: Iterable[float], percent: float) -> float:
    """The nearest-rank percentile of values in any order; NaN if there are none."""
    ordered = sorted(values)
    return ordered[nearest_rank(range(1, len(ordered) + 1), percent)] if ordered else math.nan
