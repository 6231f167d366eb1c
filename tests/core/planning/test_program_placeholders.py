"""Placeholders in the command line of a program."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from launcher.core.planning.plan import InstancePlan
from launcher.core.planning.program_placeholders import NAMES, fill, values_of

INSTANCE = InstancePlan(3, (4, 5, 7), (4, 5, 7), 3, (0, 1), "interleave", None, "For a test.")
VALUES = values_of(INSTANCE, 8)


def test_every_placeholder_has_its_value_from_the_plan() -> None:
    assert dict(VALUES) == {"instance": "3", "instances": "8", "cpus": "4-5,7", "threads": "3", "nodes": "0-1"}
    assert set(VALUES) == set(NAMES)


@pytest.mark.parametrize(
    ("word", "filled"),
    [
        ("--seed={instance}", "--seed=3"),
        ("{instance}-of-{instances}", "3-of-8"),
        ("{{instance}}", "{instance}"),
        ("{{{instance}}}", "{{instance}}"),
        ('{"instance": {instance}, "a": {}}', '{"instance": 3, "a": {}}'),
        ("${instance}", "$3"),
        ("{Instance} {instance } {other} {{other}} {0} {", "{Instance} {instance } {other} {{other}} {0} {"),
        ("", ""),
    ],
)
def test_only_the_known_words_are_replaced(word: str, filled: str) -> None:
    assert fill([word], VALUES) == (filled,)


def test_nodes_are_empty_on_a_machine_without_nodes() -> None:
    alone = InstancePlan(0, (0,), (0,), 1, (), "local", None, "For a test.")
    assert fill(["[{nodes}]"], values_of(alone, 1)) == ("[]",)


@given(st.text(alphabet="{}instaceodhrpu0 ,\\", max_size=40))
def test_a_word_without_a_placeholder_is_unchanged(word: str) -> None:
    known = any("{" + name + "}" in word for name in NAMES)
    assert known or fill([word], VALUES) == (word,)
