"""A histogram of sequence lengths: how often each length occurs in somebody's traffic.

Two forms are read: lines of ``tokens count`` (also with a comma, a tab or a colon between them; ``#`` begins a
comment), and a JSON object ``{"tokens": count}``. Counts may be any positive weights. What follows from
lengths (classes, texts to measure with) is decided elsewhere, and so is where the text comes from.
"""

from __future__ import annotations

import json
import math
import re
from bisect import bisect_left
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import accumulate

from launcher.errors import UsageError

LONGEST = 1_000_000  # tokens; a larger number is no length but something else
WHAT_WORKS = 'lines of "tokens count", such as "26 1500", or a JSON object such as {"26": 1500} is what works'

_LINE = re.compile(r"(\S+?)\s*[\s,:]\s*(\S+)")
_SHOWN = 60


@dataclass(frozen=True, slots=True)
class Histogram:
    """``counts`` are (tokens, weight), ascending, each length once, all weights positive; never empty."""

    counts: tuple[tuple[int, float], ...]

    @property
    def total(self) -> float:
        """The sum of all weights."""
        return math.fsum(weight for _, weight in self.counts)

    @property
    def mean(self) -> float:
        """The mean length in tokens."""
        return math.fsum(tokens * weight for tokens, weight in self.counts) / self.total

    def percentile(self, percent: float) -> int:
        """The shortest length, in tokens, that at least ``percent`` of the weight does not exceed."""
        sums = list(accumulate(weight for _, weight in self.counts))
        place = bisect_left(sums, percent / 100 * sums[-1])
        return self.counts[min(place, len(sums) - 1)][0]


def parse_histogram(text: str) -> Histogram:
    """The histogram that a text describes. Raises ``UsageError`` saying which line is none and what would be."""
    if not text.strip():
        raise UsageError(f"it is empty; {WHAT_WORKS}")
    pairs = _of_json(text) if text.lstrip()[0] in "{[" else _of_lines(text)
    weights: dict[int, float] = {}
    for place, tokens, count in pairs:
        length, weight = _length(tokens, place), _weight(count, place)
        if weight:
            weights[length] = weights.get(length, 0.0) + weight
    if not weights:
        raise UsageError(f"it counts nothing: no length has a count over 0; {WHAT_WORKS}")
    return Histogram(tuple(sorted(weights.items())))


Pair = tuple[str, object, object]  # where it stands, tokens, count


def _of_lines(text: str) -> Iterable[Pair]:
    for number, line in enumerate(text.splitlines(), 1):
        content = line.partition("#")[0].strip()
        if not content:
            continue
        match = _LINE.fullmatch(content)
        if match is None:
            raise UsageError(f"line {number} is {_short(content)}; {WHAT_WORKS}")
        yield f"line {number}", match[1], match[2]


def _of_json(text: str) -> Iterable[Pair]:
    try:
        # Pairs, not a dict: a length that stands twice counts twice, as it does in lines.
        found = json.loads(text, object_pairs_hook=_Pairs)
    except (ValueError, RecursionError) as error:
        raise UsageError(f"it begins like JSON and is none: {error}; {WHAT_WORKS}") from error
    if not isinstance(found, _Pairs):
        raise UsageError(f"it is JSON, but no object of lengths and counts; {WHAT_WORKS}")
    return [(f"the entry {_short(key)}", key, value) for key, value in found]


class _Pairs(list[tuple[str, object]]):
    """An object of JSON in its order."""


def _length(tokens: object, place: str) -> int:
    text = str(tokens)
    if text.isascii() and text.isdigit() and len(text) <= len(str(LONGEST)) and 0 < int(text) <= LONGEST:
        return int(text)
    raise UsageError(
        f"{place} has {_short(text)} where a length belongs, a whole number of tokens from 1 to {LONGEST}; {WHAT_WORKS}"
    )


def _weight(count: object, place: str) -> float:
    if isinstance(count, int | float | str) and not isinstance(count, bool):
        try:
            weight = float(count)
        except (ValueError, OverflowError):
            weight = math.nan
        if 0 <= weight < 1e300:  # below, sums of them stay finite
            return weight
    raise UsageError(f"{place} has {_short(str(count))} where a count belongs, a number of at least 0; {WHAT_WORKS}")


def _short(text: str) -> str:
    return repr(text if len(text) <= _SHOWN else text[:_SHOWN] + "…")
