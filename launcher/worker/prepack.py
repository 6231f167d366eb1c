"""Weights in the layout in which oneDNN multiplies, laid out once: otherwise each batch pays for it anew.

Kept only where it measures better, so on machines where the plain product is the faster one nothing changes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from launcher.worker import custom_ops
from launcher.worker.fused_linear import Place, Product, put, replace
from launcher.worker.timing import TOLERANCE, fastest


class PrepackedLinear(Product):
    """In the place of an ``nn.Linear``, without gradients. ``tokens`` is the batch that it is laid out for."""

    def __init__(self, weight: Tensor, bias: Tensor | None, tokens: int, activation: str) -> None:
        super().__init__(torch.ops.mkldnn._reorder_linear_weight(weight, tokens))
        self.bias = bias
        self._product = custom_ops.product(activation)

    def forward(self, states: Tensor) -> Tensor:
        """As the ``nn.Linear``, and the activation where there is one."""
        return self._product(states, self.operand, self.bias)


def prepack(model: nn.Module, tokens: int, run: Callable[[], object], proves: Callable[[], bool]) -> str | None:
    """Lay out the weights of every ``nn.Linear``; why not, where the plain ones stay, else None.

    ``run`` runs the model over about ``tokens`` tokens, for the time it takes before and after; ``proves`` says
    whether it still gives the same results.
    """
    if not custom_ops.has_products():
        return "this torch has no oneDNN"
    before = fastest(run)
    places = lay_out(model, tokens, run)
    try:
        after, same = fastest(run), proves()
    except (RuntimeError, AttributeError) as error:  # code of the model that looks at what a Linear has
        put(places, new=False)
        return f"the model does not take them ({type(error).__name__})"
    if not same:
        put(places, new=False)
        return "they gave other results"
    if after <= before * TOLERANCE:
        return None
    # Anything on the machine may have come between: once more.
    put(places, new=False)
    before = fastest(run)
    put(places, new=True)
    after = fastest(run)
    if after <= before * TOLERANCE:
        return None
    put(places, new=False)
    return f"they measured {after / before:.2f} times as long"


def lay_out(model: nn.Module, tokens: int, run: Callable[[], object]) -> list[Place]:
    """Put prepacked products in the place of every ``nn.Linear``, whatever they measure; ``run`` runs the model."""

    def make(linears: Sequence[nn.Linear], weight: Tensor, bias: Tensor | None, activation: str) -> PrepackedLinear:
        return PrepackedLinear(weight, bias, tokens, activation)

    return replace(model, run, make)
