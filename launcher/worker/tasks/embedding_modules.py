"""The modules of sentence-transformers that work on vectors: Dense, LayerNorm and Normalize, with their weights.

Separate from ``embed`` because the weights of each module are in a folder of its own. They are computed in fp32
whatever the dtype of the model: they are a small part of the work.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from pathlib import Path

import safetensors.torch
import torch
from torch import Tensor, nn

from launcher.core.protocol import embedding_modules as protocol
from launcher.worker.interfaces import ModelError


class DenseLayer(nn.Module):
    """See ``embedding_modules.Dense``; the names of its parts are those of the weights."""

    def __init__(self, module: protocol.Dense) -> None:
        super().__init__()
        self.linear = nn.Linear(module.in_features, module.out_features, bias=module.bias)
        self._activation: nn.Module = getattr(nn, module.activation)()
        self._adds_input = module.residual
        self.residual: nn.Module | None = None
        if module.residual and module.in_features != module.out_features:
            self.residual = nn.Linear(module.in_features, module.out_features, bias=False)

    def forward(self, vectors: Tensor) -> Tensor:
        """The result, … × out_features."""
        result: Tensor = self._activation(self.linear(vectors))
        if not self._adds_input:
            return result
        return result + (vectors if self.residual is None else self.residual(vectors))


class Normalization(nn.Module):
    """See ``embedding_modules.LayerNorm``."""

    def __init__(self, module: protocol.LayerNorm) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(module.dimension)

    def forward(self, vectors: Tensor) -> Tensor:
        """The normalized vectors."""
        result: Tensor = self.norm(vectors)
        return result


class UnitLength(nn.Module):
    """See ``embedding_modules.Normalize``."""

    def forward(self, vectors: Tensor) -> Tensor:
        """The vectors, divided by their norms."""
        return nn.functional.normalize(vectors, dim=-1)


@cache  # each layout has a task of its own, and they share the weights
def load_modules(modules: tuple[protocol.EmbeddingModule, ...]) -> Sequence[nn.Module]:
    """The modules with their weights, in fp32. Raises ``ModelError`` if the weights do not fit."""
    return [_load(module).eval() for module in modules]


def apply(modules: Sequence[nn.Module], vectors: Tensor) -> Tensor:
    """The result of the modules, one after another, for float32 vectors, … × width."""
    for module in modules:
        vectors = module(vectors)
    return vectors


def _load(module: protocol.EmbeddingModule) -> nn.Module:
    if isinstance(module, protocol.Normalize):
        return UnitLength()
    layer: nn.Module = DenseLayer(module) if isinstance(module, protocol.Dense) else Normalization(module)
    try:
        layer.load_state_dict(read_weights(Path(module.folder)))
    except RuntimeError as error:  # of load_state_dict, for other names or shapes
        raise ModelError(
            f"the weights in {module.folder} do not fit its config: {' '.join(str(error).split())}"
        ) from error
    return layer


def read_weights(folder: Path) -> dict[str, Tensor]:
    """The weights of a module by name, from ``model.safetensors`` or else ``pytorch_model.bin``."""
    path = folder / "model.safetensors"
    if path.is_file():
        return safetensors.torch.load_file(path)
    weights: dict[str, Tensor] = torch.load(folder / "pytorch_model.bin", map_location="cpu", weights_only=True)
    return weights
