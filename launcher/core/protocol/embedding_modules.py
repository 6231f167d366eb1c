"""The steps from token embeddings to the vector of a text: pooling modes, and the modules that work on vectors.

Separate from ``model_info`` because these are the modules of sentence-transformers 6, in its terms. Weights are not
held here: a module names the folder that the worker loads them from.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal

import msgspec

PoolingMode = Literal["cls", "max", "mean", "mean_sqrt_len_tokens", "weightedmean", "lasttoken"]

Activation = Literal[
    "Identity", "Tanh", "ReLU", "ReLU6", "LeakyReLU", "ELU", "CELU", "SELU", "GELU", "SiLU", "Mish", "Sigmoid",
    "LogSigmoid", "Hardtanh", "Hardsigmoid", "Hardswish", "Softplus", "Softsign", "Tanhshrink", "Softshrink",
    "Hardshrink",
]  # fmt: skip
"""Classes of torch.nn that work value by value and need no arguments."""


class Dense(msgspec.Struct, frozen=True, tag="dense"):
    """``activation(x @ weight + bias)``, plus ``x`` or a linear projection of it with ``residual``."""

    folder: str
    in_features: int
    out_features: int
    bias: bool
    activation: Activation
    residual: bool = False

    @property
    def parameters(self) -> int:
        """The number of parameters."""
        projected = self.residual and self.in_features != self.out_features
        return self.in_features * self.out_features * (2 if projected else 1) + self.out_features * self.bias


class LayerNorm(msgspec.Struct, frozen=True, tag="layer_norm"):
    """Layer normalization with learned scale and shift."""

    folder: str
    dimension: int

    @property
    def parameters(self) -> int:
        """The number of parameters."""
        return 2 * self.dimension


class Normalize(msgspec.Struct, frozen=True, tag="normalize"):
    """Division by the Euclidean norm."""

    @property
    def parameters(self) -> int:
        """The number of parameters."""
        return 0


EmbeddingModule = Dense | LayerNorm | Normalize


def output_width(width: int, modules: Iterable[EmbeddingModule]) -> int:
    """The number of values in a vector that had ``width`` values before ``modules``."""
    for module in modules:
        if isinstance(module, Dense):
            width = module.out_features
    return width
