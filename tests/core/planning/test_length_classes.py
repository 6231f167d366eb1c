"""Length classes: closed ranges from 1 to the limit, without gaps or overlaps, in any order of entries."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from launcher.core.planning.length_classes import ClassSpec, LengthClass, parse_classes, resolve_classes
from launcher.errors import UsageError


def names(text: str, limit: int | None = None) -> list[str]:
    return [one.name for one in resolve_classes(parse_classes(text), limit)]


def test_ranges_meet_at_the_bounds() -> None:
    assert names("32:8,384:16,max:24", 512) == ["1-32", "33-384", "385-512"]


def test_the_longest_class_is_open_while_the_model_is_unknown() -> None:
    assert names("32:1,max:1") == ["1-32", "33-max"]


def test_order_and_spaces_do_not_matter() -> None:
    assert parse_classes(" max : 24 ,384:16, 32:8") == parse_classes("32:8,384:16,max:24")


def test_one_class_takes_everything() -> None:
    assert names("max:4", 512) == ["1-512"]


def test_a_repeated_length_gives_two_instances_of_one_class() -> None:
    assert names("32:4,32:4,max:8", 512) == ["1-32", "1-32", "33-512"]


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("", "LENGTH:CORES"),
        (",", "LENGTH:CORES"),
        ("32", "LENGTH:CORES"),
        ("32:", "LENGTH:CORES"),
        (":4", "LENGTH:CORES"),
        ("32:4,", "LENGTH:CORES"),
        ("32:4:5,max:1", "LENGTH:CORES"),
        ("32:4.5,max:1", "LENGTH:CORES"),
        ("-5:4,max:1", "range"),
        ("32:-4,max:1", "LENGTH:CORES"),
        ("²:4,max:1", "LENGTH:CORES"),
        ("٣:4,max:1", "LENGTH:CORES"),
        ("32:٣,max:1", "LENGTH:CORES"),
        ("MAX:4", "LENGTH:CORES"),
        ("9" * 5000 + ":4,max:1", "LENGTH:CORES"),
        ("32:" + "9" * 5000 + ",max:1", "LENGTH:CORES"),
        ("0:4,max:1", "at least 1"),
        ("32:0,max:1", "at least 1"),
        ("1-32:4,33-384:8,max:8", "no gaps or overlaps"),
        ("32:8,384:16", "more than 384 tokens"),
    ],
)
def test_an_invalid_list_of_classes_is_refused_with_the_expected_form(text: str, word: str) -> None:
    with pytest.raises(UsageError, match=word):
        parse_classes(text)


@pytest.mark.parametrize("text", ["512:8,max:4", "32:1,600:2,max:4"])
def test_a_class_beyond_the_model_is_refused_with_the_limit(text: str) -> None:
    with pytest.raises(UsageError, match="512"):
        resolve_classes(parse_classes(text), 512)


SPECS = st.lists(st.tuples(st.integers(1, 511), st.integers(1, 8)), max_size=6)


@settings(deadline=None)
@given(SPECS, st.integers(1, 8), st.sampled_from([None, 512]))
def test_every_length_belongs_to_exactly_one_range(
    entries: list[tuple[int, int]], rest: int, limit: int | None
) -> None:
    text = ",".join([f"{length}:{cores}" for length, cores in entries] + [f"max:{rest}"])
    specs = parse_classes(text)
    classes = resolve_classes(specs, limit)
    assert sorted(spec.cores for spec in specs) == sorted([rest, *(cores for _, cores in entries)])
    for length in range(1, 513):
        assert len({one for one in classes if one.admits(length)}) == 1
    for spec, one in zip(specs, classes, strict=True):
        assert one.max_length == (limit if spec.max_length is None else spec.max_length)


def test_an_open_class_admits_any_length_from_its_start() -> None:
    one = LengthClass(33, None)
    assert not one.admits(32)
    assert one.admits(33)
    assert one.admits(1_000_000)


def test_specs_keep_the_cores_of_each_entry() -> None:
    assert parse_classes("max:24,32:8") == (ClassSpec(32, 8), ClassSpec(None, 24))
