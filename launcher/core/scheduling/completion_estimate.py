"""Predicts when queued work will be done, from the cost models.

Used to reject requests that would miss their deadline, and to compute Retry-After. Every approximation here favours an
earlier finish: batches are assumed to be full, with their overhead paid once and no padding, and an idle instance of
another class is assumed to help at once. A request predicted to be late therefore almost always is; some admitted
requests are late nevertheless.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from launcher.core.scheduling.instance_state import Group, Instance
from launcher.core.scheduling.water_filling import Candidate, common_finish

# Bounds of the relative error that predictions are assumed to have.
MIN_ERROR = 0.1
MAX_ERROR = 0.5


class QueuedWork(NamedTuple):
    """Work of one class: total tokens and pairs of tokens, and the length of its longest relevant item."""

    tokens: int
    pairs: int
    longest: int


class CompletionEstimate(NamedTuple):
    """Seconds until work is done, and the relative error of such predictions so far."""

    seconds: float
    error: float

    @property
    def lower_bound(self) -> float:
        """The lower bound: the seconds it takes if the prediction is too high by its error."""
        return self.seconds * (1 - self.error)


def predict_completion(
    work: QueuedWork, group: Group, groups: Iterable[Group], served: Instance, now: float
) -> CompletionEstimate:
    """When ``work`` of the class of ``group`` is done. ``served`` is the instance whose cost model is used: one of the
    class, or of another class if none of the class is ready."""
    owner, cost = served.group if not group.ready else group, served.cost
    units = max(0.0, cost.seconds(work.tokens, work.pairs) - cost.overhead) * served.speed
    # If all hang, the best guess is the speed that they, or their replacements, will have.
    candidates = owner.candidates(now) or [Candidate(0.0, owner.speed, cost.overhead)]
    longest = (cost.seconds(work.longest, work.longest**2) - cost.overhead) * served.speed
    alone = min([free + overhead + longest / speed for free, speed, overhead in candidates])
    seconds = max(common_finish(units, candidates), alone)
    for other in groups:
        if other is not owner and other.idle:
            helper = other.fastest_idle(work.tokens, work.pairs)
            seconds = min(seconds, helper.cost.seconds(work.tokens, work.pairs))
    return CompletionEstimate(seconds, min(max(cost.error, MIN_ERROR), MAX_ERROR))


def completion_upper_bound(work: QueuedWork, served: Instance, now: float) -> float:
    """Predicted seconds until ``work`` is done if it starts only when all batches already sent are done: an upper
    bound of ``predict_completion``, at a fraction of the cost."""
    cost, group = served.cost, served.group
    units = max(0.0, cost.seconds(work.tokens, work.pairs) - cost.overhead) * served.speed
    longest = cost.seconds(work.longest, work.longest**2)
    return max(0.0, group.busy_until - now) + units / group.speed + longest
