"""Sums of queued work by rank: how much of it has a rank after a given time, and so will not delay a request.

Separate from the queue because it is pure arithmetic. Work is counted in bins of ranks, and these in coarser bins
(three levels), so that a sum over a thousand seconds reads about a hundred bins instead of ten thousand. Nothing here
knows items.
"""

from __future__ import annotations

# Width of a bin of the finest level, in seconds of rank.
BIN_SECONDS = 0.1
# 2^WIDTH_BITS bins form one of the next level. With three levels a bin of the last covers 410 s, so it has few bins.
WIDTH_BITS = 6
LEVELS = 3
_LAST = (1 << WIDTH_BITS) - 1


class RankSums:
    """Tokens and pairs by rank, a time in seconds. Work must be removed at the rank at which it was added."""

    def __init__(self) -> None:
        # Tokens and pairs by level and bin number. Empty bins are deleted.
        self._levels: tuple[dict[int, list[int]], ...] = tuple({} for _ in range(LEVELS))

    def __bool__(self) -> bool:
        return bool(self._levels[-1])

    def add(self, rank: float, tokens: int, pairs: int) -> None:
        """Add work; negative numbers remove it."""
        key = int(rank / BIN_SECONDS)
        for level in self._levels:
            entry = level.get(key)
            if entry is None:
                level[key] = [tokens, pairs]
            else:
                entry[0] += tokens
                entry[1] += pairs
                if not entry[0]:
                    del level[key]
            key >>= WIDTH_BITS

    def after(self, rank: float) -> tuple[int, int]:
        """Tokens and pairs at ranks after ``rank``. The bin that contains ``rank`` is assumed to be filled evenly."""
        position = rank / BIN_SECONDS
        key, part = int(position), 1 - position % 1
        tokens, pairs = self._levels[0].get(key, (0, 0))
        tokens, pairs = int(part * tokens), int(part * pairs)
        for level in self._levels[:-1]:
            for entry in map(level.get, range(key + 1, (key | _LAST) + 1)) if level else ():
                if entry:
                    tokens += entry[0]
                    pairs += entry[1]
            key >>= WIDTH_BITS
        for number, entry in self._levels[-1].items():
            if number > key:
                tokens += entry[0]
                pairs += entry[1]
        return tokens, pairs
