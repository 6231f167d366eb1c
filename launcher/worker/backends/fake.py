"""A backend without a model: a given time per token, and results that follow from the token ids alone.

It is there to test and to measure everything around the model, so it must start at once: torch must not enter.
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
from launcher.worker.backends import Ids, Loaded, Output, Report, Values

_STEP = 2654435761  # Knuth's multiplicative hashing: 2**32 over the golden ratio, spreads neighbours apart
_TURN = np.float32(2 * np.pi / 2**32)


@cache
def _steps(width: int) -> npt.NDArray[np.uint32]:
    return np.arange(1, width + 1, dtype=np.uint32) * np.uint32(_STEP)


def fake_result(ids: Ids, model_info: ModelInfo) -> Values:
    """What the fake backend answers for one item: the same for the same ids, different for others.

    A unit vector of ``model_info.hidden_size``; for a classifier scores that sum to 1, for a tagger a row of them a
    token.
    """
    seed = np.uint32(zlib.crc32(np.ascontiguousarray(ids, dtype="<i4").tobytes()))
    seeds = seed + ids.astype(np.uint32)[:, None] if model_info.row_per_token else seed
    raw: Values = np.cos((seeds + _steps(model_info.result_width)).astype(np.float32) * _TURN)
    if model_info.task == "embed":
        vector: Values = raw / np.sqrt(raw.dot(raw))
        return vector
    scores: Values = np.exp(raw) / np.exp(raw).sum(axis=-1, keepdims=True)
    return scores


class FakeBackend:
    """See the head of this module."""

    def __init__(self, setup: Setup, threads: int) -> None:
        self._model_info = setup.model_info
        self._seconds_per_token = setup.fake_seconds_per_token
        self._threads = threads

    def load(self, report: Report) -> Loaded:
        """Nothing to load."""
        report("load", 1.0, "no model: the fake backend")
        notes = ("fake backend: results mean nothing",)
        return Loaded(torch_version="none", threads=self._threads, notes=notes, packed=True)

    def run(self, ids: Ids, lengths: Sequence[int]) -> Output:
        """``fake_result`` of each item, no sooner than so many tokens take; nothing is padded."""
        tokens = sum(lengths)
        end = time.monotonic() + tokens * self._seconds_per_token
        places = pairwise(accumulate(lengths, initial=0))
        values = np.concatenate([np.atleast_2d(fake_result(ids[start:end], self._model_info)) for start, end in places])
        rest = end - time.monotonic()
        if rest > 0:
            time.sleep(rest)
        return Output(values, tokens)
