"""Items as rows of one width, that of the longest: works with every model, but every row costs as much as the longest.

The mask marks real tokens. It is omitted when all items have the same length, which is faster.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

from launcher.core.protocol.model_info import ModelInfo
from launcher.worker.batches import pad
from launcher.worker.interfaces import BatchOutput, TokenIds
from launcher.worker.tasks.create_task import create_task


class PaddedLayout:
    """See the head of this module."""

    def __init__(self, model: torch.nn.Module, model_info: ModelInfo) -> None:
        self._model, self._pad_id = model, model_info.pad_id
        self._task = create_task(model, model_info)
        self._call: Any = model

    def wrap_module(self, wrapper: Callable[[Any], Any] | None) -> None:
        """See ``Layout.wrap_module``; the module is the whole model."""
        self._call = wrapper(self._model) if wrapper else self._model

    @torch.inference_mode()
    def run(self, ids: TokenIds, lengths: Sequence[int]) -> BatchOutput:
        """See ``BatchRunner.run``."""
        batch = pad(ids, lengths, self._pad_id)
        output = self._call(input_ids=batch.input_ids, attention_mask=batch.attention_mask())
        return BatchOutput(self._task.from_padded(output, batch).numpy(), batch.input_ids.numel())
