"""Splits work over instances of different speeds so that all of them finish at the same time (water-filling).

A pure function of when each instance is free, its speed, and the overhead of a batch. Separate from the scheduler
because splitting, the ready batch and completion estimates must all follow the same arithmetic. Queues and items do
not belong here.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

# A share must take at least this many times the overhead of its batch.
SHARE_OVER_OVERHEAD = 3.0


class Candidate(NamedTuple):
    """An instance that could take a share: seconds until it is free, units of work per second, and the fixed cost of
    a batch in seconds."""

    free: float
    speed: float
    overhead: float


def common_finish(work: float, candidates: Sequence[Candidate]) -> float:
    """Seconds until ``work`` units are done, if they are shared so that all participants finish together.

    Candidates join in the order in which they can start, faster ones first, as long as their share is worth its
    overhead. Solves work = Σ speed · (end - free - overhead) over the participants; infinite without candidates.
    """
    end, speed, begun = float("inf"), 0.0, work
    for candidate in sorted(candidates, key=_begins):
        wider = speed + candidate.speed
        later = begun + candidate.speed * (candidate.free + candidate.overhead)
        if speed and later / wider - candidate.free < SHARE_OVER_OVERHEAD * candidate.overhead:
            break
        speed, begun, end = wider, later, later / wider
    return end


def _begins(candidate: Candidate) -> tuple[float, float]:
    return candidate.free + candidate.overhead, -candidate.speed
