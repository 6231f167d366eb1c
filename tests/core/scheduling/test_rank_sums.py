"""Sums by rank against what adding up one by one gives."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from launcher.core.scheduling.rank_sums import BIN_SECONDS, RankSums

RANKS = st.floats(0, 50) | st.floats(0, 5000) | st.floats(1e6, 1e6 + 5000)
ENTRIES = st.lists(st.tuples(RANKS, st.integers(1, 512)), max_size=60)


def filled(entries: list[tuple[float, int]]) -> RankSums:
    sums = RankSums()
    for rank, tokens in entries:
        sums.add(rank, tokens, tokens**2)
    return sums


@given(ENTRIES, RANKS)
def test_what_is_later_is_counted_but_for_the_bin_of_the_rank_itself(
    entries: list[tuple[float, int]], rank: float
) -> None:
    tokens, pairs = filled(entries).later(rank)
    here = int(rank / BIN_SECONDS)
    least = [t for r, t in entries if int(r / BIN_SECONDS) > here]
    most = [t for r, t in entries if int(r / BIN_SECONDS) >= here]
    assert sum(least) <= tokens <= sum(most)
    assert sum(t * t for t in least) <= pairs <= sum(t * t for t in most)


@given(ENTRIES, ENTRIES, RANKS)
def test_what_is_taken_out_leaves_nothing_behind(
    stay: list[tuple[float, int]], leave: list[tuple[float, int]], rank: float
) -> None:
    sums = filled([*stay, *leave])
    for entry_rank, tokens in leave:
        sums.add(entry_rank, -tokens, -(tokens**2))
    assert sums.later(rank) == filled(stay).later(rank)
    assert bool(sums) == bool(stay)
    assert sum(map(len, sums._levels)) <= 3 * len(stay)
