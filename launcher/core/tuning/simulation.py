"""Predicts throughput and latency of a plan under load, by running the real scheduler in virtual time.

Items arrive as a Poisson process, lengths follow a histogram, batches take what the cost model predicts, and the real
scheduler makes every decision. HTTP, tokenizing and the transfer to the workers are not simulated, so clients see
slightly longer latencies. Deterministic: random numbers come from seeded generators.
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

from launcher.core.cost.cost_model import Coefficients, Measurement, work_of
from launcher.core.cost.length_histogram import Histogram
from launcher.core.percentile import percentile
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

# Used if costs were never measured: the demo model on one core with avx512_bf16, in bf16. The costs of another model
# are assumed to be proportional to the size of its weights.
GUESS = Coefficients(overhead=3e-3, per_token=1.3e-4, per_pair=8e-8)
GUESS_WEIGHT_BYTES = 90_000_000
# Scaling to instances whose size was never measured: speed grows as the number of threads to this power; the overhead
# of a batch does not change.
SPEEDUP_POWER = 0.9

LOAD = 0.6  # fraction of the plan's capacity at which latencies are predicted
ITEMS = 4000
# The fraction of the work over which capacity is measured: all instances are busy until then.
SATURATION_COUNTED = 0.9
# The minimal time step: a tick that changes nothing must not repeat forever at one point in time.
TICK_SECONDS = 1e-3
# Shapes (tokens, pairs) from which a fit can determine all three coefficients.
_SHAPES = ((1, 1), (8, 64), (64, 4096), (512, 4096), (512, 262144))


@dataclass(frozen=True, slots=True)
class CostBasis:
    """The costs of a simulation: coefficients by number of threads, of a packed or padded model."""

    by_threads: Mapping[int, Coefficients]
    packed: bool
    measured: bool

    @classmethod
    def guessed(cls, weight_bytes: int | None) -> CostBasis:
        """Estimated costs, for a model that was never measured on this machine."""
        ratio = (weight_bytes or GUESS_WEIGHT_BYTES) / GUESS_WEIGHT_BYTES
        return cls({1: GUESS.scaled(ratio)}, packed=True, measured=False)

    def of(self, threads: int) -> Coefficients:
        """The coefficients of an instance of this size, scaled from the nearest measured size if necessary."""
        nearest = min(self.by_threads, key=lambda known: (abs(math.log(known / threads)), known))
        known = self.by_threads[nearest]
        factor = (nearest / threads) ** SPEEDUP_POWER
        return Coefficients(known.overhead, known.per_token * factor, known.per_pair * factor)

    def source(self, threads: Sequence[int]) -> Source:
        """The origin of the costs of instances of these sizes."""
        if not self.measured:
            return "guessed"
        return "measured" if set(threads) <= set(self.by_threads) else "scaled"


@dataclass(frozen=True, slots=True)
class Traffic:
    """The incoming load: its lengths, their description, and the token budget of a batch."""

    histogram: Histogram
    name: str
    batch_tokens: int

    def lengths(self, count: int, random_: random.Random, limit: int | None) -> list[int]:
        """Random lengths of ``count`` items, truncated to the ``limit`` of the model."""
        tokens, weights = zip(*self.histogram.counts, strict=True)
        sums = list(accumulate(weights))
        drawn: list[int] = random_.choices(tokens, cum_weights=sums, k=count)
        return drawn if limit is None else [min(length, limit) for length in drawn]


@dataclass(frozen=True, slots=True)
class Latency:
    """Latency in seconds, from the arrival of an item to its result; None without items. ``share`` is the fraction of
    all items."""

    share: float
    p50: float | None
    p99: float | None

    def to_json(self) -> dict[str, Any]:
        """The entry in a report; seconds."""
        return {"share": round(self.share, 4), "p50_seconds": _rounded(self.p50), "p99_seconds": _rounded(self.p99)}


@dataclass(frozen=True, slots=True)
class Prediction:
    """The prediction for a plan. ``capacity`` is its maximum throughput in texts/s, ``rate`` the load in texts/s at
    which the latencies were predicted."""

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
            "classes": [{**length_class.to_json(), **latency.to_json()} for length_class, latency in self.classes],
            "instances": [{"id": instance, **latency.to_json()} for instance, latency in self.instances],
        }


def _rounded(seconds: float | None) -> float | None:
    return None if seconds is None else round(seconds, 6)


@dataclass(frozen=True, slots=True)
class Answered:
    """A simulated item: its length in tokens, the times of arrival and completion in seconds, and its instance."""

    length: int
    arrived: float
    done: float
    instance: int


@dataclass(frozen=True, slots=True)
class Scenario:
    """What a prediction assumes. ``limit`` is the longest item that the model accepts; None: unknown."""

    basis: CostBasis
    traffic: Traffic
    limit: int | None = None


def predict(
    instances: Sequence[InstanceSpec],
    scenario: Scenario,
    classes: Sequence[LengthClass],
    *,
    rate: float | None = None,
    items: int = ITEMS,
    seed: int = 1,
) -> Prediction:
    """The prediction for these instances, from simulating ``items`` items at ``rate`` texts/s (None: 60 % of capacity).

    Latencies are reported for each of ``classes`` and for each instance.
    """
    basis, traffic = scenario.basis, scenario.traffic
    lengths = traffic.lengths(items, random.Random(seed), scenario.limit)
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
        classes=tuple((span, latency_of([a for a in answered if span.admits(a.length)], items)) for span in classes),
        instances=tuple((id_, latency_of([a for a in answered if a.instance == id_], items)) for id_ in ids),
    )


def capacity(instances: Sequence[InstanceSpec], basis: CostBasis, traffic: Traffic, lengths: Sequence[int]) -> float:
    """Throughput in texts/s when items of these lengths are all queued at the start.

    Measured until most of the work is done, not most of the items: with classes, short items finish long before.
    """
    answered = simulate(instances, basis, traffic.batch_tokens, [(0.0, length) for length in lengths])
    cost = basis.of(1)
    work = list(accumulate(cost.per_token * a.length + cost.per_pair * a.length**2 for a in answered))
    place = bisect_left(work, SATURATION_COUNTED * work[-1])
    return len(answered) * work[place] / work[-1] / answered[place].done


def latency_of(answered: Sequence[Answered], total: int) -> Latency:
    """The latencies of these items, which are part of ``total``."""
    seconds = sorted(item.done - item.arrived for item in answered)
    if not seconds:
        return Latency(0.0, None, None)
    return Latency(len(seconds) / total, percentile(seconds, 50), percentile(seconds, 99))


def measurements_of(coefficients: Coefficients) -> tuple[Measurement, ...]:
    """Measurements from which ``fit`` gets exactly these coefficients."""
    return tuple((1, tokens, pairs, coefficients.seconds(tokens, pairs)) for tokens, pairs in _SHAPES)


def simulate(
    instances: Sequence[InstanceSpec],
    basis: CostBasis,
    batch_tokens: int,
    arrivals: Sequence[tuple[float, int]],
) -> list[Answered]:
    """Simulate ``arrivals``, (time, length) in order of time; returns the items in order of completion."""
    # All items are interactive, and nothing hangs or fails in virtual time.
    limits = SchedulerLimits(
        queue_items=max(1, len(arrivals)),
        queue_seconds=math.inf,
        batch_tokens=batch_tokens,
        interactive_share=0.0,
        bulk_batch_seconds=math.inf,
        hang_factor=1.0,
        hang_seconds=math.inf,
        busy_hang_seconds=math.inf,
        max_attempts=1,
    )
    return _Simulation(Scheduler(instances, limits), instances, basis).run(arrivals)


@dataclass(slots=True)
class _Worker:
    """An instance in virtual time: the batches it was sent; the first one is running."""

    coefficients: Coefficients
    sent: deque[tuple[int, tuple[Item, ...], float]] = field(default_factory=deque)


class _Simulation:
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
            # A deadline that does not advance must not stop time.
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
