"""Items as rows of one width, that of the longest: works with every model, but every row costs as much as the longest.

The mask marks real tokens. It is passed even if there is no padding, as sentence-transformers does: without it, some
models take the padding id in a text for padding.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from launcher.core.protocol.model_info import ModelInfo
from launcher.worker.batches import PaddedBatch, pad
from launcher.worker.interfaces import BatchOutput, ItemBatch
from launcher.worker.load_model import has_own_code
from launcher.worker.tasks.create_task import create_task
from launcher.worker.tasks.hidden_states import FromHiddenStates, TokenHead, batch_output


class PaddedLayout:
    """See the head of this module."""

    def __init__(self, model: torch.nn.Module, model_info: ModelInfo) -> None:
        self._pad_id = model_info.pad_id
        self._task = create_task(model, model_info)
        self._model = self._task.encoder if isinstance(self._task, FromHiddenStates) else model
        self._call: Any = self._model
        self._own_code = has_own_code(model)
        parameters = inspect.signature(self._model.forward).parameters
        takes_any = any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values())
        self._takes_mask = "attention_mask" in parameters or takes_any
        self._takes_token_types = "token_type_ids" in parameters or (self._own_code and takes_any)
        # Own code need not take absent token types for zeros.
        self._needs_token_types = self._own_code and self._takes_token_types and model_info.sends_token_types
        # MobileBERT adds the embeddings of both neighbours to each token, without regard to the mask.
        self._reads_neighbours = bool(getattr(model.config, "trigram_input", False))

    @torch.inference_mode()
    def check_head(self) -> None:
        """Raise ``ModelError`` if the task runs a head apart from its model, and the results differ."""
        head = getattr(self._task, "head", None)
        if isinstance(head, TokenHead):
            head.check()

    def wrap_module(self, wrapper: Callable[[Any], Any] | None) -> None:
        """See ``Layout.wrap_module``; the module is the whole model, or the encoder if
        the task needs hidden states only."""
        self._call = wrapper(self._model) if wrapper else self._model

    @torch.inference_mode()
    def run(self, batch: ItemBatch) -> BatchOutput:
        """See ``BatchRunner.run``."""
        padded = pad(batch, self._pad_id)
        output = self._call(**self._inputs(padded))
        if isinstance(output, tuple):
            output = SimpleNamespace(last_hidden_state=output[0], logits=output[0])
        return batch_output(self._task.from_padded(output, padded), padded.input_ids.numel())

    def _inputs(self, batch: PaddedBatch) -> dict[str, Tensor]:
        mask = batch.attention_mask()
        inputs = {"input_ids": batch.input_ids}
        if self._takes_mask:
            inputs["attention_mask"] = torch.ones_like(batch.input_ids) if mask is None else mask
        if batch.token_type_ids is not None and self._takes_token_types:
            inputs["token_type_ids"] = batch.token_type_ids
        elif self._needs_token_types:
            inputs["token_type_ids"] = torch.zeros_like(batch.input_ids)
        if self._reads_neighbours and batch.mask is not None:
            # Zero, as the model itself continues a text that is not padded.
            embeddings = self._model.get_input_embeddings()(inputs.pop("input_ids"))  # type: ignore[operator]
            inputs["inputs_embeds"] = embeddings.masked_fill(~batch.mask.unsqueeze(2), 0)
        return inputs
