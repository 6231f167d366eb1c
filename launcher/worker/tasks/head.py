"""Runs the head of a model on hidden states that are computed already.

Separate because several tasks need it. transformers has no common interface for heads, so the model runs as a whole
with its encoder replaced for the duration of the call.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers.modeling_outputs import BaseModelOutputWithPooling


class _PrecomputedEncoder(torch.nn.Module):
    """Takes the place of the encoder and returns given hidden states."""

    def __init__(self, encoder: Any, hidden: Tensor) -> None:
        super().__init__()
        object.__setattr__(self, "_encoder", encoder)  # not as a submodule
        self._output = BaseModelOutputWithPooling(last_hidden_state=hidden, pooler_output=_pooled(encoder, hidden))

    def __getattr__(self, name: str) -> Any:
        """Other attributes are those of the encoder: some heads read its embeddings."""
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(self.__dict__["_encoder"], name)

    def forward(self, *arguments: Any, **options: Any) -> BaseModelOutputWithPooling:
        """The given hidden states, and the pooler's output if the encoder has a pooler."""
        return self._output


def _pooled(encoder: Any, hidden: Tensor) -> Tensor | None:
    """The output of the encoder's pooler; None if it has none."""
    pooler = getattr(encoder, "pooler", None)
    if pooler is None:
        return None
    activation = getattr(encoder, "pooler_activation", None)
    if activation is not None:  # in ALBERT, the pooler is only the linear layer of that of BERT
        return activation(pooler(hidden[:, 0]))  # type: ignore[no-any-return]
    return pooler(hidden)  # type: ignore[no-any-return]


def run_head(model: Any, hidden: Tensor, **inputs: Tensor | None) -> Any:
    """The output of the model for ``inputs``, with ``hidden`` (items × width × hidden size) in place of what its
    encoder would compute."""
    name, encoder = model.base_model_prefix, model.base_model
    setattr(model, name, _PrecomputedEncoder(encoder, hidden))
    try:
        return model(**inputs)
    finally:
        setattr(model, name, encoder)
