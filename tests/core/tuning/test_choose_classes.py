"""``--classes auto``: what it chooses, and that its choices are valid plans."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from launcher.core.cost.cost_model import Coefficients
from launcher.core.cost.length_histogram import Histogram
from launcher.core.planning.length_classes import builtin_lengths, resolve_classes
from launcher.core.planning.plan import PlanRequest, make_plan
from launcher.core.tuning.choose_classes import (
    candidates,
    choose_classes,
    classes_of,
    groups_of,
    relative_latency,
    specs_of,
    work_fraction,
)
from launcher.core.tuning.simulation import CostBasis, Traffic
from launcher.errors import LauncherError
from tests.core.by_hand import machine

BUILTIN = Histogram(tuple(builtin_lengths().items()))
GUESS = CostBasis.guessed(None)
MIXED = Histogram(((16, 900), (40, 60), (400, 40)))

histograms = st.dictionaries(st.integers(1, 512), st.integers(1, 1000), min_size=1, max_size=30).map(
    lambda counts: Histogram(tuple(sorted(counts.items())))
)
limits = st.sampled_from([None, 64, 256, 512])


def traffic(histogram: Histogram) -> Traffic:
    return Traffic(histogram, "lengths", 2048)


@given(histograms, limits)
def test_groups_cover_every_length_once(histogram: Histogram, limit: int | None) -> None:
    groups = groups_of(histogram, limit)
    for length in range(1, 513 if limit is None else limit + 1):
        assert sum(group.admits(length) for group in groups) == 1


@given(histograms, limits, st.integers(1, 24))
def test_every_candidate_fits_the_cores_and_covers_every_length(
    histogram: Histogram, limit: int | None, cores: int
) -> None:
    plan = make_plan(machine(((cores,),), threads=1), PlanRequest(length_limit=limit))
    found = list(candidates(plan, GUESS, histogram, limit))
    assert len(found) == len(set(found))
    for specs in found:
        assert sum(spec.cores for spec in specs) <= cores
        spans = set(resolve_classes(specs, limit))
        assert len(spans) > 1
        for length in (1, 2, 63, limit or 10_000):
            assert sum(span.admits(length) for span in spans) == 1


@settings(deadline=None, max_examples=15)
@given(histograms, st.sampled_from([1, 2, 5, 8]))
def test_the_choice_can_be_planned_and_is_no_worse(histogram: Histogram, cores: int) -> None:
    one, request = machine(((cores,),), threads=1), PlanRequest(length_limit=512)
    choice = choose_classes(one, request, GUESS, traffic(histogram), items=150)
    plan = make_plan(one, PlanRequest(classes=choice.specs, length_limit=512))
    assert tuple(sorted(spec.id for spec in specs_of(plan))) == tuple(id_ for id_, _ in choice.predicted.instances)
    assert choice.predicted.rate == choice.equal.rate
    if not choice.specs:
        assert choice.predicted == choice.equal
        assert "equal instance" in choice.why


def test_short_texts_delayed_by_long_ones_get_their_own_instances() -> None:
    choice = choose_classes(
        machine(((8,),), threads=1), PlanRequest(length_limit=512), GUESS, traffic(MIXED), items=600
    )
    assert choice.specs
    short, short_equal = choice.predicted.classes[0][1], choice.equal.classes[0][1]
    assert short.p99 is not None
    assert short_equal.p99 is not None
    assert short.p99 < short_equal.p99
    assert relative_latency(choice.predicted, choice.equal) < 1
    assert "the best of" in choice.why


@pytest.mark.parametrize("histogram", [Histogram(((64, 1.0),)), BUILTIN])
def test_one_core_gets_no_classes_and_the_reason_says_so(histogram: Histogram) -> None:
    choice = choose_classes(
        machine(((1,),), threads=1), PlanRequest(length_limit=256), GUESS, traffic(histogram), items=300
    )
    assert choice.specs == ()
    assert "1 equal instance, because no plan with classes" in choice.why


def test_a_request_that_cannot_be_planned_raises_as_without_classes() -> None:
    with pytest.raises(LauncherError, match="--reserve-cores 9"):
        choose_classes(machine(((4,),), threads=1), PlanRequest(reserve_cores=9), GUESS, traffic(BUILTIN))


@given(histograms)
def test_fractions_of_the_work_add_up(histogram: Histogram) -> None:
    cost = Coefficients(3e-3, 1e-4, 1e-7)
    parts = [work_fraction(cost, histogram, low, high) for low, high in ((1, 40), (41, 200), (201, 512))]
    assert sum(parts) == pytest.approx(1)
    assert work_fraction(cost, histogram, 1, 512) == pytest.approx(1)


def test_latencies_are_reported_for_the_classes_of_the_plan() -> None:
    request = PlanRequest(length_limit=256)
    choice = choose_classes(machine(((8,),), threads=1), request, GUESS, traffic(MIXED), items=600)
    own = classes_of(
        make_plan(machine(((8,),), threads=1), PlanRequest(classes=choice.specs, length_limit=256)), MIXED, 256
    )
    assert own == tuple(span for span, _ in choice.predicted.classes)
    assert classes_of(make_plan(machine(((4,),), threads=1), request), MIXED, 256) == groups_of(MIXED, 256)
