"""The backend of static embeddings: the vector of a text is the mean of fixed vectors of its tokens.

Such a model has no encoder, so nothing is padded, traced or prepacked. The weights are those of the module
StaticEmbedding of sentence-transformers 6, or of model2vec, folded into one table as that library does.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import embedding_bag

from launcher.core.protocol.messages import Setup
from launcher.worker.interfaces import BatchOutput, ItemBatch, LoadedModel, ModelError, ReportProgress
from launcher.worker.result_checks import Reference, check_accuracy, check_padding
from launcher.worker.sample_inputs import check_items, synthetic_batch
from launcher.worker.tasks.embed import Finish
from launcher.worker.tasks.embedding_modules import read_weights


class StaticBackend:
    """See the head of this module."""

    def __init__(self, setup: Setup) -> None:
        self._setup = setup
        self._table: Tensor
        self._finish: Finish

    def load(self, report: ReportProgress) -> LoadedModel:
        """Load the table of vectors, convert it to the dtype, and check the results. Raises ``ModelError``."""
        model_info, dtype = self._setup.model_info, self._setup.dtype
        if dtype == "int8":
            raise ModelError(
                f"{model_info.requested} has no linear layers to quantize to int8; use --dtype bf16 or fp32"
            )
        report("load", 0.0, model_info.requested)
        self._table = fold(read_weights(Path(model_info.folder)))
        self._finish = Finish(model_info)
        report("load", 1.0, model_info.requested)
        report("check", 0.0, "computing reference results in fp32")
        reference = Reference.one_by_one(self, model_info, check_items(model_info))
        check_padding(reference, self)
        accuracy = None
        if dtype == "bf16":
            self._table = self._table.to(torch.bfloat16)
            accuracy = check_accuracy(reference, self, dtype)
        report("check", 1.0, "static embeddings")
        return LoadedModel(
            torch_version=str(torch.__version__),
            threads=torch.get_num_threads(),
            accuracy=accuracy.cosine if accuracy else None,
            notes=("static embeddings: no encoder", *(accuracy.notes if accuracy else ())),
            packed=True,
        )

    def sample_batch(self, lengths: Sequence[int]) -> ItemBatch:
        """See ``Backend.sample_batch``."""
        return synthetic_batch(lengths, self._setup.model_info)

    @torch.inference_mode()
    def run(self, batch: ItemBatch) -> BatchOutput:
        """See ``BatchRunner.run``."""
        offsets = np.cumsum([0, *batch.lengths[:-1]], dtype=np.int64)
        tokens = torch.from_numpy(batch.ids.astype(np.int64))
        vectors = embedding_bag(tokens, self._table, torch.from_numpy(offsets), mode="mean")
        return BatchOutput(self._finish(vectors.float()).numpy(), len(batch.ids))


def fold(weights: dict[str, Tensor]) -> Tensor:
    """The table of vectors, fp32, token ids × dimensions.

    model2vec stores a row for several tokens once, with a ``mapping`` from token ids to rows, and a weight per token.
    """
    if "embedding.weight" in weights:
        return weights["embedding.weight"].float().clone()
    table = weights["embeddings"].float()
    if "mapping" in weights:
        table = table[weights["mapping"].long()]
    if "weights" in weights:
        table = table * weights["weights"].float().unsqueeze(1)
    return table.clone()
