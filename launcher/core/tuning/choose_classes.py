"""``--classes auto``: chooses the length classes, and their cores, for a machine and a length histogram.

A small number of candidates is planned by the planner and simulated (``core.tuning.simulation``) at the same load as
equal instances. A candidate is scored by its p50 and p99 relative to those of equal instances, weighted by the number
of texts, and must have about the same capacity. If none is sufficiently better, equal instances are used.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from launcher.core.cost.cost_model import Coefficients
from launcher.core.cost.length_histogram import Histogram
from launcher.core.machine.topology import Machine
from launcher.core.planning.length_classes import ClassSpec, LengthClass
from launcher.core.planning.plan import Plan, PlanRequest, make_plan
from launcher.core.scheduling.scheduler import InstanceSpec
from launcher.core.tuning.simulation import ITEMS, CostBasis, Prediction, Scenario, Traffic, predict
from launcher.errors import LauncherError

# Percentiles of the lengths at which classes may end.
BOUND_PERCENTILES = (50, 80, 90, 95)
# Percentiles of the lengths that divide the groups over which latencies are compared.
GROUP_PERCENTILES = (50, 90)
# Cores of a short and of a long instance, relative to an equal instance.
RELATIVE_SIZES = ((1.0, 1.0), (0.5, 1.0), (1.0, 2.0), (0.5, 2.0), (1.0, 0.5))
CANDIDATE_ITEMS = 1500
# The assumed number of items in a batch, which share its overhead.
ITEMS_PER_BATCH = 10
# The p99 of no group may grow by more than this factor, whatever the others gain.
MAX_P99_RATIO = 3.0
# A plan needs this fraction of the capacity of equal instances, and must reduce latencies by at least this fraction.
MIN_CAPACITY = 0.95
MIN_GAIN = 0.05


@dataclass(frozen=True, slots=True)
class Choice:
    """``specs`` is empty if equal instances are better; ``why`` is a sentence about the comparison."""

    specs: tuple[ClassSpec, ...]
    predicted: Prediction
    equal: Prediction
    why: str


def groups_of(histogram: Histogram, limit: int | None) -> tuple[LengthClass, ...]:
    """The short, middle and long lengths of the histogram, as adjoining classes."""
    longest = histogram.counts[-1][0] if limit is None else limit
    bounds = sorted({bound for percent in GROUP_PERCENTILES if (bound := histogram.percentile(percent)) < longest})
    starts = [1, *(bound + 1 for bound in bounds)]
    return tuple(LengthClass(a, b) for a, b in zip(starts, [*bounds, limit], strict=True))


def classes_of(plan: Plan, histogram: Histogram, limit: int | None) -> tuple[LengthClass, ...]:
    """The classes for which the latencies of a plan are reported: its own, or else the groups of the histogram."""
    own = {instance.length_class for instance in plan.instances if instance.length_class is not None}
    return tuple(sorted(own, key=lambda span: span.min_length)) or groups_of(histogram, limit)


def specs_of(plan: Plan) -> tuple[InstanceSpec, ...]:
    """The instances of a plan as the scheduler sees them."""
    return tuple(InstanceSpec(i.id, i.threads, i.length_class) for i in plan.instances)


def choose_classes(
    machine: Machine, request: PlanRequest, basis: CostBasis, traffic: Traffic, *, items: int = ITEMS
) -> Choice:
    """Classes for this machine, or none. ``request`` is the one for equal instances. Raises as ``make_plan``.

    The choice is predicted with ``items`` simulated items, the candidates with fewer.
    """
    equal_plan, limit = make_plan(machine, request), request.length_limit
    scenario = Scenario(basis, traffic, limit)
    groups, fewer = groups_of(traffic.histogram, limit), min(items, CANDIDATE_ITEMS)
    equal = predict(specs_of(equal_plan), scenario, groups, items=fewer)
    best: _Candidate | None = None
    planned = 0
    for specs in candidates(equal_plan, basis, traffic.histogram, limit):
        plan = _planned(machine, replace(request, classes=specs), equal_plan)
        if plan is None:
            continue
        planned += 1
        found = predict(specs_of(plan), scenario, groups, rate=equal.rate, items=fewer)
        ratio = relative_latency(found, equal)
        if _is_acceptable(found, equal) and (best is None or ratio < best.ratio):
            best = _Candidate(specs, plan, ratio)
    chosen = best if best is not None and best.ratio <= 1 - MIN_GAIN else _Candidate((), equal_plan, 1.0)
    classes = classes_of(chosen.plan, traffic.histogram, limit)
    equal = predict(specs_of(equal_plan), scenario, classes, items=items)
    predicted = predict(specs_of(chosen.plan), scenario, classes, rate=equal.rate, items=items)
    return Choice(chosen.specs, predicted, equal, _why(chosen, best, planned, equal_plan))


@dataclass(frozen=True, slots=True)
class _Candidate:
    """``ratio`` is that of its latencies to those of equal instances."""

    specs: tuple[ClassSpec, ...]
    plan: Plan
    ratio: float


def _why(chosen: _Candidate, best: _Candidate | None, planned: int, equal_plan: Plan) -> str:
    """The sentence about the choice; ``best`` of ``planned`` candidates may not be good enough to be chosen."""
    count = len(equal_plan.instances)
    equal = f"{count} equal instance{'' if count == 1 else 's'}"
    if chosen.specs:
        return (
            f"--classes auto: {text_of(chosen.specs)}, the best of {_plans(planned)}; predicted latencies over "
            f"all texts are {chosen.ratio:.2f} times those of {equal}."
        )
    if best is not None:
        return (
            f"--classes auto: {equal}, predicted to be about as fast as the best of {_plans(planned)} with classes "
            f"(latencies {best.ratio:.2f} times as long)."
        )
    if planned:
        return (
            f"--classes auto: {equal}, because none of {_plans(planned)} with classes has the same capacity without "
            "making some texts much slower."
        )
    return f"--classes auto: {equal}, because no plan with classes fits this machine and these lengths."


def _plans(count: int) -> str:
    return f"{count} plan{'s' * (count != 1)}"


def text_of(specs: Sequence[ClassSpec]) -> str:
    """The specs in the form of ``--classes``, but with equal entries combined: ``2 × 32:8, 1 × max:24``."""
    numbers = Counter(specs)
    return ", ".join(
        f"{count} × {'max' if spec.max_length is None else spec.max_length}:{spec.cores}"
        for spec, count in numbers.items()
    )


def relative_latency(found: Prediction, other: Prediction) -> float:
    """The ratio of the latencies of two predictions: the geometric mean over p50 and p99, weighted by texts."""
    logarithm = weight = 0.0
    for (_, a), (_, b) in zip(found.classes, other.classes, strict=True):
        for mine, theirs in ((a.p50, b.p50), (a.p99, b.p99)):
            if mine and theirs:
                logarithm += b.share * math.log(mine / theirs)
                weight += b.share
    return math.exp(logarithm / weight) if weight else 1.0


def _is_acceptable(found: Prediction, equal: Prediction) -> bool:
    """Whether neither the capacity nor the p99 of any group is much worse."""
    pairs = ((a.p99, b.p99) for (_, a), (_, b) in zip(found.classes, equal.classes, strict=True))
    return found.capacity >= MIN_CAPACITY * equal.capacity and all(
        mine <= MAX_P99_RATIO * theirs for mine, theirs in pairs if mine and theirs
    )


def _planned(machine: Machine, request: PlanRequest, equal: Plan) -> Plan | None:
    """The plan; None if it does not fit, or if an instance spans more nodes than equal instances do."""
    try:
        plan = make_plan(machine, request)
    except LauncherError:
        return None
    widest = max(len(instance.nodes) for instance in equal.instances)
    return plan if all(len(instance.nodes) <= max(1, widest) for instance in plan.instances) else None


def candidates(
    equal: Plan, basis: CostBasis, histogram: Histogram, limit: int | None
) -> Iterator[tuple[ClassSpec, ...]]:
    """Distinct class lists worth trying on the cores of a plan of equal instances: two classes of various sizes, or
    three with instances of equal size, with cores in proportion to the work of each class."""
    cores = sum(instance.threads for instance in equal.instances)
    size = min(instance.threads for instance in equal.instances)
    longest = min(histogram.counts[-1][0], limit or math.inf)
    bounds = sorted({b for percent in BOUND_PERCENTILES if (b := histogram.percentile(percent)) < longest})
    seen: set[tuple[ClassSpec, ...]] = set()
    for bound in bounds:
        fraction = work_fraction(basis.of(size), histogram, 1, bound)
        for short, long in RELATIVE_SIZES:
            sizes = max(1, int(short * size)), max(1, int(long * size))
            for more in (0, 1):
                specs = _two_classes(bound, sizes, round(fraction * cores / sizes[0]) + more, cores)
                if specs and specs not in seen:
                    seen.add(specs)
                    yield specs
    if len(bounds) > 1 and len(equal.instances) >= 3:
        yield _three_classes((bounds[0], bounds[-1]), size, len(equal.instances), basis, histogram)


def _two_classes(bound: int, sizes: tuple[int, int], count: int, cores: int) -> tuple[ClassSpec, ...]:
    """``count`` short instances, at least one, and as many long ones as then fit; empty if none fits."""
    count = max(1, count)
    others = (cores - count * sizes[0]) // sizes[1]
    if others < 1:
        return ()
    return (ClassSpec(bound, sizes[0]),) * count + (ClassSpec(None, sizes[1]),) * others


def _three_classes(
    bounds: tuple[int, int], size: int, count: int, basis: CostBasis, histogram: Histogram
) -> tuple[ClassSpec, ...]:
    cost = basis.of(size)
    short, middle = (
        work_fraction(cost, histogram, low, high) for low, high in ((1, bounds[0]), (bounds[0] + 1, bounds[1]))
    )
    first = min(max(1, round(short * count)), count - 2)
    second = min(max(1, round(middle * count)), count - first - 1)
    ends = [bounds[0]] * first + [bounds[1]] * second + [None] * (count - first - second)
    return tuple(ClassSpec(end, size) for end in ends)


def work_fraction(cost: Coefficients, histogram: Histogram, low: int, high: int) -> float:
    """The fraction of all work in items of ``low`` to ``high`` tokens, assuming ``ITEMS_PER_BATCH``."""

    def work(tokens: int) -> float:
        return cost.overhead / ITEMS_PER_BATCH + cost.per_token * tokens + cost.per_pair * tokens**2

    total = math.fsum(weight * work(tokens) for tokens, weight in histogram.counts)
    return math.fsum(weight * work(tokens) for tokens, weight in histogram.counts if low <= tokens <= high) / total
