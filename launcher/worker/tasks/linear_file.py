"""Reads a linear layer from a file of its own, as BGE-M3 saves its heads.

Separate because several tasks have such a head. The layer stays in fp32: it is a small part of the work.
"""

from __future__ import annotations

from pathlib import Path

import torch

from launcher.worker.interfaces import ModelError


def read_linear(path: Path, inputs: int, outputs: int | None = None) -> torch.nn.Linear:
    """The layer saved in ``path`` as a dictionary of ``weight`` and ``bias``. Raises ``ModelError`` if it has other
    tensors or sizes; ``outputs`` None accepts any number."""
    try:
        tensors = torch.load(path, map_location="cpu", weights_only=True)
        weight, bias = tensors["weight"].float(), tensors["bias"].float()
    except Exception as error:  # of the unpickler, for a file of another format
        raise ModelError(f"{path} is not a saved linear layer with weight and bias: {error}") from error
    if weight.dim() != 2 or weight.shape[1] != inputs or outputs not in (None, weight.shape[0]) or len(tensors) != 2:
        raise ModelError(
            f"{path} has a weight of shape {tuple(weight.shape)}; it must be ({outputs or 'any'}, {inputs})"
        )
    layer = torch.nn.Linear(inputs, weight.shape[0])
    layer.load_state_dict({"weight": weight, "bias": bias})
    return layer.eval()
