"""Sparse embeddings: weights of the tokens of the vocabulary. Only those that are not zero leave the worker."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor
from transformers import AutoModel, AutoModelForMaskedLM

from launcher.core.protocol.model_info import ModelInfo
from launcher.core.protocol.task_settings import SparsePooling
from launcher.worker.interfaces import ItemBatch
from launcher.worker.tasks.hidden_states import (
    LOGITS_AT_ONCE,
    MIN_TOKENS_AT_ONCE,
    FromHiddenStates,
    TokenHead,
    VaryingRows,
    token_groups,
)
from launcher.worker.tasks.linear_file import read_linear


class Splade(FromHiddenStates):
    """From the logits of a masked language model: see ``SpladePooling`` of sentence-transformers."""

    auto_class: ClassVar[Any] = AutoModelForMaskedLM
    unused_modules: ClassVar[tuple[str, ...]] = ()

    def __init__(self, model: Any, model_info: ModelInfo) -> None:
        self.encoder = model.base_model
        self.head = TokenHead(model)
        self._pooling = _pooling(model_info)
        self._most = max(MIN_TOKENS_AT_ONCE, LOGITS_AT_ONCE // model_info.vocab_size)

    def from_tokens(self, hidden: Tensor, items: ItemBatch) -> VaryingRows:
        """See the base class. A row is (token id, weight), by ascending token id."""
        ids = torch.from_numpy(items.ids.astype("int64"))
        found, start = [], 0
        for first, last in token_groups(items.lengths, self._most):
            lengths = list(items.lengths[first:last])
            stop = start + sum(lengths)
            if len(lengths) == 1:
                found.append(_rows(self._weights(hidden[start:stop], ids[start:stop]), self._pooling))
            else:
                weights = self._activate(self.head(hidden[start:stop], ids[start:stop]))
                found += [_rows(self._reduce(own), self._pooling) for own in torch.split(weights, lengths)]
            start = stop
        return _joined(found)

    def _weights(self, hidden: Tensor, ids: Tensor) -> Tensor:
        """The weights of one item, which may have any number of tokens."""
        parts = zip(torch.split(hidden, self._most), torch.split(ids, self._most), strict=True)
        return self._reduce(torch.stack([self._reduce(self._activate(self.head(*part))) for part in parts]))

    def _activate(self, logits: Tensor) -> Tensor:
        weights = logits.relu().log1p()
        return weights.log1p() if self._pooling.activation == "log1p_relu" else weights

    def _reduce(self, weights: Tensor) -> Tensor:
        return weights.amax(dim=0) if self._pooling.pooling == "max" else weights.sum(dim=0)


class TokenWeights(FromHiddenStates):
    """From a linear layer that gives each token of the text a weight: the sparse head of BGE-M3."""

    auto_class: ClassVar[Any] = AutoModel
    unused_modules: ClassVar[tuple[str, ...]] = ("pooler",)

    def __init__(self, model: Any, model_info: ModelInfo) -> None:
        self.encoder = model
        self._pooling = _pooling(model_info)
        self._linear = read_linear(Path(model_info.folder) / self._pooling.head, model_info.hidden_size, 1)
        self._excluded = torch.tensor(self._pooling.excluded_ids, dtype=torch.int64)
        self._vocab_size = model_info.vocab_size

    def from_tokens(self, hidden: Tensor, items: ItemBatch) -> VaryingRows:
        """See the base class. A row is (token id, weight), by ascending token id."""
        weights = self._linear(hidden.float())[:, 0].relu()
        ids = torch.from_numpy(items.ids.astype("int64"))
        weights[torch.isin(ids, self._excluded)] = 0
        found = []
        lengths = list(items.lengths)
        for own_ids, own in zip(torch.split(ids, lengths), torch.split(weights, lengths), strict=True):
            distinct, places = torch.unique(own_ids, return_inverse=True)
            highest = torch.zeros(len(distinct)).scatter_reduce(0, places, own, "amax")
            vector = torch.zeros(self._vocab_size).scatter(0, distinct, highest)
            found.append(_rows(vector, self._pooling))
        return _joined(found)


def _pooling(model_info: ModelInfo) -> SparsePooling:
    assert model_info.sparse is not None, "set for this task"
    return model_info.sparse


def _rows(vector: Tensor, pooling: SparsePooling) -> Tensor:
    """The weights that are not zero, float32, rows × 2, by ascending token id; the highest ones if they are limited."""
    if pooling.max_active is not None and pooling.max_active < len(vector):
        kept = torch.topk(vector, pooling.max_active).indices
        vector = torch.zeros_like(vector).scatter(0, kept, vector[kept])
    ids = vector.nonzero()[:, 0]
    return torch.stack([ids.float(), vector[ids]], dim=1)


def _joined(found: list[Tensor]) -> VaryingRows:
    return VaryingRows(torch.cat(found), [len(rows) for rows in found])
