"""What a plan would do under load, before anything is started: the scheduler itself run in virtual time.

Items arrive by a Poisson process, lengths follow a histogram, batches take what the cost model says, and every
decision is the real scheduler's. HTTP, tokenizing and the way to the workers are not in it, so what clients see is a
little slower. Equal arguments give equal results: random numbers come from a generator that is handed in.
"""

from __future__ import annotations

import math
import random
from bisect import bisect_left
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from heapq import heappop, heappush
from itertools import accumulate
from typing import Any, Literal

from launcher.core.cost.length_histogram import Histogram
from launcher.core.cost.model import Coefficients, Measurement, work_of
from launcher.core.planning.length_classes import LengthClass
from launcher.core.scheduling.batching import Item
from launcher.core.scheduling.scheduler import (
    Action,
    Arrived,
    BatchDone,
    InstanceReady,
    InstanceSpec,
    Scheduler,
    SchedulerLimits,
    Send,
)

Source = Literal["measured", "scaled", "guessed"]

# Where costs were never measured: those of the demo model on one core with avx512_bf16, in bf16. The weights of
# another model cost in proportion to their number.
GUESS = Coefficients(overhead=3e-3, per_token=1.3e-4, per_pair=8e-8)
GUESS_WEIGHT_BYTES = 90_000_000
# What more threads bring where an instance of that size was never measured: the work goes as their number to this
# power, the overhead of a batch stays.
SPEEDUP_POWER = 0.9

LOAD = 0.6  # of what the plan can do at most
ITEMS = 4000
# Enough that all instances are busy to the end of what is counted.
SATURATION_COUNTED = 0.9
# Rounds of a tick that changes nothing must come to an end.
TICK_SECONDS = 1e-3
# Any shapes that a fit can tell the three coefficients from.
_SHAPES = ((1, 1), (8, 64), (64, 4096), (512, 4096), (512, 262144))


@dataclass(frozen=True, slots=True)
class CostBasis:
    """What costs are taken from: coefficients by number of threads, of a model that is packed or padded."""

    by_threads: Mapping[int, Coefficients]
    packed: bool
    measured: bool

    @classmethod
    def guessed(cls, weight_bytes: int | None) -> CostBasis:
        """For a model that was never measured on the machine."""
        ratio = (weight_bytes or GUESS_WEIGHT_BYTES) / GUESS_WEIGHT_BYTES
        return cls({1: GUESS.times(ratio)}, packed=True, measured=False)

    def of(self, threads: int) -> Coefficients:
        """The coefficients of an instance of that size, scaled from the size nearest to it where need be."""
        nearest = min(self.by_threads, key=lambda known: (abs(math.log(known / threads)), known))
        known = self.by_threads[nearest]
        factor = (nearest / threads) ** SPEEDUP_POWER
        return Coefficients(known.overhead, known.per_token * factor, known.per_pair * factor)

    def source(self, threads: Sequence[int]) -> Source:
        """Where the costs of instances of these sizes come from."""
        if not self.measured:
            return "guessed"
        return "measured" if set(threads) <= set(self.by_threads) else "scaled"


@dataclass(frozen=True, slots=True)
class Traffic:
    """What comes: lengths and what they are called in words."""

    histogram: Histogram
    name: str
    batch_tokens: int

    def lengths(self, count: int, random_: random.Random, limit: int | None) -> list[int]:
        """Lengths of ``count`` items; what is longer than the model takes is cut."""
        tokens, weights = zip(*self.histogram.counts, strict=True)
        sums = list(accumulate(weights))
        drawn: list[int] = random_.choices(tokens, cum_weights=sums, k=count)
        return drawn if limit is None else [min(length, limit) for length in drawn]


@dataclass(frozen=True, slots=True)
class Latency:
    """Seconds from the arrival of an item until its result, and the part of all items; None where there was none."""

    share: float
    p50: float | None
    p99: float | None

    def to_json(self) -> dict[str, Any]:
        """As it stands in a report; seconds."""
        return {"share": round(self.share, 4), "p50_seconds": _rounded(self.p50), "p99_seconds": _rounded(self.p99)}


@dataclass(frozen=True, slots=True)
class Prediction:
    """What a plan would do. ``capacity`` is its most in texts/s, ``rate`` the load that the latencies are for."""

    source: Source
    traffic: str
    capacity: float
    rate: float
    classes: tuple[tuple[LengthClass, Latency], ...]
    instances: tuple[tuple[int, Latency], ...]

    def to_json(self) -> dict[str, Any]:
        """``plan.predicted`` of the topology report."""
        return {
            "source": self.source,
            "lengths": self.traffic,
            "texts_per_second": round(self.capacity, 1),
            "arrivals_per_second": round(self.rate, 1),
            "classes": [
                {"min_length": span.min_length, "max_length": span.max_length, **latency.to_json()}
                for span, latency in self.classes
            ],
            "instances": [{"id": instance, **latency.to_json()} for instance, latency in self.instances],
        }


def _rounded(seconds: float | None) -> float | None:
    return None if seconds is None else round(seconds, 6)


@dataclass(frozen=True, slots=True)
class Answered:
    """One item: how long it was, when it came and was done (seconds), and where it was computed."""

    length: int
    arrived: float
    done: float
    instance: int


