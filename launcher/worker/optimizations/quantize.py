"""Linear layers in int8: weights are quantized once, states at run time with one scale per token, so that no result
depends on the rest of the batch.

A few channels of an encoder's states are many times larger than the others and would leave those only a few
quantization steps. States are therefore divided, and weights multiplied, by a factor per channel (SmoothQuant, Xiao et
al. 2022, with an exponent of one half), computed from the states of the check texts. The output of a GELU is never
below its minimum: such states are quantized from that value up, which doubles the resolution. Everything between the
linear layers stays in fp32.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from launcher.worker.optimizations import custom_ops
from launcher.worker.optimizations.fused_linear import OneDNNLinear, record_inputs, replace_linears

# The minimum of GELU is -0.16997, and -0.17004 for the tanh approximation.
GELU_MINIMUM = -0.1701
# States are the output of a GELU if their minimum is between GELU_MINIMUM and this: others that happen to stay above
# the minimum do not come this close to it.
GELU_MINIMUM_SEEN = -0.16
# The range of a channel counts as at least this fraction of the mean range over all channels.
MIN_RANGE_RATIO = 1 / 16
# Steps of a byte: the zero point of symmetric quantization, the largest value on each side of it, and all steps.
ZERO_POINT, MAX_INT8 = 128, 127
MAX_UINT8 = 255
EPSILON = 1e-5


@dataclass(slots=True)
class InputRange:
    """The inputs of a linear layer during calibration: the largest absolute value of each channel, and the minimum
    over all channels."""

    largest: Tensor
    minimum: float


class QuantizedLinear(OneDNNLinear):
    """Replaces an ``nn.Linear`` in fp32 whose inputs have the range ``seen``."""

    def __init__(self, weight: Tensor, bias: Tensor | None, activation: str, seen: InputRange) -> None:
        self._from_gelu = GELU_MINIMUM_SEEN >= seen.minimum >= GELU_MINIMUM
        factors = torch.sqrt(self._range(seen) / weight.abs().amax(0).clamp(min=EPSILON)).clamp(min=EPSILON)
        smooth = weight * factors
        scales = (smooth.abs().amax(1) / MAX_INT8).clamp(min=1e-12)
        quantized = (smooth / scales.unsqueeze(1)).round().to(torch.int8)
        super().__init__(torch.ops.onednn.qlinear_prepack(quantized, None))
        self._inverse_factors = 1 / factors
        self._scales, self._zero_points = scales, torch.zeros(len(scales), dtype=torch.int64)
        self._activation = activation
        self._bias = torch.zeros(len(weight)) if bias is None else bias.clone()
        if self._from_gelu:
            self._shift = -GELU_MINIMUM * self._inverse_factors
            self._bias += GELU_MINIMUM * (quantized.float() * scales.unsqueeze(1) * self._inverse_factors).sum(1)
        self._linear = custom_ops.int8_linear(0 if self._from_gelu else ZERO_POINT)

    def _range(self, seen: InputRange) -> Tensor:
        """The range of each channel.

        A channel that is near zero on the check texts may be large on others and must not dominate them then.
        """
        if self._from_gelu:
            return seen.largest - GELU_MINIMUM
        return torch.maximum(seen.largest, seen.largest.mean() * MIN_RANGE_RATIO).clamp(min=EPSILON)

    def forward(self, states: Tensor) -> Tensor:
        """The result of the replaced layer, and of the activation if one is fused; fp32 in and out."""
        rows = states.reshape(-1, states.shape[-1])
        smooth = rows * self._inverse_factors
        if self._from_gelu:
            smooth.add_(self._shift).relu_()
            scale = smooth.amax(1, keepdim=True).clamp(min=EPSILON) / MAX_UINT8
            smooth.mul_(scale.reciprocal()).sub_(ZERO_POINT)
        else:
            largest = torch.maximum(smooth.amax(1, keepdim=True), smooth.amin(1, keepdim=True).neg())
            scale = largest.clamp(min=EPSILON) / MAX_INT8
            smooth.mul_(scale.reciprocal())
        result = self._linear(_to_uint8(smooth), self.current_weight, self._scales, self._zero_points)
        result.mul_(scale).add_(self._bias)
        if self._activation == "gelu":
            torch.ops.aten.gelu_(result)
        return result.view(*states.shape[:-1], -1)


def _to_uint8(values: Tensor) -> Tensor:
    """Values from -128 to 127, which are overwritten, as bytes from 0 to 255.

    Converts by way of int8 because torch takes ten times as long from fp32 to uint8.
    """
    return values.round_().to(torch.int8).to(torch.uint8).bitwise_xor_(ZERO_POINT)


def quantize(model: nn.Module, run: Callable[[], object]) -> str | None:
    """Replace every ``nn.Linear`` of a model in fp32 with its int8 form. Returns None, or the reason why that is
    impossible.

    ``run`` runs the model on texts like those that it will serve, for calibration.
    """
    if not custom_ops.has_int8_linear():
        return "this build of torch has no int8 linear layers (oneDNN)"
    ranges = _calibrate(model, run)
    if not ranges:
        return "the model has no linear layers"

    def factory(linears: Sequence[nn.Linear], weight: Tensor, bias: Tensor | None, activation: str) -> nn.Module:
        seen = ranges.get(linears[0])
        return linears[0] if seen is None else QuantizedLinear(weight, bias, activation, seen)

    replace_linears(model, run, factory)
    return None


def _calibrate(model: nn.Module, run: Callable[[], object]) -> dict[nn.Linear, InputRange]:
    ranges: dict[nn.Linear, InputRange] = {}
    for linear, states in record_inputs(model, run):
        if not states.numel():  # of the adapter of a language that is not used
            continue
        rows = states.reshape(-1, states.shape[-1])
        largest, minimum = rows.abs().amax(0), float(rows.min())
        seen = ranges.setdefault(linear, InputRange(largest, minimum))
        seen.largest, seen.minimum = torch.maximum(seen.largest, largest), min(seen.minimum, minimum)
    return ranges
