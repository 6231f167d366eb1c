"""Tagging: the logits of a token become one score per label; an item has a row of them for each of its tokens."""

from __future__ import annotations

import torch
from torch import Tensor


def token_scores(logits: Tensor, mask: Tensor | None) -> Tensor:
    """Scores of all real tokens, float32, tokens × labels, summing to 1; items one after the other.

    ``logits`` is items × width × labels, ``mask`` (items × width, True for real tokens) None where nothing is padded.
    """
    real = logits.flatten(0, 1) if mask is None else logits[mask]
    return torch.softmax(real.float(), dim=1)
