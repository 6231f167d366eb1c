"""How much work waits that has a later rank than a given time: what a request will not have to wait for.

Separate from the queue because it is nothing but sums. They are kept in bins of ranks, and those again in bins of
bins, so that a sum over a thousand seconds of ranks looks at about a hundred bins and not at ten thousand. Nothing
in here knows items.
"""

from __future__ import annotations

# Seconds of ranks that are counted together at the finest.
BIN_SECONDS = 0.1
# So many bins make one of the next level. With three levels a bin of the last has 410 s: few are ever there.
WIDTH_BITS = 6
LEVELS = 3
_LAST = (1 << WIDTH_BITS) - 1


class RankSums:
    """Tokens and pairs by rank, a time in seconds. What is taken out must have been put in with the same rank."""

    def __init__(self) -> None:
        # By level and number of a bin: tokens and pairs. Empty bins are not kept.
        self._levels: tuple[dict[int, list[int]], ...] = tuple({} for _ in range(LEVELS))

    def __bool__(self) -> bool:
        return bool(self._levels[-1])

    def add(self, rank: float, tokens: int, pairs: int) -> None:
        """Put work in; take it out with negative numbers."""
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

    def later(self, rank: float) -> tuple[int, int]:
        """Tokens and pairs of later ranks. The bin that ``rank`` lies in counts as if it were filled evenly."""
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
