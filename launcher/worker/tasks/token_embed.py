"""Token vectors: one for each token of an item, for late interaction (ColBERT)."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

from torch import Tensor
from torch.nn.functional import normalize
from transformers import AutoModel

from launcher.core.protocol.model_info import ModelInfo
from launcher.worker.interfaces import ItemBatch, ModelError
from launcher.worker.tasks.embedding_modules import apply, load_modules
from launcher.worker.tasks.hidden_states import FromHiddenStates
from launcher.worker.tasks.linear_file import read_linear


class TokenEmbed(FromHiddenStates):
    """See ``Task``: the hidden states after the modules of sentence-transformers that change token embeddings or, with
    a head of BGE-M3, their normalized projection."""

    auto_class: ClassVar[Any] = AutoModel
    unused_modules: ClassVar[tuple[str, ...]] = ("pooler",)

    def __init__(self, model: Any, model_info: ModelInfo) -> None:
        self.encoder = model
        settings = model_info.token_vectors
        assert settings is not None, "set for this task"
        self._modules = load_modules(model_info.token_modules)
        self._head = None
        if settings.head:
            self._head = read_linear(Path(model_info.folder) / settings.head, model_info.hidden_size)
            if self._head.out_features != settings.width:
                raise ModelError(
                    f"{settings.head} has {self._head.out_features} outputs; heads with other than {settings.width}, "
                    "the hidden size, are not supported"
                )

    def from_tokens(self, hidden: Tensor, items: ItemBatch) -> Tensor:
        """Vectors, float32, tokens × width; the items are concatenated."""
        if self._head is not None:
            return normalize(self._head(hidden.float()), dim=1)
        return apply(self._modules, hidden.float())
