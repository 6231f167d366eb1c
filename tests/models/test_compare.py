"""The comparison with the libraries finds results that are slightly wrong, of each kind that it is meant to find."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.models.cases import CASES, ModelCase
from tests.models.compare import Served, lowest_cosine, relative_error
from tests.models.references import Results
from tests.models.texts import TEXTS

EMBEDDER = next(case for case in CASES if case.name == "distilbert-embed")


@pytest.mark.parametrize(
    "changes",
    [{"pooling": "cls"}, {"pooling": "max"}, {"normalize": False}, {"max_length": 71}],
    ids=lambda changes: next(iter(changes)),
)
def test_a_setting_that_is_read_wrongly_is_found(
    changes: Mapping[str, Any], folder_of: Callable[[ModelCase], Path], expected_of: Callable[[ModelCase], Results]
) -> None:
    expected = expected_of(EMBEDDER)
    with Served(folder_of(EMBEDDER), {}) as served:
        assert relative_error(expected, served.results(TEXTS, len(TEXTS))) <= EMBEDDER.bound
    with Served(folder_of(EMBEDDER), {}, changes=changes) as served:
        assert relative_error(expected, served.results(TEXTS, len(TEXTS))) > 100 * EMBEDDER.bound


def test_the_error_is_that_of_the_worst_row_of_any_input() -> None:
    expected = [np.ones((1, 4), np.float32), np.ones((3, 4), np.float32)]
    actual = [rows.copy() for rows in expected]
    actual[1][2] *= 1.25

    assert relative_error(expected, actual) == 0.25
    assert lowest_cosine(expected, actual) < 1


def test_a_missing_row_or_value_is_an_infinite_error() -> None:
    expected = [np.ones((3, 4), np.float32)]

    assert relative_error(expected, [np.ones((2, 4), np.float32)]) == np.inf
    assert relative_error(expected, [np.ones((3, 3), np.float32)]) == np.inf
    assert relative_error(expected, []) == np.inf
    assert not relative_error(expected, [np.full((3, 4), np.nan, np.float32)]) <= 1


def test_scores_near_zero_are_compared_with_the_largest_score() -> None:
    expected, actual = [np.array([[1e-9]]), np.array([[2.0]])], [np.array([[2e-9]]), np.array([[2.0]])]

    assert relative_error(expected, actual) < 1e-8
