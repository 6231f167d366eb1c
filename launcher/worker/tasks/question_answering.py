"""Question answering: for each token, the logits that an answer starts and ends there."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor
from transformers import AutoModelForQuestionAnswering

from launcher.core.protocol.model_info import ModelInfo
from launcher.worker.batches import PackedBatch, PaddedBatch
from launcher.worker.tasks.head import run_head


class QuestionAnswering:
    """See ``Task``."""

    auto_class: ClassVar[Any] = AutoModelForQuestionAnswering
    unused_modules: ClassVar[tuple[str, ...]] = ()

    def __init__(self, model: Any, model_info: ModelInfo) -> None:
        self.encoder = model.base_model
        self._model = model

    def from_padded(self, output: Any, batch: PaddedBatch) -> Tensor:
        """Logits, float32, tokens × 2."""
        logits = _logits(output)
        return logits.flatten(0, 1) if batch.mask is None else logits[batch.mask]

    def from_packed(self, hidden: Tensor, batch: PackedBatch) -> Tensor:
        """Logits, float32, tokens × 2. The checks at load reject a head that mixes tokens."""
        output = run_head(self._model, hidden[None], input_ids=batch.input_ids)
        return _logits(output)[0, : len(batch.items.ids)]


def _logits(output: Any) -> Tensor:
    return torch.stack([output.start_logits, output.end_logits], dim=-1).float()
