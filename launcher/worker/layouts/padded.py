"""Items as rows of one width, the longest item's: every model takes it, and every row pays for the longest.

The mask says which tokens are real. Without one when all items are equally long, which is faster.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from launcher.core.protocol.model_info import ModelInfo
from launcher.worker.backends import Ids
from launcher.worker.tasks.classify import score
from launcher.worker.tasks.embed import pool
from launcher.worker.tasks.tag import token_scores


@dataclass(frozen=True, slots=True)
class PaddedBatch:
    """Items padded on the right to the longest: ``ids`` int64, ``mask`` True for real tokens, or None."""

    ids: Tensor
    mask: Tensor | None
    lengths: Tensor


def pad(ids: Ids, lengths: Sequence[int], pad_id: int) -> PaddedBatch:
    """The items whose ``ids`` follow each other, longest first, as rows of one width."""
    rows, width = len(lengths), lengths[0]
    counts = np.asarray(lengths, dtype=np.int64)
    if lengths[-1] == width:
        padded = ids.reshape(rows, width).astype(np.int64)
        return PaddedBatch(torch.from_numpy(padded), None, torch.from_numpy(counts))
    mask = np.arange(width) < counts[:, None]
    padded = np.full((rows, width), pad_id, dtype=np.int64)
    padded[mask] = ids
    return PaddedBatch(torch.from_numpy(padded), torch.from_numpy(mask), torch.from_numpy(counts))


class PaddedLayout:
    """See the head of this module."""

    def __init__(self, model: torch.nn.Module, model_info: ModelInfo) -> None:
        self._model, self._model_info = model, model_info
        self._call: Any = model

    def wrap(self, wrapper: Callable[[Any], Any] | None) -> None:
        """See ``Layout.wrap``."""
        self._call = wrapper(self._model) if wrapper else self._model

    def run(self, ids: Ids, lengths: Sequence[int]) -> tuple[Tensor, int]:
        """See ``Layout.run``."""
        model_info, batch = self._model_info, pad(ids, lengths, self._model_info.pad_id)
        mask = None if batch.mask is None else batch.mask.to(torch.int64)
        output = self._call(input_ids=batch.ids, attention_mask=mask)
        if model_info.task == "classify":
            return score(output.logits, model_info.scores), batch.ids.numel()
        if model_info.task == "tag":
            return token_scores(output.logits, batch.mask), batch.ids.numel()
        vectors = pool(output.last_hidden_state, batch.lengths, batch.mask, model_info.pooling, model_info.normalize)
        return vectors, batch.ids.numel()
