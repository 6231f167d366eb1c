import pytest
from hypothesis import given
from hypothesis import strategies as st

from launcher.core.cost import Coefficients, CostModel, fit

SHAPES = [(1, 16), (4, 32), (16, 16), (8, 128), (2, 256), (8, 256), (1, 512)]
positive = st.floats(1e-6, 1e-1)


@given(overhead=positive, per_token=st.floats(1e-7, 1e-3), per_pair=st.floats(0, 1e-6))
def test_exact_measurements_are_predicted_exactly(overhead: float, per_token: float, per_pair: float) -> None:
    truth = Coefficients(overhead, per_token, per_pair)
    found = fit([(rows, width, truth.seconds(rows, width)) for rows, width in SHAPES])
    for rows, width in [*SHAPES, (3, 77), (32, 64)]:
        assert found.seconds(rows, width) == pytest.approx(truth.seconds(rows, width), rel=1e-3)


@given(st.lists(st.tuples(st.integers(1, 64), st.integers(1, 512), positive), max_size=8))
def test_no_coefficient_is_ever_negative_and_every_prediction_is_positive(measured) -> None:  # type: ignore[no-untyped-def]
    found = fit(measured)
    assert min(found.overhead, found.per_token, found.per_pair) >= 0
    assert found.seconds(1, 1) > 0


def test_nothing_measured_gives_the_defaults() -> None:
    assert fit([]) == Coefficients()


def test_observations_move_the_prediction_to_what_is_seen() -> None:
    model = CostModel(Coefficients(1e-3, 1e-4, 0.0))
    for _ in range(100):
        model.observe(4, 32, 3 * model.coefficients.seconds(4, 32))
    assert model.seconds(4, 32) == pytest.approx(3 * model.coefficients.seconds(4, 32), rel=0.01)


def test_one_disturbed_batch_moves_the_prediction_little() -> None:
    model = CostModel(Coefficients(1e-3, 1e-4, 0.0))
    before = model.seconds(4, 32)
    model.observe(4, 32, 1000.0)
    assert model.seconds(4, 32) < 1.1 * before
