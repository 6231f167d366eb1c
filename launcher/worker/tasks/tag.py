"""Token classification: the logits of a token become one score per label; an item has a row of scores per token."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor
from transformers import AutoModelForTokenClassification

from launcher.core.protocol.model_info import ModelInfo
from launcher.worker.batches import PackedBatch, PaddedBatch
from launcher.worker.tasks.head import run_head


class Tag:
    """See ``Task``."""

    auto_class: ClassVar[Any] = AutoModelForTokenClassification
    unused_modules: ClassVar[tuple[str, ...]] = ()

    def __init__(self, model: Any, model_info: ModelInfo) -> None:
        self.encoder = model.base_model
        self._model = model

    def from_padded(self, output: Any, batch: PaddedBatch) -> Tensor:
        """Scores, tokens × labels."""
        return token_scores(output.logits, batch.mask)

    def from_packed(self, hidden: Tensor, batch: PackedBatch) -> Tensor:
        """Scores, tokens × labels. The head runs on the packed sequence; the checks at load reject a head that mixes
        tokens."""
        output = run_head(self._model, hidden[None], input_ids=batch.input_ids)
        return token_scores(output.logits[:, : len(batch.items.ids)], None)


def token_scores(logits: Tensor, mask: Tensor | None) -> Tensor:
    """Scores of all real tokens, float32, tokens × labels, summing to 1; the items are concatenated.

    ``logits`` is items × width × labels. ``mask`` is items × width, True for real tokens, or None if there is no
    padding.
    """
    real = logits.flatten(0, 1) if mask is None else logits[mask]
    return torch.softmax(real.float(), dim=1)
