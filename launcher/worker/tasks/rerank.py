"""Reranking: the logit of a pair of texts, and its score."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from launcher.core.protocol.model_info import ModelInfo
from launcher.worker.batches import PackedBatch, PaddedBatch
from launcher.worker.tasks.classify import Logits, score


class Rerank(Logits):
    """See ``Task``. A request chooses between logits and scores, and only the worker can compute each activation."""

    def __init__(self, model: Any, model_info: ModelInfo) -> None:
        super().__init__(model, model_info)
        self._scores = model_info.scores

    def from_padded(self, output: Any, batch: PaddedBatch) -> Tensor:
        """The logit and the score of each item, items × 2."""
        return self._with_scores(super().from_padded(output, batch))

    def from_packed(self, hidden: Tensor, batch: PackedBatch) -> Tensor:
        """The logit and the score of each item, items × 2."""
        return self._with_scores(super().from_packed(hidden, batch))

    def _with_scores(self, logits: Tensor) -> Tensor:
        return torch.cat([logits, score(logits, self._scores)], dim=1)