def predict(
    instances: Sequence[InstanceSpec],
    basis: CostBasis,
    traffic: Traffic,
    *,
    classes: Sequence[LengthClass],
    limit: int | None = None,
    rate: float | None = None,
    items: int = ITEMS,
    seed: int = 1,
) -> Prediction:
    """What these instances do with so many items at ``rate``, in texts/s; by default at 60 % of what they can do.

    ``classes`` are those that latencies are told of; ``limit`` is the longest item that the model takes.
    """
    lengths = traffic.lengths(items, random.Random(seed), limit)
    most = capacity(instances, basis, traffic, lengths)
    rate = LOAD * most if rate is None else rate
    random_ = random.Random(seed + 1)
    times = list(accumulate(random_.expovariate(rate) for _ in lengths))
    answered = simulate(instances, basis, traffic.batch_tokens, list(zip(times, lengths, strict=True)))
    ids = sorted(spec.id for spec in instances)
    return Prediction(
        source=basis.source([spec.threads for spec in instances]),
        traffic=traffic.name,
        capacity=most,
        rate=rate,
        classes=tuple((span, latency_of(answered, [span.admits(a.length) for a in answered])) for span in classes),
        instances=tuple((id_, latency_of(answered, [a.instance == id_ for a in answered])) for id_ in ids),
    )


def capacity(instances: Sequence[InstanceSpec], basis: CostBasis, traffic: Traffic, lengths: Sequence[int]) -> float:
    """Texts/s when items of these lengths are there from the start.

    Counted until most of the work is done, not most of the items: with classes, short ones are all done long before.
    """
    answered = simulate(instances, basis, traffic.batch_tokens, [(0.0, length) for length in lengths])
    cost = basis.of(1)
    work = list(accumulate(cost.per_token * a.length + cost.per_pair * a.length**2 for a in answered))
    place = bisect_left(work, SATURATION_COUNTED * work[-1])
    return len(answered) * work[place] / work[-1] / answered[place].done


def latency_of(answered: Sequence[Answered], chosen: Sequence[bool]) -> Latency:
    """The latencies of the items that are chosen."""
    seconds = sorted(a.done - a.arrived for a, which in zip(answered, chosen, strict=True) if which)
    share = len(seconds) / len(answered) if answered else 0.0
    return Latency(share, _percentile(seconds, 0.5), _percentile(seconds, 0.99))


def _percentile(ordered: Sequence[float], part: float) -> float | None:
    return ordered[min(len(ordered) - 1, int(part * len(ordered)))] if ordered else None


def measurements_of(coefficients: Coefficients) -> tuple[Measurement, ...]:
    """Measurements that a fit takes for exactly these coefficients."""
    return tuple((1, tokens, pairs, coefficients.seconds(tokens, pairs)) for tokens, pairs in _SHAPES)


def simulate(
    instances: Sequence[InstanceSpec],
    basis: CostBasis,
    batch_tokens: int,
    arrivals: Sequence[tuple[float, int]],
) -> list[Answered]:
    """Every item of ``arrivals`` (time, length; ascending) with its end, in the order of the ends."""
    limits = SchedulerLimits(max(1, len(arrivals)), batch_tokens)
    return _Run(Scheduler(instances, limits), instances, basis).run(arrivals)


@dataclass(slots=True)
class _Worker:
    """An instance in virtual time: the batches it was sent, the first of which is running."""

    coefficients: Coefficients
    sent: deque[tuple[int, tuple[Item, ...], float]] = field(default_factory=deque)


class _Run:
    def __init__(self, scheduler: Scheduler, instances: Sequence[InstanceSpec], basis: CostBasis) -> None:
        self._scheduler = scheduler
        self._packed = basis.packed
        self._workers = {spec.id: _Worker(basis.of(spec.threads)) for spec in instances}
        self._ends: list[tuple[float, int]] = []
        self._arrived: dict[int, float] = {}
        self._answered: list[Answered] = []
        for id_, worker in self._workers.items():
            ready = InstanceReady(id_, measurements_of(worker.coefficients), basis.packed)
            self._carry_out(scheduler.handle(ready, 0.0), 0.0)

    def run(self, arrivals: Sequence[tuple[float, int]]) -> list[Answered]:
        coming, position, now = len(arrivals), 0, 0.0
        while position < coming or self._ends:
            arrival = arrivals[position][0] if position < coming else math.inf
            end = self._ends[0][0] if self._ends else math.inf
            deadline = self._scheduler.next_deadline()
            # A deadline that stays where it was must not hold up time.
            wake = math.inf if deadline is None else deadline if deadline > now else now + TICK_SECONDS
            now = min(arrival, end, wake)
            if end == now:
                self._end(now)
            elif arrival == now:
                self._arrived[position] = now
                event = Arrived(position, (arrivals[position][1],))
                self._carry_out(self._scheduler.handle(event, now), now)
                position += 1
            else:
                self._carry_out(self._scheduler.tick(now), now)
        return self._answered

    def _end(self, now: float) -> None:
        _, id_ = heappop(self._ends)
        worker = self._workers[id_]
        batch, items, seconds = worker.sent.popleft()
        for item in items:
            self._answered.append(Answered(item.length, self._arrived.pop(item.request), now, id_))
        if worker.sent:
            heappush(self._ends, (now + worker.sent[0][2], id_))
        self._carry_out(self._scheduler.handle(BatchDone(id_, batch, seconds), now), now)

    def _carry_out(self, actions: Sequence[Action], now: float) -> None:
        for action in actions:
            if isinstance(action, Send):
                self._send(action, now)

    def _send(self, action: Send, now: float) -> None:
        worker = self._workers[action.instance]
        work = work_of([item.length for item in action.items], packed=self._packed)
        seconds = worker.coefficients.seconds(work.tokens, work.pairs)
        worker.sent.append((action.batch, action.items, seconds))
        if len(worker.sent) == 1:
            heappush(self._ends, (now + seconds, action.instance))
