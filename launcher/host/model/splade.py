"""Reads the SpladePooling of a ``SparseEncoder`` of sentence-transformers.

It makes sparse vectors from the logits of a masked language model.

Separate from ``sentence_modules``, whose modules make dense vectors.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from launcher.core.protocol.task_settings import SparsePooling
from launcher.host.model.json_files import ModelErrors, read_object

SPARSE_ENCODER = "SparseEncoder"
MASKED_LANGUAGE_MODEL = "fill-mask"

# The settings of the Transformer of a SPLADE model, with their default values.
SPLADE_LIMITS: Mapping[str, Any] = {
    "transformer_task": MASKED_LANGUAGE_MODEL,
    "module_output_name": "token_embeddings",
    "modality_config": {"text": {"method": "forward", "method_output_name": "logits"}},
}

# "embedding_dimension" and its former name state the size of the vocabulary; they select nothing.
_KEYS = frozenset({"pooling_strategy", "activation_function", "embedding_dimension", "word_embedding_dimension"})


def read_splade_pooling(path: Path, refuse: ModelErrors) -> SparsePooling:
    """The pooling in the config of its module. Raises ``UsageError``."""
    config = read_object(path, refuse)
    for key, value in config.items():
        if key not in _KEYS and value is not None:
            raise refuse(f"{path} sets {key} to {value!r}, which is not supported; it must be absent")
    pooling, activation = config.get("pooling_strategy", "max"), config.get("activation_function", "relu")
    if pooling not in ("max", "sum"):
        raise refuse(f"{path} sets pooling_strategy to {pooling!r}; it must be 'max' or 'sum'")
    if activation not in ("relu", "log1p_relu"):
        raise refuse(f"{path} sets activation_function to {activation!r}; it must be 'relu' or 'log1p_relu'")
    return SparsePooling(pooling=pooling, activation=activation)
