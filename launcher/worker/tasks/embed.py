"""Embeddings: the hidden states of an item become one vector, as the model's sentence-transformers files specify."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor
from transformers import AutoModel

from launcher.core.protocol.model_info import ModelInfo, Pooling
from launcher.worker.batches import PackedBatch, PaddedBatch


class Embed:
    """See ``Task``. The whole model is the encoder."""

    auto_class: ClassVar[Any] = AutoModel
    unused_modules: ClassVar[tuple[str, ...]] = ("pooler",)

    def __init__(self, model: Any, model_info: ModelInfo) -> None:
        self.encoder = model
        self._pooling, self._normalize = model_info.pooling, model_info.normalize

    def from_padded(self, output: Any, batch: PaddedBatch) -> Tensor:
        """Vectors, items × hidden size."""
        return pool(output.last_hidden_state, batch.lengths, batch.mask, self._pooling, self._normalize)

    def from_packed(self, hidden: Tensor, batch: PackedBatch) -> Tensor:
        """Vectors, items × hidden size; items of equal length are pooled together."""
        vectors = []
        for group in batch.groups:
            lengths = torch.full((group.items,), group.length)
            vectors.append(pool(group.of(hidden), lengths, None, self._pooling, self._normalize))
        return torch.cat(vectors)


def pool(hidden: Tensor, lengths: Tensor, mask: Tensor | None, pooling: Pooling, normalize: bool) -> Tensor:
    """Vectors of a batch, float32, items × hidden size.

    ``hidden`` is items × width × hidden size, ``lengths`` the number of real tokens of each item. ``mask`` is
    items × width, True for real tokens, or None if there is no padding. Normalized vectors have length 1.
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
