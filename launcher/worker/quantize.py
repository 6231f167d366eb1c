"""Products in int8: weights are rounded once, the states of each token when they come, each token with a scale of its
own, so that no result depends on what else is in the batch.

A few channels of an encoder's states are many times as large as the others and would leave these a few steps only.
So the states are divided, and the weights multiplied, by a factor for each channel that evens them out (SmoothQuant,
Xiao et al. 2022, with an exponent of one half); what is large is seen when the check texts are run. States that come
from a GELU are never below its lowest value: their scale begins there, which doubles the steps. Everything between
the products stays in fp32.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from launcher.worker import custom_ops
from launcher.worker.fused_linear import Product, inputs_of, replace

# GELU's lowest value is -0.16997, and -0.17004 in the form with tanh.
GELU_LOWEST = -0.1701
# States of a GELU come this near to it somewhere; others that happen to stay above it do not.
GELU_NEAR = 0.16
# What is seen of a channel counts for at least one part in so many of what is seen of the mean one.
SILENT = 16
# Of the 256 steps of a byte: the one that stands for zero where states are of both signs, and the most on each side.
MIDDLE, LARGEST = 128, 127
STEPS = 255
TINY = 1e-5


@dataclass(slots=True)
class Seen:
    """What came into a product: the largest of each channel, its sign left out, and the lowest of all."""

    largest: Tensor
    lowest: float


class QuantizedLinear(Product):
    """In the place of an ``nn.Linear`` in fp32, of which ``seen`` came in."""

    def __init__(self, weight: Tensor, bias: Tensor | None, activation: str, seen: Seen) -> None:
        self._from_gelu = -GELU_NEAR >= seen.lowest >= GELU_LOWEST
        factors = torch.sqrt(self._range(seen) / weight.abs().amax(0).clamp(min=TINY)).clamp(min=TINY)
        smooth = weight * factors
        scales = (smooth.abs().amax(1) / LARGEST).clamp(min=1e-12)
        rounded = (smooth / scales.unsqueeze(1)).round().to(torch.int8)
        super().__init__(torch.ops.onednn.qlinear_prepack(rounded, None))
        self._inverse = 1 / factors
        self._scales, self._zeros = scales, torch.zeros(len(scales), dtype=torch.int64)
        self._activation = activation
        self._bias = torch.zeros(len(weight)) if bias is None else bias.clone()
        if self._from_gelu:
            self._above = -GELU_LOWEST * self._inverse
            self._bias += GELU_LOWEST * (rounded.float() * scales.unsqueeze(1) * self._inverse).sum(1)
        self._product = custom_ops.quantized_product(0 if self._from_gelu else MIDDLE)

    def _range(self, seen: Seen) -> Tensor:
        """How much of the steps each channel needs.

        One that was silent over the check texts may speak in others, and must not become the largest of all then.
        """
        if self._from_gelu:
            return seen.largest - GELU_LOWEST
        return torch.maximum(seen.largest, seen.largest.mean() / SILENT).clamp(min=TINY)

    def forward(self, states: Tensor) -> Tensor:
        """As the ``nn.Linear``, and the activation where there is one; fp32 in and out."""
        rows = states.reshape(-1, states.shape[-1])
        even = rows * self._inverse
        if self._from_gelu:
            even.add_(self._above).relu_()
            scale = even.amax(1, keepdim=True).clamp(min=TINY) / STEPS
            even.mul_(scale.reciprocal()).sub_(MIDDLE)
        else:
            largest = torch.maximum(even.amax(1, keepdim=True), even.amin(1, keepdim=True).neg())
            scale = largest.clamp(min=TINY) / LARGEST
            even.mul_(scale.reciprocal())
        result = self._product(_bytes(even), self.operand, self._scales, self._zeros)
        result.mul_(scale).add_(self._bias)
        if self._activation == "gelu":
            torch.ops.aten.gelu_(result)
        return result.view(*states.shape[:-1], -1)


def _bytes(steps: Tensor) -> Tensor:
    """Numbers of -128 to 127, which are overwritten, as bytes of 0 to 255.

    By way of int8: from fp32 to bytes without a sign torch takes ten times as long.
    """
    return steps.round_().to(torch.int8).to(torch.uint8).bitwise_xor_(MIDDLE)


def quantize(model: nn.Module, run: Callable[[], object]) -> str | None:
    """Put products in int8 in the place of every ``nn.Linear`` of a model in fp32; why not, else None.

    ``run`` runs the model over texts like those that it will get, from which the range of states is taken.
    """
    if not custom_ops.has_quantized_products():
        return "this torch has no int8 products of oneDNN"
    seen = _seen(model, run)
    if not seen:
        return "it has no linear layers"

    def make(linears: Sequence[nn.Linear], weight: Tensor, bias: Tensor | None, activation: str) -> nn.Module:
        found = seen.get(linears[0])
        return linears[0] if found is None else QuantizedLinear(weight, bias, activation, found)

    replace(model, run, make)
    return None


def _seen(model: nn.Module, run: Callable[[], object]) -> dict[nn.Linear, Seen]:
    seen: dict[nn.Linear, Seen] = {}
    for linear, states in inputs_of(model, run):
        rows = states.reshape(-1, states.shape[-1])
        largest, lowest = rows.abs().amax(0), float(rows.min())
        before = seen.setdefault(linear, Seen(largest, lowest))
        before.largest, before.lowest = torch.maximum(before.largest, largest), min(before.lowest, lowest)
    return seen
