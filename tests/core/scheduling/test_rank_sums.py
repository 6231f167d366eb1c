"""Sums by rank, compared with plain sums."""

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
def test_later_work_is_counted_exactly_except_in_the_bin_of_the_rank(
    entries: list[tuple[float, int]], rank: float
) -> None:
    tokens, pairs = filled(entries).after(rank)
    here = int(rank / BIN_SECONDS)
    least = [t for r, t in entries if int(r / BIN_SECONDS) > here]
    most = [t for r, t in entries if int(r / BIN_SECONDS) >= here]
    assert sum(least) <= tokens <= sum(most)
    assert sum(t * t for t in least) <= pairs <= sum(t * t for t in most)


@given(ENTRIES, ENTRIES, RANKS)
def test_removed_work_leaves_no_trace(
    stay: list[tuple[float, int]], leave: list[tuple[float, int]], rank: float
) -> None:
    sums = filled([*stay, *leave])
    for entry_rank, tokens in leave:
        sums.add(entry_rank, -tokens, -(tokens**2))
    assert sums.after(rank) == filled(stay).after(rank)
    assert bool(sums) == bool(stay)
    assert sum(map(len, sums._levels)) <= 3 * len(stay)
