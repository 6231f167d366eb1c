"""What stands in the places of a model's ``nn.Linear`` modules: products that are computed in another way.

Products of the same input are joined into one, and the activation behind a product is given to it where the two stand
together in one block, as in BERT's. How a product is computed is for others to say (``Make``).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from launcher.worker import custom_ops


class Product(nn.Module):
    """A product with a weight in oneDNN's own layout. A tensor of that layout cannot be a constant of a recording:
    while one is made, ``weight_input`` is the weight as an input of it."""

    weight_input: Tensor

    def __init__(self, packed: Tensor) -> None:
        super().__init__()
        self.packed = packed

    @property
    def operand(self) -> Tensor:
        """The weight to compute with."""
        return self.weight_input if custom_ops.tracing() else self.packed


Make = Callable[[Sequence[nn.Linear], Tensor, Tensor | None, str], nn.Module]
"""Makes what computes the product of some modules of the same input, from their joined weight and bias and the
activation behind it, ``none`` or ``gelu``. The weight is outputs × inputs."""


class JoinedLinear(nn.Module):
    """Several ``nn.Linear`` of the same input, such as query, key and value, as one product: one pass over the input,
    and fewer and larger products, which are faster for short texts."""

    def __init__(self, product: nn.Module, parts: int) -> None:
        super().__init__()
        self.product = product
        self._states: Tensor | None = None
        self._result: Tensor
        self._parts, self._asked = parts, 0

    def forward(self, states: Tensor) -> Tensor:
        """All results side by side, computed when the first part asks, and let go when the last one has asked."""
        if states is not self._states:
            self._states, self._result, self._asked = states, self.product(states), 0
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


def put(places: list[Place], *, new: bool) -> None:
    """Put what is new in its place, or what was there before."""
    for place in places:
        setattr(place.parent, place.name, place.new if new else place.module)


def replace(model: nn.Module, run: Callable[[], object], make: Make) -> list[Place]:
    """Put what ``make`` makes in the place of every ``nn.Linear``. ``run`` runs the model, to see which of them get
    the same input."""
    joined = _joined(model, run, make)
    places: list[Place] = []
    for parent in list(model.modules()):
        activation = _activation_of(parent)
        for name, module in list(parent.named_children()):
            if type(module) is nn.Linear:
                behind = "gelu" if activation is not None and name == "dense" else "none"
                new = joined.get(module) or make([module], *_weight_and_bias([module]), behind)
                places.append(Place(parent, name, module, new))
                if behind == "gelu" and new is not module:
                    assert activation is not None
                    places.append(activation)
    put(places, new=True)
    return places


def _joined(model: nn.Module, run: Callable[[], object], make: Make) -> dict[nn.Module, PartOfJoined]:
    """What stands in for each ``nn.Linear`` that gets its input together with others."""
    parts: dict[nn.Module, PartOfJoined] = {}
    for linears in _same_input(model, run):
        joined = JoinedLinear(make(linears, *_weight_and_bias(linears), "none"), len(linears))
        first = 0
        for linear in linears:
            parts[linear] = PartOfJoined(joined, first, linear.out_features)
            first += linear.out_features
    return parts


def _weight_and_bias(linears: Sequence[nn.Linear]) -> tuple[Tensor, Tensor | None]:
    biases = [linear.bias.data for linear in linears if linear.bias is not None]
    return torch.cat([linear.weight.data for linear in linears]), torch.cat(biases) if biases else None


def _same_input(model: nn.Module, run: Callable[[], object]) -> list[list[nn.Linear]]:
    """The ``nn.Linear`` modules that are called with the very same tensor, one after the other, and once each. Those
    with an activation behind them stay alone."""
    alone = {parent.get_submodule("dense") for parent in model.modules() if _activation_of(parent) is not None}
    calls = [(linear, states) for linear, states in inputs_of(model, run) if linear not in alone]
    times = Counter(linear for linear, _ in calls)
    groups: list[list[nn.Linear]] = []
    last: Tensor | None = None
    for linear, states in calls:
        if states is not last:
            groups.append([])
        groups[-1].append(linear)
        last = states
    return [group for group in groups if len(group) > 1 and _alike(group) and all(times[one] == 1 for one in group)]


def inputs_of(model: nn.Module, run: Callable[[], object]) -> list[tuple[nn.Linear, Tensor]]:
    """Each call of an ``nn.Linear`` of the model while it is run once, with its input, in order."""
    calls: list[tuple[nn.Linear, Tensor]] = []

    def note(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        assert isinstance(module, nn.Linear)
        calls.append((module, inputs[0]))

    hooks = [m.register_forward_pre_hook(note) for m in model.modules() if type(m) is nn.Linear]
    try:
        run()
    finally:
        for hook in hooks:
            hook.remove()
    return calls


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
