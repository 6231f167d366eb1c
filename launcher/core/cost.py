"""What a batch costs, in seconds: a model fitted to measurements and corrected by what is then observed.

A padded batch of ``rows`` × ``width`` tokens is predicted as

    overhead + per_token · rows · width + per_pair · rows · width²

(the second term is the matrix products over tokens, the third the attention over pairs of tokens). Each instance
has a model of its own, since instances differ in size and cores differ in speed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

Measurement = tuple[int, int, float]  # rows, width in tokens, seconds

# Used until something is measured: one slow core and a small model. Only ratios matter so early.
DEFAULT_OVERHEAD = 2e-3
DEFAULT_PER_TOKEN = 1e-4
# Weight of a new observation; about the last thirty batches count.
OBSERVATION_WEIGHT = 1 / 16
# A single batch may be disturbed by anything on the machine; it cannot move the correction further than this.
LARGEST_SURPRISE = 4.0


@dataclass(frozen=True, slots=True)
class Coefficients:
    """Of the formula above: seconds, seconds per token, seconds per pair of tokens; none is negative."""

    overhead: float = DEFAULT_OVERHEAD
    per_token: float = DEFAULT_PER_TOKEN
    per_pair: float = 0.0

    def seconds(self, rows: int, width: int) -> float:
        """Predicted duration of a padded batch."""
        tokens = rows * width
        return self.overhead + tokens * (self.per_token + self.per_pair * width)


def fit(measurements: Sequence[Measurement]) -> Coefficients:
    """The coefficients that fit the measurements best in relative error, none negative.

    Coefficients that come out negative are left out one by one and the rest fitted again (the active-set step of
    non-negative least squares). Without measurements the defaults are returned.
    """
    usable = [m for m in measurements if m[0] > 0 and m[1] > 0 and m[2] > 0]
    if not usable:
        return Coefficients()
    table = np.array([(1.0, rows * width, rows * width**2) for rows, width, _ in usable])
    seconds = np.array([m[2] for m in usable])
    active = list(range(min(3, len(usable))))
    # Dividing each row by its duration turns squared errors into squared relative errors.
    weighted, target = table / seconds[:, None], np.ones(len(usable))
    while active:
        scale = weighted[:, active].max(axis=0)
        solution = np.linalg.lstsq(weighted[:, active] / scale, target, rcond=None)[0] / scale
        if (solution >= 0).all():
            break
        active.remove(active[int(np.argmin(solution * scale))])
    found = [0.0, 0.0, 0.0]
    for position, value in zip(active, solution if active else (), strict=True):
        found[position] = float(value)
    if found[1] == found[2] == 0.0:  # a single shape measured: all of it is put down to its tokens
        found = [0.0, float((seconds / table[:, 1]).mean()), 0.0]
    return Coefficients(*found)


class CostModel:
    """The prediction for one instance: fitted coefficients times a correction that follows the observations."""

    def __init__(self, coefficients: Coefficients | None = None) -> None:
        self.coefficients = coefficients or Coefficients()
        self.correction = 1.0

    def seconds(self, rows: int, width: int) -> float:
        """Predicted duration of a padded batch of ``rows`` × ``width`` tokens."""
        return self.correction * self.coefficients.seconds(rows, width)

    @property
    def overhead(self) -> float:
        """Seconds that a batch costs whatever is in it."""
        return self.correction * self.coefficients.overhead

    @property
    def per_token(self) -> float:
        """Seconds that one more token costs, attention left out."""
        return self.correction * self.coefficients.per_token

    def item_seconds(self, count: int, tokens: int, squares: int) -> float:
        """Predicted duration of ``count`` items without padding, in one batch; ``squares`` is Σ length²."""
        if not count:
            return 0.0
        c = self.coefficients
        return self.correction * (c.overhead + c.per_token * tokens + c.per_pair * squares)

    def observe(self, rows: int, width: int, seconds: float) -> None:
        """Take in what a batch really took."""
        predicted = self.coefficients.seconds(rows, width)
        if predicted <= 0 or seconds <= 0:
            return
        ratio = seconds / predicted / self.correction
        bounded = min(max(ratio, 1 / LARGEST_SURPRISE), LARGEST_SURPRISE)
        self.correction *= bounded**OBSERVATION_WEIGHT
