"""Every failure mode has a test, and ``docs/behaviour.md`` lists it (``tests/test_docs.py`` compares the page)."""

from __future__ import annotations

import pytest

from tests.faults.modes import MODES, names_by_mode

NUMBERS = range(1, 70)


def test_the_modes_are_numbered_without_gaps() -> None:
    assert [mode.number for mode in MODES] == list(NUMBERS)


@pytest.mark.parametrize("number", NUMBERS)
def test_each_mode_has_a_test(number: int) -> None:
    assert names_by_mode().get(number)


def test_no_test_is_named_after_a_mode_that_does_not_exist() -> None:
    assert set(names_by_mode()) <= set(NUMBERS)
