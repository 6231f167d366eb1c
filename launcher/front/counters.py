"""Counters and histograms for one thread: what each request and each batch adds to, as Prometheus reads them.

Those of ``prometheus_client`` may be used from any thread, and take a lock for each of the 20 numbers that a request
changes: 10 of its 180 µs. Here an increment is an addition, and the library writes the numbers when somebody asks
(its custom collectors). What is counted must not enter here.
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
    """A number that only grows."""

    __slots__ = ("value",)

    def __init__(self) -> None:
        self.value = 0.0

    def add(self, amount: float = 1.0) -> None:
        """Count so much more."""
        self.value += amount


class HistogramValue:
    """How many values lie at or below each of ``bounds`` (ascending), and their sum."""

    __slots__ = ("_bounds", "counts", "sum")

    def __init__(self, bounds: Sequence[float]) -> None:
        self._bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        self.sum = 0.0

    def add(self, value: float) -> None:
        """Count one more value."""
        self.counts[bisect_left(self._bounds, value)] += 1
        self.sum += value


class CounterFamily(Collector):
    """The tallies of one name, by the values of its labels; ``name`` is without ``_total``."""

    def __init__(self, registry: CollectorRegistry, name: str, description: str, labels: Sequence[str]) -> None:
        self._name, self._description, self._labels = name, description, labels
        self._children: dict[tuple[str, ...], CounterValue] = {}
        registry.register(self)

    def of(self, *values: str) -> CounterValue:
        """The tally for these values of the labels, in the order of the labels."""
        _check(values, self._labels)
        return self._children.setdefault(values, CounterValue())

    def describe(self) -> Iterable[Metric]:
        """Called by the registry, so that no name is used twice."""
        return [CounterMetricFamily(self._name, self._description, labels=self._labels)]

    def collect(self) -> Iterable[Metric]:
        """Called by the registry."""
        family = CounterMetricFamily(self._name, self._description, labels=self._labels)
        for values, tally in self._children.items():
            family.add_metric(values, tally.value)
        return [family]


class HistogramFamily(Collector):
    """The spreads of one name, by the values of its labels, all with the same ``bounds``."""

    def __init__(
        self,
        registry: CollectorRegistry,
        name: str,
        description: str,
        labels: Sequence[str],
        bounds: Sequence[float],
    ) -> None:
        self._name, self._description, self._labels = name, description, labels
        self._bounds = tuple(bounds)
        self._children: dict[tuple[str, ...], HistogramValue] = {}
        registry.register(self)

    def of(self, *values: str) -> HistogramValue:
        """The spread for these values of the labels, in the order of the labels."""
        _check(values, self._labels)
        return self._children.setdefault(values, HistogramValue(self._bounds))

    def describe(self) -> Iterable[Metric]:
        """Called by the registry, so that no name is used twice."""
        return [HistogramMetricFamily(self._name, self._description, labels=self._labels)]

    def collect(self) -> Iterable[Metric]:
        """Called by the registry."""
        family = HistogramMetricFamily(self._name, self._description, labels=self._labels)
        names = [floatToGoString(bound) for bound in chain(self._bounds, (inf,))]  # type: ignore[no-untyped-call]
        for values, spread in self._children.items():
            family.add_metric(values, list(zip(names, accumulate(spread.counts), strict=True)), spread.sum)
        return [family]


def _check(values: Sequence[str], labels: Sequence[str]) -> None:
    if len(values) != len(labels):
        raise ValueError(f"{values} for the labels {labels}")
