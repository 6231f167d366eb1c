"""Words of a command with the place of their instance in them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from launcher.core.planning.placeholders import NAMES, fill, values_of
from launcher.core.planning.plan import InstancePlan

INSTANCE = InstancePlan(3, (4, 5, 7), (4, 5, 7), 3, (0, 1), "interleave", None, "For a test.")
VALUES = values_of(INSTANCE, 8)


def test_every_name_stands_for_what_the_plan_says() -> None:
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


def test_on_a_machine_without_nodes_there_is_nothing_to_name() -> None:
    alone = InstancePlan(0, (0,), (0,), 1, (), "local", None, "For a test.")
    assert fill(["[{nodes}]"], values_of(alone, 1)) == ("[]",)


@given(st.text(alphabet="{}instaceodhrpu0 ,\\", max_size=40))
def test_a_word_without_a_known_name_stays_as_it_is(word: str) -> None:
    known = any("{" + name + "}" in word for name in NAMES)
    assert known or fill([word], VALUES) == (word,)
