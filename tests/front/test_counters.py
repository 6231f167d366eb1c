"""Metrics counted without locks are exported exactly as those of the library."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry, Counter, Histogram, disable_created_metrics, generate_latest

from launcher.front.counters import CounterFamily, HistogramFamily

BOUNDS = (0.001, 0.01, 1.0, 16)
LABELS = ("route", "status")


@settings(deadline=None)
@given(
    st.lists(
        st.tuples(
            st.sampled_from(["/a", '/"b"\n']),
            st.one_of(st.sampled_from([*BOUNDS, 0.0]), st.floats(min_value=0, max_value=1e6)),
        )
    )
)
def test_counters_and_histograms_are_exported_like_those_of_the_library(values: list[tuple[str, float]]) -> None:
    ours, theirs = CollectorRegistry(), CollectorRegistry()
    disable_created_metrics()  # type: ignore[no-untyped-call]
    tallies, spreads = CounterFamily(ours, "n", "Some.", LABELS), HistogramFamily(ours, "s", "Seconds.", LABELS, BOUNDS)
    counter = Counter("n", "Some.", LABELS, registry=theirs)
    histogram = Histogram("s", "Seconds.", LABELS, registry=theirs, buckets=BOUNDS)
    for route, value in values:
        tallies.labels(route, "200").add(value)
        spreads.labels(route, "200").add(value)
        counter.labels(route, "200").inc(value)
        histogram.labels(route, "200").observe(value)
    assert generate_latest(ours) == generate_latest(theirs)


def test_invalid_labels_and_duplicate_names_are_refused() -> None:
    registry = CollectorRegistry()
    tallies, spreads = (
        CounterFamily(registry, "n", "Some.", LABELS),
        HistogramFamily(registry, "s", "Seconds.", LABELS, BOUNDS),
    )
    for families in (tallies, spreads):
        with pytest.raises(ValueError, match="for the labels"):
            families.labels("/a")
    with pytest.raises(ValueError, match="Duplicated"):
        CounterFamily(registry, "n", "Again.", LABELS)
    with pytest.raises(ValueError, match="Duplicated"):
        HistogramFamily(registry, "s", "Again.", LABELS, BOUNDS)
