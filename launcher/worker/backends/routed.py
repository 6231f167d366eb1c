"""Computes the static route of a sparse embedder, and has another backend compute its encoder's route.

A text of the static route has the fixed weights of its tokens: see ``SparseStaticEmbedding`` of sentence-transformers.
Separate from the other backends so that models without routes do not pay for them. How the encoder works does not
belong here.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from launcher.core.protocol.messages import Setup
from launcher.core.tasks.routes import static_route
from launcher.worker.compare_tokenizers import check_tokenizer
from launcher.worker.interfaces import Backend, BatchOutput, ItemBatch, LoadedModel, ModelError, ReportProgress, Results
from launcher.worker.tasks.embedding_modules import read_weights

WEIGHTS = "weight"


class RoutedBackend:
    """See the head of this module. ``encoder`` computes the items of the other route."""

    def __init__(self, setup: Setup, encoder: Backend) -> None:
        assert setup.model_info.sparse is not None, "only sparse embedders have routes"
        self._setup = setup
        self._encoder = encoder
        self._max_active = setup.model_info.sparse.max_active
        self._weights: Tensor

    def load(self, report: ReportProgress) -> LoadedModel:
        """See ``Backend.load``. The weights stay in fp32 whatever the dtype of the model."""
        loaded = self._encoder.load(report)
        route = static_route(self._setup.model_info)
        check_tokenizer(route, trust_remote_code=self._setup.trust_remote_code)
        found = read_weights(Path(route.folder))
        if set(found) != {WEIGHTS} or found[WEIGHTS].shape != (route.vocab_size,):
            shapes = {name: list(tensor.shape) for name, tensor in found.items()}
            raise ModelError(
                f"{route.asked}: the weights in {route.folder} are {shapes}; they must be the tensor {WEIGHTS!r} with "
                f"{route.vocab_size} values, one for each token of its tokenizer"
            )
        self._weights = found[WEIGHTS].float()
        return loaded

    def sample_batch(self, lengths: Sequence[int]) -> ItemBatch:
        """See ``Backend.sample_batch``; the batches are those of the encoder, which take longer."""
        return self._encoder.sample_batch(lengths)

    def run(self, batch: ItemBatch) -> BatchOutput:
        """See ``BatchRunner.run``."""
        if not any(batch.routes):
            return self._encoder.run(batch)
        ends = np.cumsum(batch.lengths)
        tokens = [slice(end - length, end) for end, length in zip(ends, batch.lengths, strict=True)]
        found: dict[int, Results] = {}
        encoded = [index for index, static in enumerate(batch.routes) if not static]
        computed = 0
        if encoded:
            output = self._encoder.run(_part(batch, encoded, tokens))
            found.update(zip(encoded, np.split(output.values, np.cumsum(output.rows)[:-1]), strict=True))
            computed = output.computed_tokens
        for index, static in enumerate(batch.routes):
            if static:
                found[index] = self._static_rows(torch.from_numpy(batch.ids[tokens[index]].astype("int64")))
                computed += batch.lengths[index]
        rows = [found[index] for index in range(len(batch.lengths))]
        return BatchOutput(np.concatenate(rows), computed, tuple(map(len, rows)))

    def _static_rows(self, ids: Tensor) -> Results:
        """The rows (token id, weight) of an item, by ascending token id; those of the largest amount if limited."""
        distinct = torch.unique(ids)
        vector = torch.zeros_like(self._weights).scatter(0, distinct, self._weights[distinct])
        if self._max_active is not None and self._max_active < len(vector):
            kept = torch.topk(vector.abs(), self._max_active).indices
            vector = torch.zeros_like(vector).scatter(0, kept, vector[kept])
        nonzero = vector.nonzero()[:, 0]
        rows: Results = torch.stack([nonzero.float(), vector[nonzero]], dim=1).numpy()
        return rows


def _part(batch: ItemBatch, items: Sequence[int], tokens: Sequence[slice]) -> ItemBatch:
    """The batch of some items of ``batch``, whose tokens are in these places."""
    return replace(
        batch,
        ids=np.concatenate([batch.ids[tokens[index]] for index in items]),
        lengths=tuple(batch.lengths[index] for index in items),
        type_ids=None if batch.type_ids is None else np.concatenate([batch.type_ids[tokens[index]] for index in items]),
        prompt_lengths=tuple(batch.prompt_lengths[index] for index in items) if batch.prompt_lengths else (),
        routes=(),
    )
