"""When work that waits will be done, as far as the cost models know.

Used to refuse what would come too late, and to say when to come back. Every choice in here is for the earlier
finish: batches are taken to be full and their overhead to be paid once, nothing to be padded, and a class that is
behind to be helped at once by an idle instance of another. So what is predicted to be too late nearly always is, and
some of what is let in is late.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from launcher.core.scheduling.instances import Group, Instance
from launcher.core.scheduling.water_filling import Taker, common_end

# Predictions are taken to be off by at least this part, and by at most that.
LEAST_ERROR = 0.1
MOST_ERROR = 0.5


class Waiting(NamedTuple):
    """Work of one class: tokens and pairs of tokens of all of it, and the length of its longest item of interest."""

    tokens: int
    pairs: int
    longest: int


class Prediction(NamedTuple):
    """Seconds until work is done, and the part by which such predictions have been off."""

    seconds: float
    error: float

    @property
    def at_least(self) -> float:
        """Seconds that it will take even if the prediction is too high by its error."""
        return self.seconds * (1 - self.error)


def predict(work: Waiting, group: Group, groups: Iterable[Group], served: Instance, now: float) -> Prediction:
    """When ``work`` of a class is done. ``served`` is an instance by whose cost model the work is measured: one of
    the class, or of another where none of the class is ready."""
    owner, cost = served.group if not group.ready else group, served.cost
    units = max(0.0, cost.seconds(work.tokens, work.pairs) - cost.overhead) * served.speed
    # Where all hang, what is known is how fast they, or those who replace them, are.
    takers = owner.takers(now) or [Taker(0.0, owner.speed, cost.overhead)]
    longest = (cost.seconds(work.longest, work.longest**2) - cost.overhead) * served.speed
    alone = min([free + overhead + longest / speed for free, speed, overhead in takers])
    seconds = max(common_end(units, takers), alone)
    for other in groups:
        if other is not owner and other.idle:
            helper = other.fastest_idle(work.tokens, work.pairs)
            seconds = min(seconds, helper.cost.seconds(work.tokens, work.pairs))
    return Prediction(seconds, min(max(cost.error, LEAST_ERROR), MOST_ERROR))


def at_most(work: Waiting, served: Instance, now: float) -> float:
    """Seconds that ``work`` is predicted to take if it begins when all that was sent is done: more than ``predict``
    says, and found in a fraction of the time."""
    cost, group = served.cost, served.group
    units = max(0.0, cost.seconds(work.tokens, work.pairs) - cost.overhead) * served.speed
    longest = cost.seconds(work.longest, work.longest**2)
    return max(0.0, group.busy_until - now) + units / group.speed + longest
