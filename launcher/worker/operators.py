"""Two operators of torch's own kind, so that a recorded or compiled model can call what is not recorded with it.

``launcher::attend`` is attention inside the items of a line, whose groups are others in each batch;
``launcher::linear`` a product with prepacked weights, which cannot be constants of a recording. Both find their
object by a number, since operators take tensors and numbers only.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import count
from typing import Any, Protocol
from weakref import WeakValueDictionary

import torch
from torch import Tensor


class Attention(Protocol):
    """Attention of a line: 1 × heads × tokens × head size in, 1 × tokens × heads × head size out."""

    def inside(
        self, query: Tensor, key: Tensor, value: Tensor, causal: bool, scaling: float | None, window: int | None
    ) -> Tensor:
        """See the class."""
        ...


class Product(Protocol):
    """… × inputs in, … × ``outputs`` out."""

    outputs: int

    def product(self, states: Tensor) -> Tensor:
        """See the class."""
        ...


_numbers = count()
_attentions: WeakValueDictionary[int, Attention] = WeakValueDictionary()
_products: WeakValueDictionary[int, Product] = WeakValueDictionary()

# torch.library has no annotations.
_library: Any = torch.library.Library("launcher", "DEF")  # type: ignore[no-untyped-call]
_library.define("linear(Tensor states, int number) -> Tensor")
_library.define(
    "attend(Tensor query, Tensor key, Tensor value, int number, bool causal, float? scaling, int? window) -> Tensor"
)


def number_attention(attention: Attention) -> int:
    """The number by which ``attend`` finds it, as long as it lives."""
    _attentions[number := next(_numbers)] = attention
    return number


def number_product(product: Product) -> int:
    """The number by which ``linear`` finds it, as long as it lives."""
    _products[number := next(_numbers)] = product
    return number


def recording() -> bool:
    """Whether what is called now becomes part of a recording or of compiled code."""
    return torch._C._is_tracing() or torch.compiler.is_compiling()


attend: Callable[..., Tensor] = torch.ops.launcher.attend
linear: Callable[..., Tensor] = torch.ops.launcher.linear


def _attend(
    query: Tensor, key: Tensor, value: Tensor, number: int, causal: bool, scaling: float | None, window: int | None
) -> Tensor:
    return _attentions[number].inside(query, key, value, causal, scaling, window)


def _attend_shape(query: Tensor, *_: object) -> Tensor:
    return torch.empty_like(query.transpose(1, 2), memory_format=torch.contiguous_format)


def _linear(states: Tensor, number: int) -> Tensor:
    return _products[number].product(states)


def _linear_shape(states: Tensor, number: int) -> Tensor:
    return states.new_empty((*states.shape[:-1], _products[number].outputs))


_library.impl("attend", _attend, "CPU")
_library.impl("attend", _attend_shape, "Meta")
_library.impl("linear", _linear, "CPU")
_library.impl("linear", _linear_shape, "Meta")
