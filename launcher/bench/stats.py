"""Computes the figures of a load test from its responses: rates, percentiles, latencies by length class.

Separate from the load generator so that table, JSON and plot agree. Nothing is measured here.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from launcher.core.percentile import percentile

PERCENTILES = (50, 90, 95, 99)
# Upper bounds of the length classes by which latencies are shown, in tokens.
LENGTH_BOUNDS = (32, 128, 1 << 30)


class Answer(NamedTuple):
    """One counted request: its longest text in tokens, its latency and time of completion in seconds, and its numbers
    of texts and tokens."""

    longest: int
    seconds: float
    ended: float
    texts: int
    tokens: int


@dataclass(slots=True)
class LoadStats:
    """The results of a run. ``started`` is when the first counted request was sent. ``late`` holds, for an open loop,
    the delay of each counted request after its scheduled arrival. CPU and wall time include the warm-up.
    ``refusal`` is the start of the first response that is not a success."""

    answers: list[Answer] = field(default_factory=list)
    errors: Counter[str] = field(default_factory=Counter)
    late: list[float] = field(default_factory=list)
    refusal: str = ""
    started: float = math.inf
    cpu_seconds: float = 0.0
    wall_seconds: float = 0.0

    @property
    def seconds(self) -> float:
        """The time from the first counted request to the last response."""
        return max(max((answer.ended for answer in self.answers), default=0.0) - self.started, 1e-9)


def by_class(answers: Sequence[Answer]) -> dict[str, list[Answer]]:
    """The answers by the length of their longest text; classes without any are omitted."""
    lower, parts = 0, {}
    for bound in LENGTH_BOUNDS:
        name = f"{lower + 1}-{bound}" if bound < LENGTH_BOUNDS[-1] else f"{lower + 1}-"
        if part := [answer for answer in answers if lower < answer.longest <= bound]:
            parts[name] = part
        lower = bound
    return parts


def summary(stats: LoadStats) -> dict[str, Any]:
    """The figures of a run, for JSON: rates per second, latencies in milliseconds."""
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
    """Count, percentiles and maximum, in milliseconds, of at least one value."""
    ordered = sorted(seconds)
    figures = {f"p{p}": round(percentile(ordered, p) * 1e3, 2) for p in PERCENTILES}
    return {"count": len(ordered), **figures, "max": round(ordered[-1] * 1e3, 2)}


def _late(seconds: Sequence[float]) -> dict[str, float]:
    return {f"p{p}": round(percentile(seconds, p) * 1e3, 3) for p in (50, 99)}
