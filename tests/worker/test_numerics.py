from __future__ import annotations

import numpy as np
import pytest

from launcher.host.model.resolve import resolve
from launcher.options import ModelOptions
from launcher.worker.numerics import lowest_cosine

MODEL_INFO = resolve(ModelOptions(model="random:tiny"))
ITEMS = [np.ones(length, dtype=np.int32) for length in (7, 5, 3)]


@pytest.mark.parametrize("factor", [3.0, 0.5, -1.0])
def test_a_different_single_score_lowers_the_cosine_although_it_has_no_angle(factor: float) -> None:
    scores = np.array([[0.9], [0.2], [-0.4]], dtype=np.float32)
    assert lowest_cosine(scores, factor * scores, ITEMS, MODEL_INFO) < 0.9


def test_a_single_score_near_zero_may_change_its_sign() -> None:
    scores = np.array([[0.9], [0.001], [-0.4]], dtype=np.float32)
    assert lowest_cosine(scores, scores - np.float32(0.002), ITEMS, MODEL_INFO) > 0.9999


def test_the_cosine_is_that_of_the_worst_item() -> None:
    first = np.array([[1, 0], [0, 1], [1, 0]], dtype=np.float32)
    second = np.array([[2, 0], [0, 3], [1, 1]], dtype=np.float32)
    assert lowest_cosine(first, second, ITEMS, MODEL_INFO) == pytest.approx(np.sqrt(0.5))
