"""The base of tasks that compute from hidden states, whatever the layout, and results with any number of rows.

Separate from the layouts, which know no task. Such a task runs the encoder only, and its head on the tokens that need
it, so that logits over the vocabulary exist for a few hundred tokens at a time, not for the whole batch.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from launcher.worker.batches import PackedBatch, PaddedBatch
from launcher.worker.interfaces import BatchOutput, ItemBatch, ModelError
from launcher.worker.tasks.head import run_head

# Logits that are computed at once: 32 MiB in fp32, or 274 tokens of a vocabulary of 30,522.
LOGITS_AT_ONCE = 2**23
MIN_TOKENS_AT_ONCE = 16
MAX_HEAD_ERROR = 1e-4  # relative, of logits in fp32; the same products in another order give about 1e-6


@dataclass(frozen=True, slots=True)
class VaryingRows:
    """Results with a number of rows that varies: float32, rows × width, and the number of rows of each item."""

    values: Tensor
    rows: Sequence[int]


def batch_output(result: Tensor | VaryingRows, computed_tokens: int) -> BatchOutput:
    """The output of a batch from the results of a task."""
    if isinstance(result, VaryingRows):
        return BatchOutput(result.values.numpy(), computed_tokens, result.rows)
    return BatchOutput(result.numpy(), computed_tokens)


class FromHiddenStates:
    """A task that needs hidden states only, of padded batches too. Subclasses implement ``from_tokens``."""

    encoder: Any

    def from_tokens(self, hidden: Tensor, items: ItemBatch) -> Tensor | VaryingRows:
        """The results, from the hidden states of all tokens of the batch, tokens × hidden size."""
        raise NotImplementedError

    def from_padded(self, output: Any, batch: PaddedBatch) -> Tensor | VaryingRows:
        """See ``Task``; ``output`` is that of the encoder."""
        hidden = output[0]
        return self.from_tokens(hidden.flatten(0, 1) if batch.mask is None else hidden[batch.mask], batch.items)

    def from_packed(self, hidden: Tensor, batch: PackedBatch) -> Tensor | VaryingRows:
        """See ``Task``."""
        return self.from_tokens(hidden[: len(batch.items.ids)], batch.items)


class TokenHead:
    """The head of a model with logits for each token, applied to hidden states."""

    def __init__(self, model: Any) -> None:
        self._model = model

    def __call__(self, hidden: Tensor, ids: Tensor) -> Tensor:
        """Logits, float32, tokens × outputs, of tokens with these hidden states and ids."""
        logits: Tensor = run_head(self._model, hidden[None], input_ids=ids[None]).logits[0].float()
        return logits

    def check(self) -> None:
        """Raise ``ModelError`` unless the encoder and the head alone give the results of the whole model."""
        ids = torch.arange(4, 12)
        whole = self._model(input_ids=ids[None]).logits[0].float()
        apart = self(self._model.base_model(input_ids=ids[None])[0][0], ids)
        if not torch.linalg.norm(apart - whole) <= MAX_HEAD_ERROR * torch.linalg.norm(whole):
            raise ModelError(f"the head of {type(self._model).__name__} depends on more than the states of its encoder")


def token_groups(lengths: Sequence[int], most: int) -> Iterator[tuple[int, int]]:
    """Ranges of consecutive items with at most ``most`` tokens together, or a single item that is longer."""
    first = tokens = 0
    for index, length in enumerate(lengths):
        if index > first and tokens + length > most:
            yield first, index
            first, tokens = index, 0
        tokens += length
    yield first, len(lengths)
