"""Items concatenated into one sequence, so that no padding is computed between them.

Everything that works token by token (the matrix products, nearly all of the work) sees one long sequence. Only
attention must keep the items apart (``packed_attention``). The positions of each item start at the first one. Whether
a model supports all this cannot be known in advance: ``packed_layouts`` yields the candidates, and the caller must
check their results (``result_checks``).
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from launcher.core.protocol.model_info import ModelInfo
from launcher.worker.batches import PackedBatch, pack
from launcher.worker.interfaces import BatchOutput, ItemBatch, PackingUnsupportedError
from launcher.worker.layouts.packed_attention import IMPLEMENTATION, PackedAttention
from launcher.worker.optimizations.torchscript import TracedEncoder
from launcher.worker.tasks.create_task import Task, create_task
from launcher.worker.tasks.hidden_states import batch_output


def packed_layouts(model: Any, model_info: ModelInfo) -> Iterator[PackedLayout]:
    """The ways to pack items for a model, the most likely first; they differ in where positions start.

    Raises ``PackingUnsupportedError`` if the attention of the model cannot be replaced, or if it takes no positions.
    Changes the model: its attention stays replaced until the caller restores it.
    """
    task = create_task(model, model_info)
    if "position_ids" not in inspect.signature(task.encoder.forward).parameters:
        raise PackingUnsupportedError("the model accepts no position ids")
    attention = PackedAttention()
    try:
        model.set_attn_implementation(IMPLEMENTATION)
    except (AttributeError, ValueError, TypeError) as error:
        raise PackingUnsupportedError(f"the attention of the model cannot be replaced ({error})") from error
    if getattr(task.encoder.config, "_attn_implementation", None) != IMPLEMENTATION:
        raise PackingUnsupportedError("the attention of the model cannot be replaced")
    for first_position in (0, model_info.pad_id + 1):  # RoBERTa and its relatives start after the padding id
        yield PackedLayout(task, attention, model_info.pad_id, first_position)


class PackedLayout:
    """See the head of this module."""

    def __init__(self, task: Task, attention: PackedAttention, pad_id: int, first_position: int) -> None:
        self._task, self._attention, self._pad_id, self._first_position = task, attention, pad_id, first_position
        self._call = task.encoder
        self._takes_token_types = "token_type_ids" in inspect.signature(task.encoder.forward).parameters

    def set_fp32_attention(self, enabled: bool) -> None:
        """Compute attention in fp32, or in the dtype of the model."""
        self._attention.fp32 = enabled

    def wrap_module(self, wrapper: Callable[[Any], Any] | None) -> None:
        """See ``Layout.wrap_module``; the module is the encoder."""
        self._call = wrapper(self._task.encoder) if wrapper else self._task.encoder

    def trace(self, batch: ItemBatch) -> None:
        """Trace the encoder over this batch and run the TorchScript graph from now on; ``wrap_module(None)`` undoes
        it."""
        inputs = self._inputs(self._pack(batch))
        self.wrap_module(lambda encoder: TracedEncoder(encoder, inputs))

    @torch.inference_mode()
    def run(self, batch: ItemBatch) -> BatchOutput:
        """See ``BatchRunner.run``."""
        packed = self._pack(batch)
        hidden = self._call(**self._inputs(packed))[0][0]
        return batch_output(self._task.from_packed(hidden, packed), packed.input_ids.numel())

    def _pack(self, batch: ItemBatch) -> PackedBatch:
        return pack(batch, self._pad_id, self._first_position)

    def _inputs(self, batch: PackedBatch) -> dict[str, Tensor]:
        """The inputs of the encoder by name; the groups go to its attention."""
        self._attention.groups = batch.attention_groups()
        inputs = {"input_ids": batch.input_ids, "position_ids": batch.position_ids}
        if self._takes_token_types:
            token_types = batch.token_type_ids
            inputs["token_type_ids"] = torch.zeros_like(batch.input_ids) if token_types is None else token_types
        return inputs
