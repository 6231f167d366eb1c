"""The cost model of batches, in seconds: fitted to measurements, then corrected by observations.

The duration of a batch is predicted as

    overhead + per_token · tokens + per_pair · pairs

where ``tokens`` are the computed tokens, including padding, and ``pairs`` the pairs of tokens that attend to each
other: Σ length² for packed items, rows · width² for padded ones. The second term models the matrix products, the third
attention. Each instance has its own model, since instances differ in size and cores in speed.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple


class Work(NamedTuple):
    """The work of a batch: ``tokens``, including padding, and ``pairs`` of tokens that attend to each other."""

    items: int
    tokens: int
    pairs: int


Measurement = tuple[int, int, int, float]  # items, tokens and pairs as in Work, seconds


def work_of(lengths: Sequence[int], *, packed: bool) -> Work:
    """The work of a batch of items of these lengths, longest first, packed or padded."""
    count = len(lengths)
    if packed:
        return Work(count, sum(lengths), sum([length * length for length in lengths]))
    width = lengths[0] if count else 0
    return Work(count, count * width, count * width * width)


# Used until something is measured: a slow core and a small model. Only their ratios matter at that point.
DEFAULT_OVERHEAD = 2e-3
DEFAULT_PER_TOKEN = 1e-4
# Weight of a new observation in the moving average: about the last thirty batches count.
OBSERVATION_WEIGHT = 1 / 16
# Anything on the machine may disturb a single batch; a ratio of observed to predicted time is clipped to this factor.
MAX_RATIO = 4.0
# The drift is kept for later runs only after this many batches. Single batches are off by 10 to 20 %, so their mean is
# within 1 %, and a disturbance of one second, about ten batches, does not move it.
SETTLED_BATCHES = 256
# And only if the recent batches agree with that mean: by chance they differ by 3 %.
SETTLED_WITHIN = 0.1
# The fraction of a column's square that must be independent of the columns before it, so that rounding errors of 1e-16
# change a coefficient by less than 1e-8.
WELL_CONDITIONED = 1e-8


@dataclass(frozen=True, slots=True)
class Coefficients:
    """The coefficients of the formula above: seconds, seconds per token, seconds per pair of tokens; none negative."""

    overhead: float = DEFAULT_OVERHEAD
    per_token: float = DEFAULT_PER_TOKEN
    per_pair: float = 0.0

    def seconds(self, tokens: int, pairs: int) -> float:
        """Predicted duration of a batch."""
        return self.overhead + self.per_token * tokens + self.per_pair * pairs

    def scaled(self, factor: float) -> Coefficients:
        """The coefficients of batches that take ``factor`` times as long."""
        return Coefficients(self.overhead * factor, self.per_token * factor, self.per_pair * factor)


def fit(measurements: Sequence[Measurement]) -> Coefficients:
    """The non-negative coefficients that minimize the squared relative errors of the measurements.

    Coefficients that come out negative are removed one at a time and the rest fitted again (the active-set step of
    non-negative least squares). Returns the defaults if there are no measurements.
    """
    usable = [m for m in measurements if m[1] > 0 and m[2] > 0 and m[3] > 0]
    if not usable:
        return Coefficients()
    # Dividing each row by its duration turns squared errors into squared relative errors.
    rows = [(1 / seconds, tokens / seconds, pairs / seconds) for _, tokens, pairs, seconds in usable]
    scale = [max(column) for column in zip(*rows, strict=True)]
    active = list(range(min(3, len(usable))))
    scaled: list[float] = []
    while active:
        scaled = _least_squares([[row[column] / scale[column] for column in active] for row in rows])
        if min(scaled) >= 0:
            break
        active.pop(scaled.index(min(scaled)))
    found = [0.0, 0.0, 0.0]
    for column, value in zip(active, scaled if active else (), strict=True):
        found[column] = value / scale[column]
    if found[1] == found[2] == 0.0:  # only one shape was measured: attribute its whole time to the tokens
        found = [0.0, sum(1 / row[1] for row in rows) / len(rows), 0.0]
    return Coefficients(*found)


def _least_squares(rows: Sequence[Sequence[float]]) -> list[float]:
    """The x that minimizes Σ (row · x - 1)², of minimum norm if several do. The largest value of each column is 1.

    Solves the normal equations where they are well-conditioned, which is 20 times faster than NumPy and saves reports
    its import; NumPy's singular value decomposition does the rest.
    """
    size = len(rows[0])
    system = [[sum([row[i] * row[j] for row in rows]) for j in range(size)] for i in range(size)]
    for i, equation in enumerate(system):
        equation.append(sum([row[i] for row in rows]))
    for i in range(size):  # Gauss-Jordan elimination; a positive definite matrix needs no pivoting
        diagonal = sum([row[i] * row[i] for row in rows])
        if system[i][i] <= WELL_CONDITIONED * diagonal:
            import numpy as np

            return [float(x) for x in np.linalg.lstsq(np.array(rows), np.ones(len(rows)), rcond=None)[0]]
        for k in range(size):
            if k != i:
                factor = system[k][i] / system[i][i]
                system[k] = [a - factor * b for a, b in zip(system[k], system[i], strict=True)]
    return [equation[-1] / equation[i] for i, equation in enumerate(system)]


def fit_error(coefficients: Coefficients, measurements: Sequence[Measurement]) -> float | None:
    """The median relative error of the coefficients on these measurements; None without measurements."""
    from statistics import median  # as for fit

    errors = [abs(coefficients.seconds(m[1], m[2]) / m[3] - 1) for m in measurements if m[3] > 0]
    return median(errors) if errors else None


class CostModel:
    """The model of one instance: fitted coefficients times a correction that follows the observations.

    ``drift`` is the initial correction: the ratio of actual to measured batch time in earlier runs.
    """

    def __init__(self, coefficients: Coefficients | None = None, drift: float = 1.0) -> None:
        self.coefficients = coefficients or Coefficients()
        self.drift_at_start = drift
        self.correction = drift
        self._mean_log = 0.0
        # The mean relative error of predictions, over all batches at first and later over the recent ones.
        # ``observed`` is the number of batches observed.
        self.error = 0.0
        self.observed = 0

    def seconds(self, tokens: int, pairs: int) -> float:
        """Predicted duration of a batch with this work."""
        return self.correction * self.coefficients.seconds(tokens, pairs)

    @property
    def overhead(self) -> float:
        """The fixed cost of a batch in seconds."""
        return self.correction * self.coefficients.overhead

    @property
    def per_token(self) -> float:
        """The cost of one more token in seconds, without attention."""
        return self.correction * self.coefficients.per_token

    @property
    def per_pair(self) -> float:
        """The cost of one more pair of tokens that attend to each other, in seconds."""
        return self.correction * self.coefficients.per_pair

    def observe(self, work: Work, seconds: float) -> None:
        """Record the actual duration of a batch."""
        predicted = self.coefficients.seconds(work.tokens, work.pairs)
        if predicted <= 0 or seconds <= 0:
            return
        before = self.correction
        ratio = seconds / predicted / before
        bounded = min(max(ratio, 1 / MAX_RATIO), MAX_RATIO)
        self.correction *= bounded**OBSERVATION_WEIGHT
        self.observed += 1
        seen = math.log(bounded * before)
        self._mean_log += (seen - self._mean_log) / min(self.observed, SETTLED_BATCHES)
        self.error += (min(abs(1 / ratio - 1), 1.0) - self.error) * max(OBSERVATION_WEIGHT, 1 / self.observed)

    @property
    def settled(self) -> float | None:
        """The drift, actual over measured batch time: the geometric mean of about the last ``SETTLED_BATCHES``.

        None while fewer batches were observed, or while it is changing.
        """
        mean = math.exp(self._mean_log)
        if self.observed < SETTLED_BATCHES or abs(self.correction / mean - 1) > SETTLED_WITHIN:
            return None
        return mean
