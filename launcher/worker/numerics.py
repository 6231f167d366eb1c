"""Measures of how far two sets of results are apart. What difference is acceptable is decided in ``result_checks``."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate

import numpy as np

from launcher.core.protocol.model_info import ModelInfo
from launcher.worker.interfaces import BatchOutput, Item, Results


def rows_of(items: Sequence[Item], indices: Sequence[int], model_info: ModelInfo) -> Sequence[int]:
    """The rows that belong to the items at ``indices`` among the results of all ``items``."""
    if model_info.rows != "token":
        return indices
    ends = list(accumulate(map(len, items)))
    return [row for index in indices for row in range(ends[index] - len(items[index]), ends[index])]


def comparable(output: BatchOutput, model_info: ModelInfo) -> Results:
    """The results of a batch in a form with a fixed number of rows.

    Of a reranker, only the logits count: the scores follow from them.

    Rows of a varying number end with a token id and its value. They become a row for each item, with the sum of the
    values of each token of the vocabulary: a value that is nearly zero may be present in one result and absent in
    another.
    """
    if model_info.task == "rerank":
        return output.values[:, :1]
    if model_info.rows != "varying":
        return output.values
    items = np.repeat(np.arange(len(output.rows)), output.rows)
    dense = np.zeros((len(output.rows), model_info.vocab_size), dtype=np.float32)
    np.add.at(dense, (items, output.values[:, -2].astype(np.int64)), output.values[:, -1])
    return dense


def largest_relative_error(expected: Results, actual: Results) -> float:
    """The largest Euclidean distance between corresponding rows, relative to the norm of the expected row.

    A row with a single score can be nearly zero. There, the distance is relative to the largest score.
    """
    distances = np.linalg.norm(expected - actual, axis=1)
    norms = np.linalg.norm(expected, axis=1)
    scale = norms.max() if expected.shape[1] == 1 else norms
    return float(np.max(distances / np.maximum(scale, 1e-12)))


def lowest_cosine(expected: Results, actual: Results, items: Sequence[Item], model_info: ModelInfo) -> float:
    """The lowest cosine similarity between the two results of an item, all its rows as one vector; NaN if a result is
    zero or not finite.

    Not token by token: a token whose two best labels are nearly tied changes by rounding alone, which says nothing
    about the model. A check item has far fewer than a thousand tokens, so a single token with a completely different
    label still lowers the cosine noticeably.

    A row with a single score has no angle. There, the result is the cosine between two vectors of equal length whose
    distance, relative to that length, is the largest change relative to the largest score.
    """
    if expected.shape[1] == 1:
        distance = np.max(np.abs(expected - actual)) / max(float(np.max(np.abs(expected))), 1e-12)
        return float(1 - distance * distance / 2)
    starts = list(accumulate(map(len, items[:-1]), initial=0)) if model_info.rows == "token" else range(len(items))

    def dot(one: Results, other: Results) -> Results:
        sums: Results = np.add.reduceat(np.sum(one * other, axis=1), starts)
        return sums

    return float(np.min(dot(expected, actual) / np.sqrt(dot(expected, expected) * dot(actual, actual))))


def changed_labels(expected: Results, actual: Results) -> int:
    """The number of rows of scores whose best label differs."""
    return int(np.count_nonzero(expected.argmax(axis=1) != actual.argmax(axis=1)))
