"""A histogram of sequence lengths: how often each length occurs in the traffic of a service.

Two formats are accepted: lines of ``tokens count`` (separated by spaces, a comma, a tab or a colon; ``#`` starts a
comment), and a JSON object ``{"tokens": count}``. Counts may be any positive weights. What follows from the lengths
(classes, benchmark texts) is decided elsewhere, and files are read in ``host.files.length_histogram``.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import accumulate

from launcher.core.percentile import nearest_rank
from launcher.errors import UsageError

MAX_LENGTH = 1_000_000  # tokens; a larger number is certainly not a length
EXPECTED = 'expected lines of "tokens count", such as "26 1500", or a JSON object such as {"26": 1500}'

_LINE = re.compile(r"(\S+?)\s*[\s,:]\s*(\S+)")
_SHOWN = 60


@dataclass(frozen=True, slots=True)
class Histogram:
    """``counts`` holds (tokens, weight) in ascending order of tokens; weights are positive, and there is at least
    one."""

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
        """The nearest-rank percentile of the lengths, in tokens."""
        return self.counts[nearest_rank(list(accumulate(weight for _, weight in self.counts)), percent)][0]


def parse_histogram(text: str) -> Histogram:
    """The histogram in ``text``. Raises ``UsageError`` naming the offending line and the expected format."""
    if not text.strip():
        raise UsageError(f"it is empty; {EXPECTED}")
    pairs = _of_json(text) if text.lstrip()[0] in "{[" else _of_lines(text)
    weights: dict[int, float] = {}
    for place, tokens, count in pairs:
        length, weight = _length(tokens, place), _weight(count, place)
        if weight:
            weights[length] = weights.get(length, 0.0) + weight
    if not weights:
        raise UsageError(f"it is empty: no length has a count above 0; {EXPECTED}")
    return Histogram(tuple(sorted(weights.items())))


Pair = tuple[str, object, object]  # position in the text, tokens, count


def _of_lines(text: str) -> Iterable[Pair]:
    for number, line in enumerate(text.splitlines(), 1):
        content = line.partition("#")[0].strip()
        if not content:
            continue
        match = _LINE.fullmatch(content)
        if match is None:
            raise UsageError(f"line {number} contains {_short(content)}; {EXPECTED}")
        yield f"line {number}", match[1], match[2]


def _of_json(text: str) -> Iterable[Pair]:
    try:
        # Pairs, not a dict: the counts of a repeated length add up, as they do in lines.
        found = json.loads(text, object_pairs_hook=_Pairs)
    except (ValueError, RecursionError) as error:
        raise UsageError(f"it is invalid JSON: {error}; {EXPECTED}") from error
    if not isinstance(found, _Pairs):
        raise UsageError(f"it is JSON, but not an object of lengths and counts; {EXPECTED}")
    return [(f"the entry {_short(key)}", key, value) for key, value in found]


class _Pairs(list[tuple[str, object]]):
    """The entries of a JSON object, in order."""


def _length(tokens: object, place: str) -> int:
    text = str(tokens)
    if text.isascii() and text.isdigit() and len(text) <= len(str(MAX_LENGTH)) and 0 < int(text) <= MAX_LENGTH:
        return int(text)
    raise UsageError(
        f"{place}: the length {_short(text)} must be an integer from 1 to {MAX_LENGTH} (tokens); {EXPECTED}"
    )


def _weight(count: object, place: str) -> float:
    if isinstance(count, int | float | str) and not isinstance(count, bool):
        try:
            weight = float(count)
        except (ValueError, OverflowError):
            weight = math.nan
        if 0 <= weight < 1e300:  # keeps their sums finite
            return weight
    raise UsageError(f"{place}: the count {_short(str(count))} must be a number ≥ 0; {EXPECTED}")


def _short(text: str) -> str:
    return repr(text if len(text) <= _SHOWN else text[:_SHOWN] + "…")
