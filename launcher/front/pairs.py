"""Pairs of texts as one sequence of tokens: where the special tokens are, and which tokens truncation keeps.

Separate from ``tokenizer`` because this is arithmetic on the parts of a pair, by the rules of the tokenizers library
(``utils/truncation.rs``), which truncates each text before it adds special tokens. Here the special tokens are there
already, since lengths are checked before anything is truncated. Limits and errors do not belong here.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Literal

from tokenizers import Encoding

Pair = tuple[str, str]
PairTruncation = Literal["longest_first", "only_first", "only_second"]
"""Which text of a pair is truncated, under the names of transformers: ``longest_first`` removes tokens of the longer
text until both have the same length, and then of both."""


@dataclass(frozen=True, slots=True)
class PairLayout:
    """The number of special tokens before the first text, between the texts, and after the second one."""

    before: int
    between: int
    after: int

    @classmethod
    def of(cls, probe: Encoding) -> PairLayout | None:
        """The layout that a tokenizer uses, from a pair of texts without special tokens; ``None`` if its template does
        not have the first text before the second one."""
        runs = [(side, len(list(run))) for side, run in groupby(probe.sequence_ids)]
        texts = [place for place, (side, _) in enumerate(runs) if side is not None]
        if [runs[place][0] for place in texts] != [0, 1]:
            return None
        first, second = texts
        before, between, after = runs[:first], runs[first + 1 : second], runs[second + 1 :]
        return cls(*(sum(length for _, length in part) for part in (before, between, after)))

    @property
    def special_tokens(self) -> int:
        """The number of special tokens of a pair."""
        return self.before + self.between + self.after

    def tokens_of_first(self, encoding: Encoding) -> int:
        """The number of tokens of the first text. (``Encoding.sequence_ids`` would build a list of all tokens.)"""
        low, high = self.before, len(encoding) - self.between - self.after
        while low < high:
            middle = (low + high) // 2
            if encoding.token_to_sequence(middle) == 0:
                low = middle + 1
            else:
                high = middle
        return low - self.before

    def kept(self, encoding: Encoding, limit: int, truncation: PairTruncation) -> tuple[range, ...] | None:
        """The ranges of tokens that remain if the pair is truncated to ``limit`` tokens; ``None`` if it cannot be,
        because the text that may be truncated is too short."""
        first = self.tokens_of_first(encoding)
        total = len(encoding)
        lengths = kept_lengths(first, total - self.special_tokens - first, limit - self.special_tokens, truncation)
        if lengths is None:
            return None
        second_start = self.before + first
        return (
            range(self.before + lengths[0]),
            range(second_start, second_start + self.between + lengths[1]),
            range(total - self.after, total),
        )


def kept_lengths(first: int, second: int, limit: int, truncation: PairTruncation) -> tuple[int, int] | None:
    """The number of tokens that are kept of each of two texts, which have more than ``limit`` tokens together."""
    if limit < 1:
        return None
    if truncation == "longest_first":
        shorter = min(first, second)
        longer = limit - shorter
        if longer < shorter:
            shorter, longer = limit // 2, limit - limit // 2
        # The odd token goes to the longer text, and to the second of texts of equal length.
        return (longer, shorter) if first > second else (shorter, longer)
    removed = first + second - limit
    if truncation == "only_first":
        return (first - removed, second) if first > removed else None
    return (first, second - removed) if second > removed else None


def take(values: Sequence[int], ranges: Sequence[range]) -> list[int]:
    """The values in these ranges, concatenated."""
    return [value for part in ranges for value in values[part.start : part.stop]]
