"""The nearest-rank percentile against its textbook definition, for values and for weights."""

from __future__ import annotations

import math
from itertools import accumulate

import pytest
from hypothesis import given
from hypothesis import strategies as st

from launcher.core.cost.length_histogram import Histogram
from launcher.core.percentile import nearest_rank, percentile

VALUES = st.lists(st.integers(1, 40), min_size=1, max_size=200)
PERCENTS = st.sampled_from([0, 1, 25, 50, 75, 90, 95, 99, 100]) | st.floats(0, 100)


@given(VALUES, PERCENTS)
def test_the_rank_is_the_ceiling_of_the_fraction_of_the_count(values: list[int], percent: float) -> None:
    rank = max(1, math.ceil(percent / 100 * len(values)))
    assert percentile(values, percent) == sorted(values)[rank - 1]


@given(VALUES, PERCENTS)
def test_a_histogram_has_the_percentiles_of_its_values(values: list[int], percent: float) -> None:
    counts = tuple((value, float(values.count(value))) for value in sorted(set(values)))
    assert Histogram(counts).percentile(percent) == percentile(values, percent)


@given(st.lists(st.floats(0.1, 10), min_size=1, max_size=50), PERCENTS)
def test_the_entry_is_the_first_that_reaches_the_weight(weights: list[float], percent: float) -> None:
    sums = list(accumulate(weights))
    found = nearest_rank(sums, percent)
    wanted = percent / 100 * sums[-1]
    assert sums[found] >= wanted or found == len(sums) - 1
    assert found == 0 or sums[found - 1] < wanted


@pytest.mark.parametrize(("percent", "expected"), [(0, 1), (50, 50), (50.1, 51), (99, 99), (100, 100)])
def test_percentiles_of_1_to_100_are_the_numbers_themselves(percent: float, expected: int) -> None:
    assert percentile(range(100, 0, -1), percent) == expected


def test_no_values_have_no_percentile() -> None:
    assert math.isnan(percentile([], 50))
