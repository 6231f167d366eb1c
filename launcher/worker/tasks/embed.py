"""Embeddings: the hidden states of an item become one vector, as the model's sentence-transformers files specify."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor
from transformers import AutoModel

from launcher.core.protocol.model_info import ModelInfo
from launcher.worker.batches import PackedBatch, PaddedBatch
from launcher.worker.interfaces import ItemBatch
from launcher.worker.tasks.embedding_modules import apply, load_modules
from launcher.worker.tasks.pooling import TokenEmbeddings, pool


class Embed:
    """See ``Task``. The whole model is the encoder."""

    auto_class: ClassVar[Any] = AutoModel
    unused_modules: ClassVar[tuple[str, ...]] = ("pooler",)

    def __init__(self, model: Any, model_info: ModelInfo) -> None:
        self.encoder = model
        self._pooling = model_info.pooling
        self._token_modules = load_modules(model_info.token_modules)
        self._finish = Finish(model_info)

    def from_padded(self, output: Any, batch: PaddedBatch) -> Tensor:
        """Vectors, items × result width."""
        hidden, prompts = self._tokens(output.last_hidden_state), _prompts(batch.items)
        return self._finish(pool(TokenEmbeddings(hidden, batch.lengths, batch.mask, prompts), self._pooling))

    def from_packed(self, hidden: Tensor, batch: PackedBatch) -> Tensor:
        """Vectors, items × result width; items of equal length are pooled together."""
        hidden, prompts = self._tokens(hidden), _prompts(batch.items)
        vectors, first = [], 0
        for group in batch.groups:
            lengths = torch.full((group.items,), group.length)
            own = None if prompts is None else prompts[first : first + group.items]
            vectors.append(pool(TokenEmbeddings(group.of(hidden), lengths, None, own), self._pooling))
            first += group.items
        return self._finish(torch.cat(vectors))

    def _tokens(self, hidden: Tensor) -> Tensor:
        return apply(self._token_modules, hidden.float()) if self._token_modules else hidden


def _prompts(batch: ItemBatch) -> Tensor | None:
    """The number of leading tokens that pooling ignores, int64, of each item; None if there are none."""
    return torch.tensor(batch.prompt_lengths) if batch.prompt_lengths else None


class Finish:
    """What follows the pooling: the modules of the model, normalization, and the cut to ``truncate_dim``."""

    def __init__(self, model_info: ModelInfo) -> None:
        self._modules = load_modules(model_info.modules)
        self._normalize, self._dimensions = model_info.normalize, model_info.truncate_dim

    def __call__(self, vectors: Tensor) -> Tensor:
        """The vectors of a batch, float32, items × result width."""
        vectors = apply(self._modules, vectors)
        if self._normalize:
            vectors = torch.nn.functional.normalize(vectors, dim=1)
        return vectors if self._dimensions is None else vectors[:, : self._dimensions]
