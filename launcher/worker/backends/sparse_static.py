"""The backend of a SparseStaticEmbedding: a text has the fixed weights of its tokens.

It computes one route of a sparse embedder (see ``routed``). The reference is ``SparseStaticEmbedding`` of
sentence-transformers 6.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from launcher.core.protocol.messages import Setup
from launcher.worker.compare_tokenizers import check_tokenizer
from launcher.worker.interfaces import BatchOutput, ItemBatch, LoadedModel, ModelError, ReportProgress, Results
from launcher.worker.sample_inputs import synthetic_batch
from launcher.worker.tasks.embedding_modules import read_weights

WEIGHTS = "weight"


class SparseStaticBackend:
    """See the head of this module."""

    def __init__(self, setup: Setup) -> None:
        assert setup.model_info.sparse is not None, "only sparse embedders have this route"
        self._setup = setup
        self._max_active = setup.model_info.sparse.max_active
        self._weights: Tensor

    def load(self, report: ReportProgress) -> LoadedModel:
        """Load the weights, which stay in fp32 whatever the dtype. Raises ``ModelError``."""
        model_info = self._setup.model_info
        check_tokenizer(model_info, trust_remote_code=self._setup.trust_remote_code)
        found = read_weights(Path(model_info.folder))
        if set(found) != {WEIGHTS} or found[WEIGHTS].shape != (model_info.vocab_size,):
            shapes = {name: list(tensor.shape) for name, tensor in found.items()}
            raise ModelError(
                f"{model_info.requested}: the weights in {model_info.folder} are {shapes}; they must be the tensor "
                f"{WEIGHTS!r} with {model_info.vocab_size} values, one for each token of its tokenizer"
            )
        self._weights = found[WEIGHTS].float()
        return LoadedModel(torch_version=str(torch.__version__), threads=torch.get_num_threads(), packed=True)

    def sample_batch(self, lengths: Sequence[int]) -> ItemBatch:
        """See ``Backend.sample_batch``."""
        return synthetic_batch(lengths, self._setup.model_info)

    def run(self, batch: ItemBatch) -> BatchOutput:
        """See ``BatchRunner.run``."""
        items = np.split(batch.ids, np.cumsum(batch.lengths)[:-1])
        found = [self._rows(torch.from_numpy(ids.astype(np.int64))) for ids in items]
        return BatchOutput(np.concatenate(found), len(batch.ids), tuple(map(len, found)))

    def _rows(self, ids: Tensor) -> Results:
        """The rows (token id, weight) of an item, by ascending token id; those of the largest amount if limited."""
        distinct = torch.unique(ids)
        vector = torch.zeros_like(self._weights).scatter(0, distinct, self._weights[distinct])
        if self._max_active is not None and self._max_active < len(vector):
            kept = torch.topk(vector.abs(), self._max_active).indices
            vector = torch.zeros_like(vector).scatter(0, kept, vector[kept])
        nonzero = vector.nonzero()[:, 0]
        rows: Results = torch.stack([nonzero.float(), vector[nonzero]], dim=1).numpy()
        return rows
