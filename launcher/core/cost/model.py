"""What a batch costs, in seconds: a model fitted to measurements and corrected by what is then observed.

A batch is predicted from the work that is in it as

    overhead + per_token · tokens + per_pair · pairs

where tokens are those that are computed, padding counted, and pairs are those of tokens that attend to each other:
Σ length² for packed items, rows · width² for padded ones. The second term is the matrix products, the third the
attention. Each instance has a model of its own, since instances differ in size and cores differ in speed.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np


class Work(NamedTuple):
    """What is computed for a batch: ``tokens``, padding counted, and ``pairs`` of them that attend to each other."""

    items: int
    tokens: int
    pairs: int


Measurement = tuple[int, int, int, float]  # items, tokens and pairs as in Work, seconds


def work_of(lengths: Sequence[int], *, packed: bool) -> Work:
    """The work in a batch of items of these lengths, longest first: packed one behind the other, or padded."""
    count = len(lengths)
    if packed:
        return Work(count, sum(lengths), sum([length * length for length in lengths]))
    width = lengths[0] if count else 0
    return Work(count, count * width, count * width * width)


# Used until something is measured: one slow core and a small model. Only ratios matter so early.
DEFAULT_OVERHEAD = 2e-3
DEFAULT_PER_TOKEN = 1e-4
# Weight of a new observation; about the last thirty batches count.
OBSERVATION_WEIGHT = 1 / 16
# A single batch may be disturbed by anything on the machine; it cannot move the correction further than this.
LARGEST_SURPRISE = 4.0
# What was seen is worth keeping for a later run after so many batches. Single ones are off by a tenth or two, so that
# their mean is within 1 %; and a disturbance of a second, which is some ten batches, does not make it.
SETTLED_BATCHES = 256
# And when the last batches agree with the mean of so many: by chance they are apart by 3 %.
SETTLED_WITHIN = 0.1


@dataclass(frozen=True, slots=True)
class Coefficients:
    """Of the formula above: seconds, seconds per token, seconds per pair of tokens; none is negative."""

    overhead: float = DEFAULT_OVERHEAD
    per_token: float = DEFAULT_PER_TOKEN
    per_pair: float = 0.0

    def seconds(self, tokens: int, pairs: int) -> float:
        """Predicted duration of a batch."""
        return self.overhead + self.per_token * tokens + self.per_pair * pairs

    def times(self, factor: float) -> Coefficients:
        """Those of batches that take ``factor`` times as long."""
        return Coefficients(self.overhead * factor, self.per_token * factor, self.per_pair * factor)


def fit(measurements: Sequence[Measurement]) -> Coefficients:
    """The coefficients that fit the measurements best in relative error, none negative.

    Coefficients that come out negative are left out one by one and the rest fitted again (the active-set step of
    non-negative least squares). Without measurements the defaults are returned.
    """
    usable = [m for m in measurements if m[1] > 0 and m[2] > 0 and m[3] > 0]
    if not usable:
        return Coefficients()
    table = np.array([(1.0, tokens, pairs) for _, tokens, pairs, _ in usable])
    seconds = np.array([m[3] for m in usable])
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


def fit_error(coefficients: Coefficients, measurements: Sequence[Measurement]) -> float | None:
    """How far the coefficients are off, relative to what was measured: the median; None without measurements."""
    errors = [abs(coefficients.seconds(m[1], m[2]) / m[3] - 1) for m in measurements if m[3] > 0]
    return float(np.median(errors)) if errors else None


class CostModel:
    """The prediction for one instance: fitted coefficients times a correction that follows the observations.

    ``drift`` is what the correction begins with: what batches took at earlier runs, in parts of what was measured.
    """

    def __init__(self, coefficients: Coefficients | None = None, drift: float = 1.0) -> None:
        self.coefficients = coefficients or Coefficients()
        self.drift_at_start = drift
        self.correction = drift
        self._mean_log = 0.0
        # How far predictions were off, relative to what was seen: the mean, of about the last batches once they are
        # many. ``observed`` is the number of batches that it and the correction have seen.
        self.error = 0.0
        self.observed = 0

    def seconds(self, tokens: int, pairs: int) -> float:
        """Predicted duration of a batch with so much work in it."""
        return self.correction * self.coefficients.seconds(tokens, pairs)

    @property
    def overhead(self) -> float:
        """Seconds that a batch costs whatever is in it."""
        return self.correction * self.coefficients.overhead

    @property
    def per_token(self) -> float:
        """Seconds that one more token costs, attention left out."""
        return self.correction * self.coefficients.per_token

    def observe(self, work: Work, seconds: float) -> None:
        """Take in what a batch really took."""
        predicted = self.coefficients.seconds(work.tokens, work.pairs)
        if predicted <= 0 or seconds <= 0:
            return
        before = self.correction
        ratio = seconds / predicted / before
        bounded = min(max(ratio, 1 / LARGEST_SURPRISE), LARGEST_SURPRISE)
        self.correction *= bounded**OBSERVATION_WEIGHT
        self.observed += 1
        seen = math.log(bounded * before)
        self._mean_log += (seen - self._mean_log) / min(self.observed, SETTLED_BATCHES)
        self.error += (min(abs(1 / ratio - 1), 1.0) - self.error) * max(OBSERVATION_WEIGHT, 1 / self.observed)

    @property
    def settled(self) -> float | None:
        """What batches took, in parts of what was measured: the mean of about the last ``SETTLED_BATCHES``.

        None while fewer were seen, or when it is changing.
        """
        mean = math.exp(self._mean_log)
        if self.observed < SETTLED_BATCHES or abs(self.correction / mean - 1) > SETTLED_WITHIN:
            return None
        return mean
