"""Classification: the logits of an item become one score per label."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor
from transformers import AutoModelForSequenceClassification

from launcher.core.protocol.model_info import ModelInfo, Scores
from launcher.worker.batches import PackedBatch, PaddedBatch, pad
from launcher.worker.tasks.head import run_head


class Logits:
    """See ``Task``. The logits as they are, for results that depend on the request."""

    auto_class: ClassVar[Any] = AutoModelForSequenceClassification
    unused_modules: ClassVar[tuple[str, ...]] = ()

    def __init__(self, model: Any, model_info: ModelInfo) -> None:
        self.encoder = model.base_model
        self._model, self._pad_id = model, model_info.pad_id

    def from_padded(self, output: Any, batch: PaddedBatch) -> Tensor:
        """Logits, float32, items × labels."""
        logits: Tensor = output.logits.float()
        return logits

    def from_packed(self, hidden: Tensor, batch: PackedBatch) -> Tensor:
        """Logits, float32, items × labels. The head gets padded items: it is a small part of the work, and heads that
        pool over an item need rows."""
        padded = pad(batch.items, self._pad_id)
        output = run_head(
            self._model,
            batch.to_padded(hidden),
            input_ids=padded.input_ids,
            attention_mask=padded.attention_mask(),
        )
        logits: Tensor = output.logits.float()
        return logits


class Classify(Logits):
    """See ``Task``."""

    def __init__(self, model: Any, model_info: ModelInfo) -> None:
        super().__init__(model, model_info)
        self._scores = model_info.scores

    def from_padded(self, output: Any, batch: PaddedBatch) -> Tensor:
        """Scores, items × labels."""
        return score(super().from_padded(output, batch), self._scores)

    def from_packed(self, hidden: Tensor, batch: PackedBatch) -> Tensor:
        """Scores, items × labels."""
        return score(super().from_packed(hidden, batch), self._scores)


def score(logits: Tensor, scores: Scores) -> Tensor:
    """Scores of a batch, float32, items × labels: ``softmax`` scores sum to 1, ``sigmoid`` scores are independent
    values from 0 to 1, ``raw`` scores are the logits, for regression, and other scores are those of an activation."""
    logits = logits.float()
    if scores == "softmax":
        return torch.softmax(logits, dim=1)
    if scores == "raw":
        return logits
    if scores == "sigmoid":
        return torch.sigmoid(logits)
    result: Tensor = getattr(torch.nn, scores)()(logits)
    return result
