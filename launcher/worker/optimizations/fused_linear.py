"""Replaces the ``nn.Linear`` modules of a model with modules that compute them differently.

Layers with the same input, such as query, key and value, are fused into one, and a GELU that follows a layer is fused
into it where both form a block of their own, as in BERT. How a layer is computed is up to the caller
(``LinearFactory``).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from launcher.worker.optimizations import custom_ops


class OneDNNLinear(nn.Module):
    """A linear layer with its weight in oneDNN's own layout. A tensor in that layout cannot be a constant of a
    TorchScript graph: during tracing, ``weight_input`` is the weight as an input of the graph."""

    weight_input: Tensor

    def __init__(self, prepacked: Tensor) -> None:
        super().__init__()
        self.prepacked = prepacked

    @property
    def current_weight(self) -> Tensor:
        """The weight to compute with."""
        return self.weight_input if custom_ops.is_tracing() else self.prepacked


LinearFactory = Callable[[Sequence[nn.Linear], Tensor, Tensor | None, str], nn.Module]
"""Makes the replacement of layers with the same input, from the layers, their concatenated weight (outputs × inputs)
and bias, and the activation to fuse, ``none`` or ``gelu``."""


class FusedLinear(nn.Module):
    """Several ``nn.Linear`` with the same input, such as query, key and value, as one: one pass over the input, and
    fewer and larger matrix products, which are faster for short texts."""

    def __init__(self, linear: nn.Module, parts: int) -> None:
        super().__init__()
        self.linear = linear
        self._states: Tensor | None = None
        self._result: Tensor
        self._parts, self._calls = parts, 0

    def forward(self, states: Tensor) -> Tensor:
        """All results side by side: computed for the first part that asks, released after the last one."""
        if states is not self._states:
            self._states, self._result, self._calls = states, self.linear(states), 0
        self._calls += 1
        result = self._result
        if self._calls == self._parts:
            self._states = None
            del self._result
        return result


class FusedLinearSlice(nn.Module):
    """Replaces one of the layers that were fused: ``outputs`` columns of the result, starting at ``first``."""

    def __init__(self, fused: FusedLinear, first: int, outputs: int) -> None:
        super().__init__()
        self.fused, self._first, self._stop = fused, first, first + outputs

    def forward(self, states: Tensor) -> Tensor:
        """The result of the replaced layer, as a view."""
        results: Tensor = self.fused(states)
        return results[..., self._first : self._stop]


@dataclass(frozen=True, slots=True)
class Replacement:
    """The module ``parent.name``, before and after."""

    parent: nn.Module
    name: str
    original: nn.Module
    replacement: nn.Module


def set_replaced(replacements: list[Replacement], replaced: bool) -> None:
    """Install the replacements, or restore the original modules."""
    for each in replacements:
        setattr(each.parent, each.name, each.replacement if replaced else each.original)


def replace_linears(model: nn.Module, run: Callable[[], object], factory: LinearFactory) -> list[Replacement]:
    """Replace every ``nn.Linear`` by what ``factory`` makes. ``run`` runs the model, to find layers with the same
    input."""
    fused = _fuse(model, run, factory)
    replacements: list[Replacement] = []
    for parent in list(model.modules()):
        gelu = _gelu_of(parent)
        for name, module in list(parent.named_children()):
            if type(module) is nn.Linear:
                activation = "gelu" if gelu is not None and name == "dense" else "none"
                new = fused.get(module) or factory([module], *_weight_and_bias([module]), activation)
                replacements.append(Replacement(parent, name, module, new))
                if activation == "gelu" and new is not module:
                    assert gelu is not None
                    replacements.append(gelu)
    set_replaced(replacements, True)
    return replacements


def _fuse(model: nn.Module, run: Callable[[], object], factory: LinearFactory) -> dict[nn.Module, FusedLinearSlice]:
    """The replacement of each ``nn.Linear`` that shares its input with others."""
    slices: dict[nn.Module, FusedLinearSlice] = {}
    for linears in _with_same_input(model, run):
        fused = FusedLinear(factory(linears, *_weight_and_bias(linears), "none"), len(linears))
        first = 0
        for linear in linears:
            slices[linear] = FusedLinearSlice(fused, first, linear.out_features)
            first += linear.out_features
    return slices


def _weight_and_bias(linears: Sequence[nn.Linear]) -> tuple[Tensor, Tensor | None]:
    biases = [linear.bias.data for linear in linears if linear.bias is not None]
    return torch.cat([linear.weight.data for linear in linears]), torch.cat(biases) if biases else None


def _with_same_input(model: nn.Module, run: Callable[[], object]) -> list[list[nn.Linear]]:
    """The ``nn.Linear`` modules that are called consecutively with the very same tensor, and once each. Layers with an
    activation to fuse are excluded.
    """
    alone = {parent.get_submodule("dense") for parent in model.modules() if _gelu_of(parent) is not None}
    calls = [(linear, states) for linear, states in record_inputs(model, run) if linear not in alone]
    times = Counter(linear for linear, _ in calls)
    groups: list[list[nn.Linear]] = []
    last: Tensor | None = None
    for linear, states in calls:
        if states is not last:
            groups.append([])
        groups[-1].append(linear)
        last = states
    return [group for group in groups if len(group) > 1 and _alike(group) and all(times[one] == 1 for one in group)]


def record_inputs(model: nn.Module, run: Callable[[], object]) -> list[tuple[nn.Linear, Tensor]]:
    """Each call of an ``nn.Linear`` of the model during one ``run``, with its input, in order."""
    calls: list[tuple[nn.Linear, Tensor]] = []

    def record(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        assert isinstance(module, nn.Linear)
        calls.append((module, inputs[0]))

    hooks = [m.register_forward_pre_hook(record) for m in model.modules() if type(m) is nn.Linear]
    try:
        run()
    finally:
        for hook in hooks:
            hook.remove()
    return calls


def _alike(linears: list[nn.Linear]) -> bool:
    return len({(linear.bias is None, linear.weight.dtype) for linear in linears}) == 1


def _gelu_of(block: nn.Module) -> Replacement | None:
    """The removal of the GELU of a block that consists of a linear layer and its activation."""
    children = dict(block.named_children())
    if set(children) != {"dense", "intermediate_act_fn"} or type(children["dense"]) is not nn.Linear:
        return None
    activation = children["intermediate_act_fn"]
    exact = type(activation).__name__ == "GELUActivation" and getattr(activation, "act", None) is nn.functional.gelu
    return Replacement(block, "intermediate_act_fn", activation, nn.Identity()) if exact else None
