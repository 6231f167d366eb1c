"""Weights in the layout in which oneDNN multiplies, laid out once: otherwise each batch pays for it anew.

Products of the same input are joined into one, and the activation behind a product is computed with it where the two
stand together in one block, as in BERT's. Kept only where it measures better, so on machines where the plain product
is the faster one nothing changes.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from launcher.worker import operators
from launcher.worker.clock import TOLERANCE, fastest


class PrepackedLinear(nn.Module):
    """In the place of an ``nn.Linear``, without gradients. ``tokens`` is the batch that it is laid out for.

    ``weight_input`` is the weight as an input of the recording that is being made: a tensor of this layout cannot be
    a constant of one.
    """

    weight_input: Tensor

    def __init__(self, weight: Tensor, bias: Tensor | None, tokens: int, activation: str) -> None:
        super().__init__()
        self.packed = torch.ops.mkldnn._reorder_linear_weight(weight, tokens)
        self.bias = bias
        self._product = operators.product(activation)

    def forward(self, states: Tensor) -> Tensor:
        """As the ``nn.Linear``, and the activation where there is one."""
        weight = self.weight_input if operators.recording() else self.packed
        return self._product(states, weight, self.bias)


class JoinedLinear(nn.Module):
    """Several ``nn.Linear`` of the same input, such as query, key and value, as one product: one pass over the input,
    and fewer and larger products, which are faster for short texts."""

    def __init__(self, linears: Sequence[nn.Linear], tokens: int) -> None:
        super().__init__()
        biases = [linear.bias.data for linear in linears if linear.bias is not None]
        weight = torch.cat([linear.weight.data for linear in linears])
        self.linear = PrepackedLinear(weight, torch.cat(biases) if biases else None, tokens, "none")
        self._states: Tensor | None = None
        self._result: Tensor
        self._parts, self._asked = len(linears), 0

    def forward(self, states: Tensor) -> Tensor:
        """All results side by side, computed when the first part asks, and let go when the last one has asked."""
        if states is not self._states:
            self._states, self._result, self._asked = states, self.linear(states), 0
        self._asked += 1
        result = self._result
        if self._asked == self._parts:
            self._states = None
            del self._result
        return result


class PartOfJoined(nn.Module):
    """In the place of one of the ``nn.Linear`` that were joined: ``outputs`` results from ``first`` on."""

    def __init__(self, joined: JoinedLinear, first: int, outputs: int) -> None:
        super().__init__()
        self.joined, self._first, self._stop = joined, first, first + outputs

    def forward(self, states: Tensor) -> Tensor:
        """As the ``nn.Linear``; a view."""
        results: Tensor = self.joined(states)
        return results[..., self._first : self._stop]


@dataclass(frozen=True, slots=True)
class Place:
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
    before = fastest(run)
    replaced = lay_out(model, tokens, run)
    try:
        after, same = fastest(run), proves()
    except (RuntimeError, AttributeError) as error:  # code of the model that looks at what a Linear has
        put(replaced, new=False)
        return f"the model does not take them ({type(error).__name__})"
    if not same:
        put(replaced, new=False)
        return "they gave other results"
    if after <= before * TOLERANCE:
        return None
    # Anything on the machine may have come between: once more.
    put(replaced, new=False)
    before = fastest(run)
    put(replaced, new=True)
    after = fastest(run)
    if after <= before * TOLERANCE:
        return None
    put(replaced, new=False)
    return f"they measured {after / before:.2f} times as long"


def lay_out(model: nn.Module, tokens: int, run: Callable[[], object]) -> list[Place]:
    """Put prepacked products in the place of every ``nn.Linear``, whatever they measure; ``run`` runs the model."""
    joined = _joined(model, tokens, run)
    replaced: list[Place] = []
    for parent in list(model.modules()):
        activation = _activation_of(parent)
        for name, module in list(parent.named_children()):
            if type(module) is nn.Linear:
                fused = activation is not None and name == "dense"
                new = joined.get(module) or _prepacked(module, tokens, "gelu" if fused else "none")
                replaced.append(Place(parent, name, module, new))
        if activation is not None:
            replaced.append(activation)
    put(replaced, new=True)
    return replaced


def _prepacked(linear: nn.Linear, tokens: int, activation: str) -> PrepackedLinear:
    return PrepackedLinear(linear.weight.data, None if linear.bias is None else linear.bias.data, tokens, activation)


def _joined(model: nn.Module, tokens: int, run: Callable[[], object]) -> dict[nn.Module, PartOfJoined]:
    """What stands in for each ``nn.Linear`` that gets its input together with others."""
    parts: dict[nn.Module, PartOfJoined] = {}
    for linears in _same_input(model, run):
        joined = JoinedLinear(linears, tokens)
        first = 0
        for linear in linears:
            parts[linear] = PartOfJoined(joined, first, linear.out_features)
            first += linear.out_features
    return parts


def _same_input(model: nn.Module, run: Callable[[], object]) -> list[list[nn.Linear]]:
    """The ``nn.Linear`` modules that are called with the very same tensor, one after the other, and once each."""
    calls: list[tuple[Tensor, nn.Linear]] = []

    def note(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        assert isinstance(module, nn.Linear)
        calls.append((inputs[0], module))

    hooks = [m.register_forward_pre_hook(note) for m in model.modules() if type(m) is nn.Linear]
    try:
        run()
    finally:
        for hook in hooks:
            hook.remove()
    times = Counter(linear for _, linear in calls)
    groups: list[list[nn.Linear]] = []
    last: Tensor | None = None
    for states, linear in calls:
        if states is not last:
            groups.append([])
        groups[-1].append(linear)
        last = states
    return [group for group in groups if len(group) > 1 and _alike(group) and all(times[one] == 1 for one in group)]


def _alike(linears: list[nn.Linear]) -> bool:
    return len({(linear.bias is None, linear.weight.dtype) for linear in linears}) == 1


def _activation_of(block: nn.Module) -> Place | None:
    """The GELU of a block that is nothing but a product and its activation."""
    children = dict(block.named_children())
    if set(children) != {"dense", "intermediate_act_fn"} or type(children["dense"]) is not nn.Linear:
        return None
    activation = children["intermediate_act_fn"]
    exact = type(activation).__name__ == "GELUActivation" and getattr(activation, "act", None) is nn.functional.gelu
    return Place(block, "intermediate_act_fn", activation, nn.Identity()) if exact else None


def put(places: list[Place], *, new: bool) -> None:
    """Put what is new in its place, or what was there before."""
    for place in places:
        setattr(place.parent, place.name, place.new if new else place.module)
