"""Items concatenated into one sequence, so that no padding is computed between them.

Everything that works token by token (the matrix products, nearly all of the work) sees one long sequence. Only
attention must keep the items apart (``packed_attention``), and each item has positions of its own. Whether a model
supports all this cannot be known in advance: ``packed_layouts`` yields the candidates, and the caller must check their
results (``result_checks``).
"""

from __future__ import annotations

import inspect
import sys
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

POSITIONS_FUNCTION = "create_position_ids_from_input_ids"


def packed_layouts(model: Any, model_info: ModelInfo) -> Iterator[PackedLayout]:
    """The ways to pack items for a model, the most likely first; they differ in how positions are counted.

    Raises ``PackingUnsupportedError`` if the attention of the model cannot be replaced. Changes the model: its
    attention stays replaced until the caller restores it.
    """
    task = create_task(model, model_info)
    attention = PackedAttention(task.encoder)
    try:
        model.set_attn_implementation(IMPLEMENTATION)
    except (AttributeError, ValueError, TypeError) as error:
        raise PackingUnsupportedError(f"the attention of the model cannot be replaced ({error})") from error
    if getattr(task.encoder.config, "_attn_implementation", None) != IMPLEMENTATION:
        raise PackingUnsupportedError("the attention of the model cannot be replaced")
    own = padding_position(task.encoder)
    for position in (None, model_info.pad_id) if own is None else (own,):
        yield PackedLayout(task, attention, model_info.pad_id, position)


def padding_position(encoder: torch.nn.Module) -> int | None:
    """The ``padding_position`` of ``pack`` by the model's own code, or None if there is none to be seen.

    Such a model has the function ``create_position_ids_from_input_ids``, as a method of its embeddings or next to
    them.
    """
    for module in encoder.modules():
        index = getattr(module, "padding_idx", None)
        if index is None or isinstance(module, torch.nn.Embedding):
            continue
        if hasattr(module, POSITIONS_FUNCTION) or (
            hasattr(module, "position_embeddings") and hasattr(sys.modules[type(module).__module__], POSITIONS_FUNCTION)
        ):
            return int(index)
    return None


class PackedLayout:
    """See the head of this module."""

    def __init__(self, task: Task, attention: PackedAttention, pad_id: int, padding_position: int | None) -> None:
        self._task, self._attention, self._pad_id, self._padding_position = task, attention, pad_id, padding_position
        self._call = task.encoder
        self._parameters = frozenset(inspect.signature(task.encoder.forward).parameters)
        self._ran = False

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
        self._ran = True
        return batch_output(self._task.from_packed(hidden, packed), packed.input_ids.numel())

    def _pack(self, batch: ItemBatch) -> PackedBatch:
        return pack(batch, self._pad_id, self._padding_position)

    def _inputs(self, batch: PackedBatch) -> dict[str, Tensor]:
        """The inputs of the encoder by name; the groups go to its attention.

        Without a mask of ones, transformers would find the items of a causal model by their positions, and make its
        mask function one of the packed sequence. The first batch shows whether the model has such a function.
        """
        self._attention.start_batch(batch.attention_groups())
        inputs = {"input_ids": batch.input_ids}
        if "position_ids" in self._parameters:
            inputs["position_ids"] = batch.position_ids
        if "token_type_ids" in self._parameters:
            token_types = batch.token_type_ids
            inputs["token_type_ids"] = torch.zeros_like(batch.input_ids) if token_types is None else token_types
        if "attention_mask" in self._parameters and (self._attention.has_patterns or not self._ran):
            inputs["attention_mask"] = torch.ones_like(batch.input_ids)
        return inputs
