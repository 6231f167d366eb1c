"""Masked language modelling: the most probable tokens for each mask token of an item."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor
from transformers import AutoModelForMaskedLM

from launcher.core.protocol.model_info import ModelInfo
from launcher.core.protocol.task_settings import MAX_TOP_K
from launcher.worker.interfaces import ItemBatch
from launcher.worker.tasks.hidden_states import (
    LOGITS_AT_ONCE,
    MIN_TOKENS_AT_ONCE,
    FromHiddenStates,
    TokenHead,
    VaryingRows,
)


class FillMask(FromHiddenStates):
    """See ``Task``. The head runs on mask tokens only."""

    auto_class: ClassVar[Any] = AutoModelForMaskedLM
    unused_modules: ClassVar[tuple[str, ...]] = ()

    def __init__(self, model: Any, model_info: ModelInfo) -> None:
        self.encoder = model.base_model
        self.head = TokenHead(model)
        assert model_info.masks is not None, "set for this task"
        self._mask_id = model_info.masks.mask_id
        self._top_k = min(MAX_TOP_K, model_info.vocab_size)
        self._most = max(MIN_TOKENS_AT_ONCE, LOGITS_AT_ONCE // model_info.vocab_size)

    def from_tokens(self, hidden: Tensor, items: ItemBatch) -> VaryingRows:
        """See the base class. A row is (position in the item, token id, score), best first for each mask token."""
        ids = torch.from_numpy(items.ids.astype("int64"))
        lengths = torch.tensor(items.lengths)
        places = torch.cat([torch.arange(length) for length in items.lengths])
        owners = torch.repeat_interleave(torch.arange(len(lengths)), lengths)
        masked = (ids == self._mask_id).nonzero()[:, 0]
        counts = torch.bincount(owners[masked], minlength=len(lengths)) * self._top_k
        if not len(masked):
            return VaryingRows(torch.empty(0, 3), counts.tolist())
        rows = [self._best(hidden[some], ids[some], places[some]) for some in torch.split(masked, self._most)]
        return VaryingRows(torch.cat(rows), counts.tolist())

    def _best(self, hidden: Tensor, ids: Tensor, places: Tensor) -> Tensor:
        scores, tokens = torch.softmax(self.head(hidden, ids), dim=1).topk(self._top_k, dim=1)
        positions = places[:, None].expand_as(tokens)
        return torch.stack([positions.float(), tokens.float(), scores], dim=2).flatten(0, 1)
