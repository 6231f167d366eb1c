"""From what was seen of a load to the figures that are shown: rates, percentiles, latencies per length class.

Separate from the load so that table, JSON and plot say the same. Nothing is measured in here.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

PERCENTILES = (50, 90, 95, 99)
# Upper bounds of the classes in which latencies are shown, in tokens.
LENGTH_BOUNDS = (32, 128, 1 << 30)


class Answer(NamedTuple):
    """One counted request: its longest text in tokens, its latency, when it ended (seconds), and what was in it."""

    longest: int
    seconds: float
    ended: float
    texts: int
    tokens: int


@dataclass(slots=True)
class LoadStats:
    """What has been seen. ``started`` is when the first counted request was sent; ``late`` has, for an open loop, how
    long after its arrival each counted request was sent; both CPU and wall time are of the whole run, warm-up too."""

    answers: list[Answer] = field(default_factory=list)
    errors: Counter[str] = field(default_factory=Counter)
    late: list[float] = field(default_factory=list)
    started: float = math.inf
    cpu_seconds: float = 0.0
    wall_seconds: float = 0.0

    @property
    def seconds(self) -> float:
        """From the first counted request to the last reply."""
        return max(max((answer.ended for answer in self.answers), default=0.0) - self.started, 1e-9)


def percentile(values: Iterable[float], percent: float) -> float:
    """The nearest-rank percentile of values that need not be sorted; NaN for none."""
    ordered = sorted(values)
    return ordered[max(0, math.ceil(percent / 100 * len(ordered)) - 1)] if ordered else math.nan


def by_class(answers: Sequence[Answer]) -> dict[str, list[Answer]]:
    """The answers by the length of their longest text; classes without one are left out."""
    lower, parts = 0, {}
    for bound in LENGTH_BOUNDS:
        name = f"{lower + 1}-{bound}" if bound < LENGTH_BOUNDS[-1] else f"{lower + 1}-"
        if part := [answer for answer in answers if lower < answer.longest <= bound]:
            parts[name] = part
        lower = bound
    return parts


def summary(stats: LoadStats) -> dict[str, Any]:
    """The figures of a run, as they go into JSON: rates per second, latencies in milliseconds."""
    answers, seconds = stats.answers, stats.seconds
    texts, tokens = sum(a.texts for a in answers), sum(a.tokens for a in answers)
    return {
        "requests": len(answers),
        "texts": texts,
        "tokens": tokens,
        "seconds": round(seconds, 3),
        "texts_per_second": round(texts / seconds, 1),
        "tokens_per_second": round(tokens / seconds, 1),
        "latency_ms": latency(a.seconds for a in answers) if answers else None,
        "latency_ms_by_length": {name: latency(a.seconds for a in part) for name, part in by_class(answers).items()},
        "errors": dict(stats.errors),
        "generator_cpu": round(stats.cpu_seconds / max(stats.wall_seconds, 1e-9), 3),
        **({"generator_late_ms": _late(stats.late)} if stats.late else {}),
    }


def latency(seconds: Iterable[float]) -> dict[str, float]:
    """Count, percentiles and maximum, in milliseconds; at least one value."""
    ordered = sorted(seconds)
    figures = {f"p{p}": round(percentile(ordered, p) * 1e3, 2) for p in PERCENTILES}
    return {"count": len(ordered), **figures, "max": round(ordered[-1] * 1e3, 2)}


def _late(seconds: Sequence[float]) -> dict[str, float]:
    return {f"p{p}": round(percentile(seconds, p) * 1e3, 3) for p in (50, 99)}
