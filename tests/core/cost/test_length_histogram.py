"""Length histograms: both formats give the same result, and invalid input is refused with its position."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from launcher.core.cost.length_histogram import MAX_LENGTH, parse_histogram
from launcher.errors import UsageError

counts = st.dictionaries(st.integers(1, MAX_LENGTH), st.integers(1, 10**9), min_size=1, max_size=50)


@given(counts, st.sampled_from([" ", "\t", ",", ", ", ": ", "   "]))
def test_lines_and_json_give_the_same_ascending_histogram(wanted: dict[int, int], separator: str) -> None:
    lines = "\n".join(f"{tokens}{separator}{count}" for tokens, count in wanted.items())
    found = parse_histogram(lines)
    assert found == parse_histogram(json.dumps({str(tokens): count for tokens, count in wanted.items()}))
    assert dict(found.counts) == wanted
    assert list(found.counts) == sorted(found.counts)


@given(counts, st.floats(0, 100))
def test_percentiles_are_lengths_that_occur_and_split_the_weight(wanted: dict[int, int], percent: float) -> None:
    histogram = parse_histogram(json.dumps(wanted))
    length = histogram.percentile(percent)
    assert length in wanted
    within = sum(count for tokens, count in wanted.items() if tokens <= length)
    below = sum(count for tokens, count in wanted.items() if tokens < length)
    total = sum(wanted.values())
    assert within >= percent / 100 * total * (1 - 1e-9)
    assert below <= percent / 100 * total * (1 + 1e-9)


def test_mean_and_total_count_every_item() -> None:
    histogram = parse_histogram("10 3\n50 1\n")
    assert (histogram.total, histogram.mean) == (4.0, 20.0)
    assert [histogram.percentile(percent) for percent in (0, 75, 76, 100)] == [10, 10, 50, 50]


def test_comments_blank_lines_and_zero_counts_are_ignored_and_repeated_lengths_add_up() -> None:
    assert parse_histogram("# tokens count\n\n 8 2 # short\n9 0\n8 0.5\n").counts == ((8, 2.5),)
    assert parse_histogram('{"8": 2, "9": 0, "8": 0.5}').counts == ((8, 2.5),)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", ["empty"]),
        (" \n", ["empty"]),
        ("# only a comment", ["no length has a count"]),
        ("8 0", ["no length has a count"]),
        ("{}", ["no length has a count"]),
        ("8 1\n26\n", ["line 2", "'26'"]),
        ("8 1 2", ["line 1", "'8 1 2'"]),
        ("the quick brown fox", ["line 1"]),
        ("tokens count\n8 1", ["line 1", "'tokens'", "length"]),
        ("0 5", ["line 1", "'0'", "from 1 to"]),
        ("-3 5", ["'-3'"]),
        ("8.5 5", ["'8.5'"]),
        ("99999999 5", ["'99999999'"]),
        ("²  5", ["'²'"]),
        ("8 many", ["line 1", "'many'", "count"]),
        ("8 -1", ["'-1'"]),
        ("8 nan", ["'nan'"]),
        ("8 inf", ["'inf'"]),
        ("[8, 1]", ["not an object"]),
        ("{", ["JSON"]),
        ('{"8": "x"}', ["the entry '8'", "'x'"]),
        ('{"8": true}', ["'True'"]),
        ('{"8": null}', ["'None'"]),
        ('{"8": {"9": 1}}', ["the entry '8'"]),
        ('{"short": 1}', ["'short'", "length"]),
        ("[" * 100_000, ["JSON"]),
    ],
)
def test_invalid_histograms_are_refused_with_the_expected_format(text: str, words: list[str]) -> None:
    with pytest.raises(UsageError) as refused:
        parse_histogram(text)
    for word in [*words, "tokens count"]:
        assert word in str(refused.value)
    assert len(str(refused.value)) < 400
