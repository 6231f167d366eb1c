import random
from collections.abc import Iterable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from launcher.core.cost.cost_model import SETTLED_BATCHES, Coefficients, CostModel, Work, fit, fit_error, work_of

SHAPES = [(1, 16), (4, 32), (16, 16), (8, 128), (2, 256), (8, 256), (1, 512)]
positive = st.floats(1e-6, 1e-1)


@given(overhead=positive, per_token=st.floats(1e-7, 1e-3), per_pair=st.floats(0, 1e-6))
def test_exact_measurements_are_predicted_exactly(overhead: float, per_token: float, per_pair: float) -> None:
    truth = Coefficients(overhead, per_token, per_pair)
    works = [work_of([width] * rows, packed=True) for rows, width in SHAPES]
    found = fit([(*work, truth.seconds(work.tokens, work.pairs)) for work in works])
    for work in [*works, Work(3, 77, 2000), Work(32, 64, 500)]:
        expected = truth.seconds(work.tokens, work.pairs)
        assert found.seconds(work.tokens, work.pairs) == pytest.approx(expected, rel=1e-3)


@given(st.lists(st.integers(1, 512), min_size=1, max_size=40))
def test_packed_work_is_at_most_padded_work_and_equal_for_equal_lengths(lengths: list[int]) -> None:
    ordered = sorted(lengths, reverse=True)
    packed, padded = work_of(ordered, packed=True), work_of(ordered, packed=False)
    assert packed.items == padded.items == len(lengths)
    assert packed.tokens == sum(lengths)
    assert packed.tokens <= padded.tokens
    assert packed.pairs <= padded.pairs
    assert (packed == padded) == (len(set(lengths)) == 1)


@given(st.lists(st.tuples(st.integers(1, 64), st.integers(1, 512), st.integers(1, 10**6), positive), max_size=8))
def test_coefficients_are_never_negative_and_predictions_are_positive(measured) -> None:  # type: ignore[no-untyped-def]
    found = fit(measured)
    assert min(found.overhead, found.per_token, found.per_pair) >= 0
    assert found.seconds(1, 1) > 0


@pytest.mark.parametrize("repeated", [1, 7])
def test_measurements_of_two_shapes_are_predicted_exactly(repeated: int) -> None:
    measured = [(1, 16, 256, 0.004), (8, 1024, 131072, 0.060)] * repeated
    found = fit(measured)
    for _, tokens, pairs, seconds in measured:
        assert found.seconds(tokens, pairs) == pytest.approx(seconds, rel=1e-6)


def test_without_measurements_the_defaults_are_used() -> None:
    assert fit([]) == Coefficients()


WORK = Work(4, 128, 4096)
TRUE = Coefficients(1e-3, 1e-4, 1e-8)


def test_observations_move_the_prediction_to_the_observed_time() -> None:
    model = CostModel(Coefficients(1e-3, 1e-4, 0.0))
    seen = 3 * model.seconds(WORK.tokens, WORK.pairs)
    for _ in range(100):
        model.observe(WORK, seen)
    assert model.seconds(WORK.tokens, WORK.pairs) == pytest.approx(seen, rel=0.01)
    assert model.error < 0.05


def test_one_disturbed_batch_moves_the_prediction_little() -> None:
    model = CostModel(Coefficients(1e-3, 1e-4, 0.0))
    before = model.seconds(WORK.tokens, WORK.pairs)
    model.observe(WORK, 1000.0)
    assert model.seconds(WORK.tokens, WORK.pairs) < 1.1 * before


def test_the_error_of_a_fit_is_the_median_over_the_measurements() -> None:
    known = Coefficients(1e-3, 1e-4, 0.0)
    assert fit_error(known, []) is None
    exact = [(1, tokens, tokens**2, known.seconds(tokens, 0)) for tokens in (10, 20, 30)]
    assert fit_error(known, exact) == pytest.approx(0)
    assert fit_error(known, [(*m[:3], m[3] * 2) for m in exact]) == pytest.approx(0.5)


def test_the_observed_error_is_a_mean_from_the_first_batch_on() -> None:
    model = CostModel(Coefficients(1e-3, 1e-4, 0.0))
    assert model.observed == 0
    model.observe(WORK, 1.25 * model.seconds(WORK.tokens, WORK.pairs))
    assert model.observed == 1
    assert model.error == pytest.approx(0.2)


def seen(model: CostModel, factors: Iterable[float]) -> CostModel:
    for factor in factors:
        model.observe(WORK, factor * model.coefficients.seconds(WORK.tokens, WORK.pairs))
    return model


@given(st.floats(0.3, 3.0), st.floats(0.5, 2.0), st.integers(0, 10**6))
def test_the_drift_is_settled_after_enough_batches_that_scatter_around_it(
    factor: float, start: float, seed: int
) -> None:
    rng = random.Random(seed)
    model = seen(CostModel(TRUE, start), (factor * rng.lognormvariate(0, 0.1) for _ in range(2 * SETTLED_BATCHES)))
    assert model.settled == pytest.approx(factor, rel=0.04)


def test_the_drift_is_not_settled_while_batches_are_few_or_changing() -> None:
    assert seen(CostModel(TRUE), [1.0] * (SETTLED_BATCHES - 1)).settled is None
    assert seen(CostModel(TRUE), [1.0] * SETTLED_BATCHES).settled == pytest.approx(1.0)
    assert seen(CostModel(TRUE), [1.0] * SETTLED_BATCHES + [1.5] * 20).settled is None


def test_a_model_starts_with_its_initial_drift() -> None:
    assert (
        CostModel(TRUE, 0.5).seconds(100, 1000) == 0.5 * TRUE.seconds(100, 1000) == TRUE.scaled(0.5).seconds(100, 1000)
    )
