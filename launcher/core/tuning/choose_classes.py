"""``--classes auto``: which length classes, and how many cores for each, suit a machine and a histogram of lengths.

Few candidates, each planned by the planner and tried by simulation (``core.tuning.simulation``) at the same load,
beside equal instances. A candidate is as good as its p50 and p99 are short against those of equal instances, weighted
by how many texts they are of; it must do about as many texts/s. Where none is better by enough, equal instances it
is.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from launcher.core.cost.length_histogram import Histogram
from launcher.core.cost.model import Coefficients
from launcher.core.machine.topology import Machine
from launcher.core.planning.length_classes import ClassSpec, LengthClass
from launcher.core.planning.plan import Plan, PlanRequest, make_plan
from launcher.core.scheduling.scheduler import InstanceSpec
from launcher.core.tuning.simulation import ITEMS, CostBasis, Prediction, Traffic, predict
from launcher.errors import LauncherError

# Where classes may end: the lengths that so many percent of the texts do not exceed.
BOUNDS = (50, 80, 90, 95)
# The groups that latencies are compared over.
GROUPS = (50, 90)
# Cores of a short and of a long instance, against those of the equal ones.
SIZES = ((1.0, 1.0), (0.5, 1.0), (1.0, 2.0), (0.5, 2.0), (1.0, 0.5))
TRIED_ITEMS = 1500
# A batch has some ten items, which share its overhead.
ITEMS_OF_A_BATCH = 10
# No group may get a p99 that is so many times as long, whatever the others gain.
MOST_LOSS = 3.0
# A plan must do so much of what equal instances can do, or it is none; and be so much better, or it is not worth it.
LEAST_CAPACITY = 0.95
LEAST_GAIN = 0.05


@dataclass(frozen=True, slots=True)
class Choice:
    """``specs`` is empty where equal instances are better; ``why`` says what was compared, in a sentence."""

    specs: tuple[ClassSpec, ...]
    predicted: Prediction
    equal: Prediction
    why: str


def groups_of(histogram: Histogram, limit: int | None) -> tuple[LengthClass, ...]:
    """Short, middle and long, each without gap to the next, as the histogram has them."""
    longest = histogram.counts[-1][0] if limit is None else limit
    bounds = sorted({bound for percent in GROUPS if (bound := histogram.percentile(percent)) < longest})
    starts = [1, *(bound + 1 for bound in bounds)]
    return tuple(LengthClass(a, b) for a, b in zip(starts, [*bounds, limit], strict=True))


def classes_of(plan: Plan, histogram: Histogram, limit: int | None) -> tuple[LengthClass, ...]:
    """What latencies of a plan are told of: its own classes, or the groups of the histogram."""
    own = {instance.length_class for instance in plan.instances if instance.length_class is not None}
    return tuple(sorted(own, key=lambda span: span.min_length)) or groups_of(histogram, limit)


def specs_of(plan: Plan) -> tuple[InstanceSpec, ...]:
    """The instances of a plan as the scheduler sees them."""
    return tuple(InstanceSpec(i.id, i.threads, i.length_class) for i in plan.instances)


def choose_classes(
    machine: Machine, request: PlanRequest, basis: CostBasis, traffic: Traffic, *, items: int = ITEMS
) -> Choice:
    """Classes for this machine, or none. ``request`` is that of equal instances. Raises as ``make_plan``.

    The choice is told of with ``items`` simulated items, the candidates are tried with fewer.
    """
    equal_plan, limit = make_plan(machine, request), request.length_limit
    groups, tried_items = groups_of(traffic.histogram, limit), min(items, TRIED_ITEMS)
    equal = predict(specs_of(equal_plan), basis, traffic, classes=groups, limit=limit, items=tried_items)
    best: tuple[float, tuple[ClassSpec, ...], Plan] | None = None
    tried = 0
    for specs in candidates(equal_plan, basis, traffic.histogram, limit):
        plan = _planned(machine, replace(request, classes=specs), equal_plan)
        if plan is None:
            continue
        tried += 1
        found = predict(specs_of(plan), basis, traffic, classes=groups, limit=limit, rate=equal.rate, items=tried_items)
        ratio = against(found, equal)
        if _is_fair(found, equal) and (best is None or ratio < best[0]):
            best = ratio, specs, plan
    return _choice(best, tried, equal_plan, basis, traffic, limit, items)


def _choice(
    best: tuple[float, tuple[ClassSpec, ...], Plan] | None,
    tried: int,
    equal_plan: Plan,
    basis: CostBasis,
    traffic: Traffic,
    limit: int | None,
    items: int,
) -> Choice:
    """The best in full, beside equal instances at the same load."""
    better = best is not None and best[0] <= 1 - LEAST_GAIN
    specs, plan = (best[1], best[2]) if best is not None and better else ((), equal_plan)
    spans = classes_of(plan, traffic.histogram, limit)
    equal = predict(specs_of(equal_plan), basis, traffic, classes=spans, limit=limit, items=items)
    predicted = predict(specs_of(plan), basis, traffic, classes=spans, limit=limit, rate=equal.rate, items=items)
    size = f"{len(equal_plan.instances)} equal instance{'s' * (len(equal_plan.instances) > 1)}"
    if best is None:
        why = f"--classes auto: {size}, since {_tried(tried)} without making some texts much slower."
    elif not better:
        why = (
            f"--classes auto: {size}, since they are predicted to be about as fast as the best of "
            f"{_plans(tried)} with classes (its latencies are {best[0]:.2f} times theirs)."
        )
    else:
        why = (
            f"--classes auto: {text_of(specs)}, the best of {_plans(tried)}; its latencies are predicted to be "
            f"{best[0]:.2f} times those of {size}, over all texts."
        )
    return Choice(specs, predicted, equal, why)


def _tried(tried: int) -> str:
    return f"none of {_plans(tried)} with classes does as much" if tried else "no plan with classes does"


def _plans(count: int) -> str:
    return f"{count} plan{'s' * (count != 1)}"


def text_of(specs: Sequence[ClassSpec]) -> str:
    """As it is given to ``--classes``, but equal entries only once, with their number."""
    numbers = Counter(specs)
    return ", ".join(
        f"{count} × {'max' if spec.max_length is None else spec.max_length}:{spec.cores}"
        for spec, count in numbers.items()
    )


def against(found: Prediction, other: Prediction) -> float:
    """The latencies of one prediction in parts of those of another: the geometric mean of p50 and p99 over texts."""
    logarithm = weight = 0.0
    for (_, a), (_, b) in zip(found.classes, other.classes, strict=True):
        for mine, theirs in ((a.p50, b.p50), (a.p99, b.p99)):
            if mine and theirs:
                logarithm += b.share * math.log(mine / theirs)
                weight += b.share
    return math.exp(logarithm / weight) if weight else 1.0


def _is_fair(found: Prediction, equal: Prediction) -> bool:
    """Whether nothing is lost that nobody would give: texts/s, and the p99 of any group."""
    pairs = ((a.p99, b.p99) for (_, a), (_, b) in zip(found.classes, equal.classes, strict=True))
    return found.capacity >= LEAST_CAPACITY * equal.capacity and all(
        mine <= MOST_LOSS * theirs for mine, theirs in pairs if mine and theirs
    )


def _planned(machine: Machine, request: PlanRequest, equal: Plan) -> Plan | None:
    """The plan, unless it does not fit, or spreads an instance over more nodes than equal instances need."""
    try:
        plan = make_plan(machine, request)
    except LauncherError:
        return None
    widest = max(len(instance.nodes) for instance in equal.instances)
    return plan if all(len(instance.nodes) <= max(1, widest) for instance in plan.instances) else None


def candidates(
    equal: Plan, basis: CostBasis, histogram: Histogram, limit: int | None
) -> Iterator[tuple[ClassSpec, ...]]:
    """Class lists worth trying on the cores of a plan of equal instances, each once: two classes of various sizes,
    or three of equal ones, with cores in proportion to the work that each class brings."""
    cores = sum(instance.threads for instance in equal.instances)
    size = min(instance.threads for instance in equal.instances)
    longest = min(histogram.counts[-1][0], limit or math.inf)
    bounds = sorted({b for percent in BOUNDS if (b := histogram.percentile(percent)) < longest})
    seen: set[tuple[ClassSpec, ...]] = set()
    for bound in bounds:
        part = work_part(basis.of(size), histogram, 1, bound)
        for short, long in SIZES:
            sizes = max(1, int(short * size)), max(1, int(long * size))
            for more in (0, 1):
                specs = _two_classes(bound, sizes, round(part * cores / sizes[0]) + more, cores)
                if specs and specs not in seen:
                    seen.add(specs)
                    yield specs
    if len(bounds) > 1 and len(equal.instances) >= 3:
        yield _three_classes((bounds[0], bounds[-1]), size, len(equal.instances), basis, histogram)


def _two_classes(bound: int, sizes: tuple[int, int], count: int, cores: int) -> tuple[ClassSpec, ...]:
    """``count`` short instances, at least one, and as many long ones as fit beside them; empty where none does."""
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
        work_part(cost, histogram, low, high) for low, high in ((1, bounds[0]), (bounds[0] + 1, bounds[1]))
    )
    first = min(max(1, round(short * count)), count - 2)
    second = min(max(1, round(middle * count)), count - first - 1)
    ends = [bounds[0]] * first + [bounds[1]] * second + [None] * (count - first - second)
    return tuple(ClassSpec(end, size) for end in ends)


def work_part(cost: Coefficients, histogram: Histogram, low: int, high: int) -> float:
    """The part of all work that items of ``low`` to ``high`` tokens bring, when batches have some ten items."""

    def work(tokens: int) -> float:
        return cost.overhead / ITEMS_OF_A_BATCH + cost.per_token * tokens + cost.per_pair * tokens**2

    total = math.fsum(weight * work(tokens) for tokens, weight in histogram.counts)
    return math.fsum(weight * work(tokens) for tokens, weight in histogram.counts if low <= tokens <= high) / total
