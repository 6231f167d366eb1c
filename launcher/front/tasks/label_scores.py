"""The result of a classifier: all labels with their scores.

Separate from HTTP because the Python API returns the same.
"""

from __future__ import annotations

import numpy as np
from msgspec import Struct

from launcher.front.request_results import Vectors


class LabelScore(Struct, frozen=True):
    """One label and its score."""

    label: str
    score: float


def ranked_labels(scores: Vectors, labels: tuple[str, ...]) -> list[LabelScore]:
    """All labels with their scores, best first; equal scores in the order of the labels."""
    order = np.argsort(-scores, kind="stable")
    # The shortest decimal that reads back as the same float32: 0.9, not 0.8999999761581421.
    return [LabelScore(labels[index], float(str(scores[index]))) for index in order.tolist()]
