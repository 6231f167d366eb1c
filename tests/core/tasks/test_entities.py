"""Tokens are grouped into entities as in transformers' pipeline, or by the prefixes of BIOES."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from launcher.core.tasks.entities import (
    OUTSIDE,
    Entity,
    default_aggregation,
    is_outside,
    join,
    join_bioes,
    split_label,
)


def found(labels: str, places: list[int] | None = None, grouped: Any = join) -> list[tuple[str, int, int]]:
    names = labels.split()
    tokens = places or list(range(len(names)))
    return [(e.label, e.first, e.last) for e in grouped(tokens, names, [0.5] * len(names))]


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
        # As in the pipeline: an entity is named after what follows the first hyphen, whatever is before it.
        ("S-PER S-PER", [("PER", 0, 1)]),
        ("B-PER I-PER E-PER", [("PER", 0, 1), ("PER", 2, 2)]),
        ("GEO-LOC GEO-ORG", [("LOC", 0, 0), ("ORG", 1, 1)]),
        ("X-O I-O B-PER", [("PER", 2, 2)]),
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


@pytest.mark.parametrize(
    ("labels", "entities"),
    [
        ("B-PER I-PER E-PER", [("PER", 0, 2)]),
        ("B-PER E-PER B-PER E-PER", [("PER", 0, 1), ("PER", 2, 3)]),
        ("S-PER S-PER S-LOC", [("PER", 0, 0), ("PER", 1, 1), ("LOC", 2, 2)]),
        ("B-PER I-PER L-PER U-PER", [("PER", 0, 2), ("PER", 3, 3)]),
        ("B-LOC M-LOC E-LOC S-LOC", [("LOC", 0, 2), ("LOC", 3, 3)]),
        ("S-PER I-PER E-PER", [("PER", 0, 0), ("PER", 1, 2)]),
        ("B-PER I-LOC E-LOC", [("PER", 0, 0), ("LOC", 1, 2)]),
        ("B-PER O E-PER", [("PER", 0, 0), ("PER", 2, 2)]),
        ("E-PER E-PER", [("PER", 0, 0), ("PER", 1, 1)]),
        ("B-S-X E-S-X", [("S-X", 0, 1)]),
        ("", []),
    ],
)
def test_tokens_are_joined_by_the_prefixes_of_bioes(labels: str, entities: list[tuple[str, int, int]]) -> None:
    assert found(labels, grouped=join_bioes) == entities


def test_a_gap_ends_an_entity_of_bioes_too() -> None:
    assert found("B-PER I-PER E-PER", [1, 2, 5], join_bioes) == [("PER", 1, 2), ("PER", 5, 5)]


@pytest.mark.parametrize(
    ("labels", "aggregation"),
    [
        ("O B-PER I-PER", "simple"),
        ("O PER LOC", "simple"),
        ("O B-S-X I-S-X", "simple"),
        ("O B-PER I-PER E-PER S-PER", "bioes"),
        ("O B-PER I-PER L-PER U-PER", "bioes"),
        ("B-X M-X E-X S-X", "bioes"),
        ("O S-TART", "bioes"),
        ("O S-PER LOC", "simple"),
    ],
)
def test_the_default_follows_the_prefixes_of_the_labels(labels: str, aggregation: str) -> None:
    assert default_aggregation(tuple(labels.split())) == aggregation


def test_labels_outside_of_entities_may_have_a_prefix() -> None:
    assert [is_outside(label) for label in ("O", "B-O", "I-O", "X-O", "OO")] == [True, True, True, False, False]
