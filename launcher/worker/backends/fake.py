"""The fake backend, without a model: a fixed time per token, and results computed from the token ids alone.

It exists to test and measure everything around the model, so it must start immediately and must not import torch.
"""

from __future__ import annotations

import time
import zlib
from collections.abc import Sequence
from functools import cache
from itertools import accumulate, pairwise

import numpy as np
import numpy.typing as npt

from launcher.core.protocol.messages import Setup
from launcher.core.protocol.model_info import ModelInfo
from launcher.core.protocol.task_settings import MAX_TOP_K
from launcher.worker.interfaces import BatchOutput, ItemBatch, LoadedModel, ReportProgress, Results, TokenIds
from launcher.worker.sample_inputs import synthetic_batch

_STEP = 2654435761  # Knuth's multiplicative hashing: 2**32 divided by the golden ratio
_RADIANS = np.float32(2 * np.pi / 2**32)


@cache
def _steps(width: int) -> npt.NDArray[np.uint32]:
    return np.arange(1, width + 1, dtype=np.uint32) * np.uint32(_STEP)


def fake_result(ids: TokenIds, model_info: ModelInfo) -> Results:
    """The result of one item: equal for equal ids, different for others.

    A unit vector of ``model_info.hidden_size`` values; for a classifier, scores that sum to 1; for a token classifier,
    one row of scores per token; for token vectors, one unit vector per token; for a reranker, a logit and its score;
    for zero-shot classification, logits.
    """
    seed = np.uint32(zlib.crc32(np.ascontiguousarray(ids, dtype="<i4").tobytes()))
    seeds = seed + ids.astype(np.uint32)[:, None] if model_info.rows == "token" else seed
    raw: Results = np.cos((seeds + _steps(model_info.result_width)).astype(np.float32) * _RADIANS)
    if model_info.task in ("embed", "token-embed"):
        vectors: Results = raw / np.linalg.norm(raw, axis=-1, keepdims=True)
        return vectors
    if model_info.task in ("zero-shot", "question-answering"):
        return raw
    if model_info.task == "rerank":
        pair: Results = np.array([raw[0], 1 / (1 + np.exp(-raw[0]))], dtype=np.float32)
        return pair
    scores: Results = np.exp(raw) / np.exp(raw).sum(axis=-1, keepdims=True)
    return scores


def fake_rows(ids: TokenIds, model_info: ModelInfo) -> Results:
    """The result of one item with a varying number of rows, equal for equal ids: a weight for each of its distinct
    tokens; if the model fills masks, as many tokens with scores for each mask token as a worker returns.
    """
    if model_info.masks is None:
        distinct = np.unique(ids)
        return np.stack([distinct, 1 + distinct % 7], axis=1).astype(np.float32)
    count = min(MAX_TOP_K, model_info.vocab_size)
    rows = np.empty((0, 3), dtype=np.float32)
    for position in np.flatnonzero(ids == model_info.masks.mask_id):
        tokens = (int(ids.sum()) + position + np.arange(count)) % model_info.vocab_size
        scores = 0.5 ** np.arange(1, count + 1)
        rows = np.concatenate([rows, np.stack([np.full(count, position), tokens, scores], axis=1)])
    return rows.astype(np.float32)


class FakeBackend:
    """See the head of this module."""

    def __init__(self, setup: Setup, threads: int) -> None:
        self._model_info = setup.model_info
        self._seconds_per_token = setup.fake_seconds_per_token
        self._threads = threads

    def load(self, report: ReportProgress) -> LoadedModel:
        """See ``Backend.load``; there is nothing to load."""
        report("load", 1.0, "fake backend, no model")
        notes = ("fake backend: results are meaningless",)
        return LoadedModel(torch_version="none", threads=self._threads, notes=notes, packed=True)

    def sample_batch(self, lengths: Sequence[int]) -> ItemBatch:
        """See ``Backend.sample_batch``."""
        return synthetic_batch(lengths, self._model_info)

    def run(self, batch: ItemBatch) -> BatchOutput:
        """``fake_result`` of each item, after the fixed time per token; nothing is padded."""
        ids, tokens = batch.ids, len(batch.ids)
        deadline = time.monotonic() + tokens * self._seconds_per_token
        bounds = pairwise(accumulate(batch.lengths, initial=0))
        items = [ids[start:end] for start, end in bounds]
        if self._model_info.rows == "varying":
            results = [fake_rows(item, self._model_info) for item in items]
        else:
            results = [np.atleast_2d(fake_result(item, self._model_info)) for item in items]
        rows = tuple(map(len, results)) if self._model_info.rows == "varying" else ()
        remaining = deadline - time.monotonic()
        if remaining > 0:
            time.sleep(remaining)
        return BatchOutput(np.concatenate(results), tokens, rows)
