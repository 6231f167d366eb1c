"""The scheduler in virtual time: no item is lost, time is monotonic, and the figures follow from the costs."""

from __future__ import annotations

import random
from itertools import accumulate

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from launcher.core.cost.cost_model import Coefficients, fit, work_of
from launcher.core.cost.length_histogram import Histogram
from launcher.core.planning.length_classes import LengthClass, builtin_lengths
from launcher.core.scheduling.events import InstanceSpec
from launcher.core.tuning.simulation import CostBasis, Scenario, Traffic, capacity, measurements_of, predict, simulate

BUILTIN = Traffic(Histogram(tuple(builtin_lengths().items())), "built-in", 2048)
TWO = (InstanceSpec(0, 1), InstanceSpec(1, 1))
BY_CLASS = (InstanceSpec(0, 1, LengthClass(1, 32)), InstanceSpec(1, 4, LengthClass(33, 512)))
EVERYTHING = (LengthClass(1, None),)
ONE_CORE = Coefficients(3e-3, 1.3e-4, 8e-8)


def basis(coefficients: Coefficients = ONE_CORE, *, packed: bool = True) -> CostBasis:
    return CostBasis({1: coefficients}, packed, measured=True)


gaps = st.lists(st.tuples(st.floats(0, 0.2), st.integers(1, 512)), min_size=1, max_size=60)


@settings(deadline=None, max_examples=60)
@given(gaps, st.sampled_from([TWO, BY_CLASS]), st.booleans())
def test_every_item_is_answered_once_and_not_before_its_cost(
    gaps: list[tuple[float, int]], instances: tuple[InstanceSpec, ...], packed: bool
) -> None:
    times = accumulate(gap for gap, _ in gaps)
    arrivals = [(time, length) for time, (_, length) in zip(times, gaps, strict=True)]
    found = simulate(instances, basis(packed=packed), 2048, arrivals)
    assert sorted((a.arrived, a.length) for a in found) == sorted(arrivals)
    assert [a.done for a in found] == sorted(a.done for a in found)
    threads = {spec.id: spec.threads for spec in instances}
    for answer in found:
        alone = basis().of(threads[answer.instance]).seconds(answer.length, answer.length**2)
        assert answer.done - answer.arrived >= alone * (1 - 1e-9)


@given(st.floats(1e-5, 1e-1), st.floats(1e-7, 1e-3), st.floats(0, 1e-6))
def test_coefficients_survive_conversion_to_measurements(overhead: float, per_token: float, per_pair: float) -> None:
    known = Coefficients(overhead, per_token, per_pair)
    found = fit(measurements_of(known))
    for tokens, pairs in ((20, 400), (300, 20_000), (2048, 524_288)):
        assert found.seconds(tokens, pairs) == pytest.approx(known.seconds(tokens, pairs), rel=1e-3)


def test_results_are_deterministic_and_depend_on_the_seed() -> None:
    first, again, other = (
        predict(TWO, Scenario(basis(), BUILTIN), EVERYTHING, items=300, seed=seed) for seed in (1, 1, 2)
    )
    assert first == again
    assert first != other


def test_the_capacity_follows_from_the_cost_of_full_batches() -> None:
    drawn = BUILTIN.lengths(4000, random.Random(5), 256)
    found = capacity(TWO, basis(), BUILTIN, drawn)
    work = work_of(sorted(drawn, reverse=True), packed=True)
    batches = sum(drawn) / BUILTIN.batch_tokens
    least = ONE_CORE.per_token * work.tokens + ONE_CORE.per_pair * work.pairs + ONE_CORE.overhead * batches
    assert found == pytest.approx(2 * len(drawn) / least, rel=0.05)


def test_classes_do_not_inflate_capacity_by_finishing_short_items_first() -> None:
    drawn = [16] * 900 + [500] * 100
    random.Random(3).shuffle(drawn)
    spans = (LengthClass(1, 32), LengthClass(33, 512))
    apart = tuple(InstanceSpec(i, 1, span) for i, span in enumerate(spans))
    together, found = (capacity(instances, basis(), BUILTIN, drawn) for instances in (TWO, apart))
    assert found < 1.15 * together


def test_an_item_takes_its_cost_when_alone_and_waits_under_load() -> None:
    lone, busy = (
        predict(TWO, Scenario(basis(), BUILTIN), EVERYTHING, items=1500, rate=rate).classes[0][1]
        for rate in (0.5, 300.0)
    )
    assert lone.p50 == pytest.approx(ONE_CORE.seconds(26, 26**2), rel=0.1)
    assert busy.p50 is not None
    assert lone.p50 is not None
    assert busy.p50 > 1.2 * lone.p50


def test_costs_of_an_unmeasured_size_are_scaled_from_the_nearest_and_marked_so() -> None:
    known = CostBasis({1: ONE_CORE, 8: Coefficients(3e-3, 3e-5, 1e-8)}, packed=True, measured=True)
    assert known.of(8) == Coefficients(3e-3, 3e-5, 1e-8)
    assert known.of(1).per_token > known.of(2).per_token > known.of(6).per_token > known.of(8).per_token
    assert known.of(16).overhead == 3e-3
    assert [known.source(sizes) for sizes in ([1, 8], [1, 4])] == ["measured", "scaled"]
    guess = CostBasis.guessed(180_000_000)
    assert guess.source([1]) == "guessed"
    assert guess.of(1).per_token == 2 * CostBasis.guessed(None).of(1).per_token


def test_the_built_in_lengths_match_short_real_texts() -> None:
    histogram = Histogram(tuple(builtin_lengths().items()))
    assert histogram.total == pytest.approx(1)
    assert [histogram.percentile(percent) for percent in (50, 90)] == [26, 91]
    assert histogram.mean == pytest.approx(41, abs=2)  # 43 before truncation
