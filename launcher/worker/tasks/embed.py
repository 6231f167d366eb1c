"""Embeddings: the hidden states of an item become one vector, as the model's sentence-transformers files say."""

from __future__ import annotations

import torch
from torch import Tensor

from launcher.core.protocol.model_info import Pooling


def pool(hidden: Tensor, lengths: Tensor, mask: Tensor | None, pooling: Pooling, normalize: bool) -> Tensor:
    """Vectors of a batch, float32, items × hidden size.

    ``hidden`` is items × width × hidden size, ``lengths`` the real tokens of each item, ``mask`` (items × width, True
    for real tokens) None when there is no padding. Normalized vectors have length 1.
    """
    if pooling == "cls":
        vectors = hidden[:, 0].float()
    elif pooling == "max":
        vectors = _max(hidden, mask)
    else:
        vectors = _mean(hidden, lengths, mask)
    return torch.nn.functional.normalize(vectors, dim=1) if normalize else vectors


def _mean(hidden: Tensor, lengths: Tensor, mask: Tensor | None) -> Tensor:
    if mask is None:
        return hidden.float().mean(dim=1)
    weights = mask.float() / lengths.float().unsqueeze(1)
    return torch.bmm(weights.unsqueeze(1), hidden.float()).squeeze(1)


def _max(hidden: Tensor, mask: Tensor | None) -> Tensor:
    if mask is not None:
        hidden = hidden.masked_fill(~mask.unsqueeze(2), float("-inf"))
    return hidden.amax(dim=1).float()
