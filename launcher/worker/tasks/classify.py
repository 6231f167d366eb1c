"""Classification: the logits of an item become one score per label."""

from __future__ import annotations

import torch
from torch import Tensor

from launcher.core.protocol.model_info import Scores


def score(logits: Tensor, scores: Scores) -> Tensor:
    """Scores of a batch, float32, items × labels: summing to 1 (``softmax``), each by itself in 0…1 (``sigmoid``),
    or as the model gives them (``raw``, for regression)."""
    logits = logits.float()
    if scores == "softmax":
        return torch.softmax(logits, dim=1)
    return torch.sigmoid(logits) if scores == "sigmoid" else logits
