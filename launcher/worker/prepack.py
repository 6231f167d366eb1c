"""Weights in the layout in which oneDNN multiplies, laid out once: otherwise each batch pays for it anew.

The activation behind a product is computed with it where the two stand together in one block, as in BERT's. Kept only
where it measures better, so on machines where the plain product is the faster one nothing changes.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from launcher.worker import operators

ROUNDS = 3
# Noise of a measurement: this much slower still counts as not slower.
TOLERANCE = 1.02


class PrepackedLinear(nn.Module):
    """In the place of an ``nn.Linear``, without gradients. ``tokens`` is the batch that it is laid out for."""

    def __init__(self, linear: nn.Linear, tokens: int, activation: str) -> None:
        super().__init__()
        self.packed = torch.ops.mkldnn._reorder_linear_weight(linear.weight.data, tokens)
        self.bias = None if linear.bias is None else linear.bias.data
        self.outputs = linear.out_features
        self._number = operators.number_product(self)
        self._activation = activation
        # The variant of GELU with the error function, as ``nn.GELU`` has it by default.
        self._variant = "none" if activation == "gelu" else ""

    def forward(self, states: Tensor) -> Tensor:
        """As the ``nn.Linear``, and the activation where there is one."""
        return operators.linear(states, self._number) if operators.recording() else self.product(states)

    def product(self, states: Tensor) -> Tensor:
        """What ``forward`` gives."""
        result: Tensor = torch.ops.mkldnn._linear_pointwise(
            states, self.packed, self.bias, self._activation, [], self._variant
        )
        return result


@dataclass(frozen=True, slots=True)
class _Place:
    """Where a module sits, ``parent.name``, and what stands in for it."""

    parent: nn.Module
    name: str
    module: nn.Module
    new: nn.Module


def prepack(model: nn.Module, tokens: int, run: Callable[[], object], proves: Callable[[], bool]) -> str | None:
    """Lay out the weights of every ``nn.Linear``; why not, where the plain ones stay, else None.

    ``run`` runs the model over about ``tokens`` tokens, for the time it takes before and after; ``proves`` says
    whether it still gives the same results.
    """
    available: bool = torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
    if not available or not hasattr(torch.ops.mkldnn, "_reorder_linear_weight"):
        return "this torch has no oneDNN"
    before = _fastest(run)
    replaced = _replace(model, tokens)
    try:
        after, same = _fastest(run), proves()
    except (RuntimeError, AttributeError) as error:  # code of the model that looks at what a Linear has
        _put(replaced, new=False)
        return f"the model does not take them ({type(error).__name__})"
    if not same:
        _put(replaced, new=False)
        return "they gave other results"
    if after <= before * TOLERANCE:
        return None
    # Anything on the machine may have come between: once more.
    _put(replaced, new=False)
    before = _fastest(run)
    _put(replaced, new=True)
    after = _fastest(run)
    if after <= before * TOLERANCE:
        return None
    _put(replaced, new=False)
    return f"they measured {after / before:.2f} times as long"


def _fastest(run: Callable[[], object]) -> float:
    """Seconds of the fastest of some runs; one before that is not counted."""
    run()
    seconds = []
    for _ in range(ROUNDS):
        start = time.perf_counter()
        run()
        seconds.append(time.perf_counter() - start)
    return min(seconds)


def _replace(model: nn.Module, tokens: int) -> list[_Place]:
    replaced: list[_Place] = []
    for parent in list(model.modules()):
        activation = _activation_of(parent)
        for name, module in list(parent.named_children()):
            if type(module) is nn.Linear:
                fused = activation is not None and name == "dense"
                new = PrepackedLinear(module, tokens, "gelu" if fused else "none")
                replaced.append(_Place(parent, name, module, new))
        if activation is not None:
            replaced.append(activation)
    _put(replaced, new=True)
    return replaced


def _activation_of(block: nn.Module) -> _Place | None:
    """The GELU of a block that is nothing but a product and its activation."""
    children = dict(block.named_children())
    if set(children) != {"dense", "intermediate_act_fn"} or type(children["dense"]) is not nn.Linear:
        return None
    activation = children["intermediate_act_fn"]
    exact = type(activation).__name__ == "GELUActivation" and getattr(activation, "act", None) is nn.functional.gelu
    return _Place(block, "intermediate_act_fn", activation, nn.Identity()) if exact else None


def _put(places: list[_Place], *, new: bool) -> None:
    for place in places:
        setattr(place.parent, place.name, place.new if new else place.module)
