"""How work is split over instances of any size so that all who take part end at the same time.

A pure function of when each could begin, how fast it is and what one more batch costs it. Separate from the scheduler
because splitting, the ready batch and the prediction of a finish are to follow from the same arithmetic. Queues and
items must not enter.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

# A share must be worth this many times the overhead of the batch that carries it.
SHARE_OVER_OVERHEAD = 3.0


class Taker(NamedTuple):
    """One that could take a share: seconds until it could begin, units of work that it does in a second, and seconds
    that a batch costs it whatever is in it."""

    free: float
    speed: float
    overhead: float


def common_end(work: float, takers: Sequence[Taker]) -> float:
    """Seconds until ``work`` units are done, shared so that all who take part end together.

    Those who can begin first take part first, the faster ones before the slower; the others as long as their share is
    worth its overhead. It solves work = Σ speed · (end - free - overhead) over those who take part; infinite without
    takers.
    """
    end, speed, begun = float("inf"), 0.0, work
    for taker in sorted(takers, key=_begins):
        wider = speed + taker.speed
        later = begun + taker.speed * (taker.free + taker.overhead)
        if speed and later / wider - taker.free < SHARE_OVER_OVERHEAD * taker.overhead:
            break
        speed, begun, end = wider, later, later / wider
    return end


def _begins(taker: Taker) -> tuple[float, float]:
    return taker.free + taker.overhead, -taker.speed
