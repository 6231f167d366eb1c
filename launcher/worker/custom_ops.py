"""What torch cannot record or compile as it stands, in a form that it can.

``launcher::attend`` is attention inside the items of a line, whose groups are others in each batch; it finds its
object by a number, since operators take tensors and numbers only. ``product`` is oneDNN's product with prepacked
weights.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
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


_numbers = count()
_attentions: WeakValueDictionary[int, Attention] = WeakValueDictionary()

# torch.library has no annotations.
_library: Any = torch.library.Library("launcher", "DEF")  # type: ignore[no-untyped-call]
_library.define(
    "attend(Tensor query, Tensor key, Tensor value, int number, bool causal, float? scaling, int? window) -> Tensor"
)


def number_attention(attention: Attention) -> int:
    """The number by which ``attend`` finds it, as long as it lives."""
    _attentions[number := next(_numbers)] = attention
    return number


def tracing() -> bool:
    """Whether what is called now becomes part of a recording."""
    return torch._C._is_tracing()


def recording() -> bool:
    """Whether what is called now becomes part of a recording or of compiled code."""
    return tracing() or torch.compiler.is_compiling()


attend: Callable[..., Tensor] = torch.ops.launcher.attend


def _attend(
    query: Tensor, key: Tensor, value: Tensor, number: int, causal: bool, scaling: float | None, window: int | None
) -> Tensor:
    return _attentions[number].inside(query, key, value, causal, scaling, window)


def _attend_shape(query: Tensor, *_: object) -> Tensor:
    return torch.empty_like(query.transpose(1, 2), memory_format=torch.contiguous_format)


_library.impl("attend", _attend, "CPU")
_library.impl("attend", _attend_shape, "Meta")


def has_products() -> bool:
    """Whether this torch has oneDNN's products with prepacked weights."""
    available: bool = torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
    return available and hasattr(torch.ops.mkldnn, "_reorder_linear_weight")


def has_quantized_products() -> bool:
    """Whether this torch has oneDNN's products in int8."""
    return has_products() and hasattr(torch.ops.onednn, "qlinear_pointwise")


# The variant of GELU with the error function, as ``nn.GELU`` has it by default.
_VARIANTS = {"none": "", "gelu": "none"}
_FLOAT = 6  # torch's number of fp32, where a graph names it


@cache
def product(activation: str) -> Callable[[Tensor, Tensor, Tensor | None], Tensor]:
    """The product of states, … × inputs, with a weight in oneDNN's layout, and a bias or None: … × outputs, with the
    ``activation`` (``none`` or ``gelu``) computed with it.

    Made of the graph itself: the tracer refuses a list of optional numbers, which is among the arguments.
    """
    graph = torch._C.parse_ir(
        f"""graph(%states : Tensor, %weight : Tensor, %bias : Tensor?):
          %activation : str = prim::Constant[value="{activation}"]()
          %numbers : Scalar?[] = prim::ListConstruct()
          %variant : str = prim::Constant[value="{_VARIANTS[activation]}"]()
          %result : Tensor = mkldnn::_linear_pointwise(%states, %weight, %bias, %activation, %numbers, %variant)
          return (%result)"""
    )
    function: Callable[[Tensor, Tensor, Tensor | None], Tensor] = torch._C._create_function_from_graph(
        f"launcher_product_{activation}", graph
    )
    return function


@cache
def quantized_product(zero: int) -> Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]:
    """The product of bytes, rows × inputs, of which ``zero`` stands for none, with an int8 weight in oneDNN's layout,
    whose outputs have scales (fp32) and zero points (int64): fp32, rows × outputs."""
    graph = torch._C.parse_ir(
        f"""graph(%bytes : Tensor, %weight : Tensor, %scales : Tensor, %zeros : Tensor):
          %one : float = prim::Constant[value=1.]()
          %zero : int = prim::Constant[value={zero}]()
          %none : int = prim::Constant[value=0]()
          %float : int = prim::Constant[value={_FLOAT}]()
          %bias : NoneType = prim::Constant()
          %activation : str = prim::Constant[value="none"]()
          %numbers : Scalar?[] = prim::ListConstruct()
          %variant : str = prim::Constant[value=""]()
          %result : Tensor = onednn::qlinear_pointwise(%bytes, %one, %zero, %weight, %scales, %zeros, %bias,
            %one, %none, %float, %activation, %numbers, %variant)
          return (%result)"""
    )
    function: Callable[[Tensor, Tensor, Tensor, Tensor], Tensor] = torch._C._create_function_from_graph(
        f"launcher_quantized_product_{zero}", graph
    )
    return function
