"""Tokens are grouped into entities like transformers' aggregation strategy ``simple``."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from launcher.core.tasks.entities import OUTSIDE, Entity, join, split_label


def found(labels: str, places: list[int] | None = None) -> list[tuple[str, int, int]]:
    names = labels.split()
    tokens = places or list(range(len(names)))
    return [(e.label, e.first, e.last) for e in join(tokens, names, [0.5] * len(names))]


@pytest.mark.parametrize(
    ("labels", "entities"),
    [
        ("O O O", []),
        ("B-PER I-PER O", [("PER", 0, 1)]),
        ("O B-PER", [("PER", 1, 1)]),
        ("B-PER B-PER I-PER", [("PER", 0, 0), ("PER", 1, 2)]),
        ("I-PER I-PER", [("PER", 0, 1)]),
        ("O I-LOC I-LOC B-LOC", [("LOC", 1, 2), ("LOC", 3, 3)]),
        ("B-PER I-ORG I-ORG", [("PER", 0, 0), ("ORG", 1, 2)]),
        ("B-PER O I-PER", [("PER", 0, 0), ("PER", 2, 2)]),
        ("PER PER LOC", [("PER", 0, 1), ("LOC", 2, 2)]),
        ("PER I-PER B-PER", [("PER", 0, 1), ("PER", 2, 2)]),
        ("B-sub-loc I-sub-loc", [("sub-loc", 0, 1)]),
        ("B- I-", [("", 0, 1)]),
        ("", []),
    ],
)
def test_consecutive_tokens_of_one_entity_are_joined(labels: str, entities: list[tuple[str, int, int]]) -> None:
    assert found(labels) == entities


def test_a_gap_in_the_positions_ends_an_entity() -> None:
    assert found("I-PER I-PER I-PER", [1, 2, 5]) == [("PER", 1, 2), ("PER", 5, 5)]


def test_the_score_is_the_mean_over_the_tokens() -> None:
    entities = list(join([4, 5, 6, 7], ["B-PER", "I-PER", "I-PER", "B-PER"], [0.5, 0.75, 1.0, 0.25]))
    assert entities == [Entity("PER", 0.75, 4, 6), Entity("PER", 0.25, 7, 7)]


@given(st.lists(st.sampled_from(["O", "B-A", "I-A", "B-B", "I-B", "A"]), max_size=30))
def test_each_labelled_token_is_in_exactly_one_entity_of_its_name(labels: list[str]) -> None:
    entities = list(join(range(len(labels)), labels, [0.5] * len(labels)))

    covered = [token for entity in entities for token in range(entity.first, entity.last + 1)]
    assert covered == [token for token, label in enumerate(labels) if label != OUTSIDE]
    for entity in entities:
        parts = [split_label(label) for label in labels[entity.first : entity.last + 1]]
        assert {name for _, name in parts} == {entity.label}
        assert not any(begins for begins, _ in parts[1:])
    for before, after in itertools.pairwise(entities):
        begins = labels[after.first].startswith("B-")
        assert begins or before.label != after.label or before.last + 1 < after.first
