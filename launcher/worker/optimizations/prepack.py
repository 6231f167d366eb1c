"""Weights in the layout in which oneDNN multiplies them, reordered once instead of in each batch.

Kept only if it measures at least as fast, so nothing changes on machines where the plain layer is faster.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from launcher.worker.optimizations import custom_ops
from launcher.worker.optimizations.fused_linear import OneDNNLinear, Replacement, replace_linears, set_replaced
from launcher.worker.timing import keep_if_not_slower

ATTEMPTS = 2  # anything else on the machine may disturb one measurement


class PrepackedLinear(OneDNNLinear):
    """Replaces an ``nn.Linear``, for inference only. ``tokens`` is the batch size that the layout is optimized for."""

    def __init__(self, weight: Tensor, bias: Tensor | None, tokens: int, activation: str) -> None:
        super().__init__(torch.ops.mkldnn._reorder_linear_weight(weight, tokens))
        self.bias = bias
        self._linear = custom_ops.prepacked_linear(activation)

    def forward(self, states: Tensor) -> Tensor:
        """The result of the replaced layer, and of the activation if one is fused."""
        return self._linear(states, self.current_weight, self.bias)


def prepack_if_faster(
    model: nn.Module, tokens: int, run: Callable[[], object], results_unchanged: Callable[[], bool]
) -> str | None:
    """Prepack the weights of every ``nn.Linear``. Returns None, or the reason why the plain weights are kept.

    ``run`` runs the model on about ``tokens`` tokens, to be timed; ``results_unchanged`` compares its results with
    those before.
    """
    if not custom_ops.has_prepacked_linear():
        return "this build of torch has no oneDNN"
    try:
        replacements = prepack(model, tokens, run)
    except RuntimeError as error:  # before anything is replaced: oneDNN refuses the dtype on this processor
        return f"oneDNN refused ({str(error).splitlines()[0]})"
    try:
        unchanged = results_unchanged()
    except (RuntimeError, AttributeError) as error:  # model code that inspects its nn.Linear modules
        set_replaced(replacements, False)
        return f"the model does not support replaced linear layers ({type(error).__name__})"
    if not unchanged:
        set_replaced(replacements, False)
        return "the results differ"
    slowdown = keep_if_not_slower(run, lambda on: set_replaced(replacements, on), attempts=ATTEMPTS)
    return None if slowdown is None else f"a batch took {slowdown:.2f} times as long"


def prepack(model: nn.Module, tokens: int, run: Callable[[], object]) -> list[Replacement]:
    """Prepack the weights of every ``nn.Linear``, without measuring; ``run`` runs the model."""

    def factory(linears: Sequence[nn.Linear], weight: Tensor, bias: Tensor | None, activation: str) -> PrepackedLinear:
        return PrepackedLinear(weight, bias, tokens, activation)

    return replace_linears(model, run, factory)
