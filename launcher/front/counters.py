"""Single-threaded counters and histograms for Prometheus, for what each request and each batch increments.

Those of ``prometheus_client`` are thread-safe and take a lock for each of the 20 numbers that a request changes: 10 of
its 180 µs. Here an increment is an addition, and the library formats the numbers on scrape (custom collectors). The
metrics themselves are defined in ``metrics``.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Sequence
from itertools import accumulate, chain
from math import inf

from prometheus_client import CollectorRegistry
from prometheus_client.core import CounterMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector
from prometheus_client.utils import floatToGoString


class CounterValue:
    """One counter."""

    __slots__ = ("value",)

    def __init__(self) -> None:
        self.value = 0.0

    def add(self, amount: float = 1.0) -> None:
        """Increment the counter."""
        self.value += amount


class HistogramValue:
    """One histogram: the number of values in each bucket, and their sum. ``bounds`` are the upper bounds, ascending."""

    __slots__ = ("_bounds", "counts", "sum")

    def __init__(self, bounds: Sequence[float]) -> None:
        self._bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        self.sum = 0.0

    def add(self, value: float) -> None:
        """Observe a value."""
        self.counts[bisect_left(self._bounds, value)] += 1
        self.sum += value


class CounterFamily(Collector):
    """The counters of one metric, by label values; ``name`` is without ``_total``."""

    def __init__(self, registry: CollectorRegistry, name: str, description: str, labels: Sequence[str]) -> None:
        self._name, self._description, self._label_names = name, description, labels
        self._children: dict[tuple[str, ...], CounterValue] = {}
        registry.register(self)

    def labels(self, *values: str) -> CounterValue:
        """The counter with these label values, in the order of the labels."""
        _check(values, self._label_names)
        return self._children.setdefault(values, CounterValue())

    def remove(self, *values: str) -> None:
        """Export the counter with these label values no longer."""
        self._children.pop(values, None)

    def describe(self) -> Iterable[Metric]:
        """Called by the registry, so that no name is used twice."""
        return [CounterMetricFamily(self._name, self._description, labels=self._label_names)]

    def collect(self) -> Iterable[Metric]:
        """Called by the registry."""
        family = CounterMetricFamily(self._name, self._description, labels=self._label_names)
        for values, counter in self._children.items():
            family.add_metric(values, counter.value)
        return [family]


class HistogramFamily(Collector):
    """The histograms of one metric, by label values, all with the same ``bounds``."""

    def __init__(
        self,
        registry: CollectorRegistry,
        name: str,
        description: str,
        labels: Sequence[str],
        bounds: Sequence[float],
    ) -> None:
        self._name, self._description, self._label_names = name, description, labels
        self._bounds = tuple(bounds)
        self._children: dict[tuple[str, ...], HistogramValue] = {}
        registry.register(self)

    def labels(self, *values: str) -> HistogramValue:
        """The histogram with these label values, in the order of the labels."""
        _check(values, self._label_names)
        return self._children.setdefault(values, HistogramValue(self._bounds))

    def remove(self, *values: str) -> None:
        """Export the histogram with these label values no longer."""
        self._children.pop(values, None)

    def describe(self) -> Iterable[Metric]:
        """Called by the registry, so that no name is used twice."""
        return [HistogramMetricFamily(self._name, self._description, labels=self._label_names)]

    def collect(self) -> Iterable[Metric]:
        """Called by the registry."""
        family = HistogramMetricFamily(self._name, self._description, labels=self._label_names)
        names = [floatToGoString(bound) for bound in chain(self._bounds, (inf,))]  # type: ignore[no-untyped-call]
        for values, histogram in self._children.items():
            family.add_metric(values, list(zip(names, accumulate(histogram.counts), strict=True)), histogram.sum)
        return [family]


def _check(values: Sequence[str], labels: Sequence[str]) -> None:
    if len(values) != len(labels):
        raise ValueError(f"{values} for the labels {labels}")
