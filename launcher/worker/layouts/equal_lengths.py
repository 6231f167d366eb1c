"""Items of equal length as rows, without padding: for models that mix padding into their results.

Convolutions, Fourier transforms and pooling over neighbouring tokens read the padding of a row, whatever the mask is.
Without padding, the result of a text is the same alone and in any batch. Separate from the padded layout, which runs
each group of items.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from launcher.worker.batches import group_by_length
from launcher.worker.interfaces import BatchOutput, ItemBatch
from launcher.worker.layouts.padded import PaddedLayout


class EqualLengthLayout:
    """See the head of this module."""

    def __init__(self, padded: PaddedLayout) -> None:
        self._padded = padded

    def wrap_module(self, wrapper: Callable[[Any], Any] | None) -> None:
        """See ``Layout.wrap_module``; the module is the whole model."""
        self._padded.wrap_module(wrapper)

    def run(self, batch: ItemBatch) -> BatchOutput:
        """See ``BatchRunner.run``."""
        outputs = [self._padded.run(part) for part in split_by_length(batch)]
        if len(outputs) == 1:
            return outputs[0]
        values = np.concatenate([output.values for output in outputs])
        rows = [count for output in outputs for count in output.rows]
        return BatchOutput(values, sum(output.computed_tokens for output in outputs), rows)


def split_by_length(batch: ItemBatch) -> list[ItemBatch]:
    """Batches of items of equal length; together they have the items of ``batch``, in the same order."""
    parts, first = [], 0
    for group in group_by_length(batch.lengths):
        items, tokens = slice(first, first + group.items), slice(group.start, group.stop)
        type_ids = None if batch.type_ids is None else batch.type_ids[tokens]
        parts.append(ItemBatch(batch.ids[tokens], batch.lengths[items], type_ids, batch.prompt_lengths[items]))
        first += group.items
    return parts
