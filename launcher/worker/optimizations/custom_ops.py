"""Operations that torch cannot trace or compile as they are, in a form that it can.

``launcher::packed_attention`` is attention within the items of a packed batch. Its groups differ from batch to batch,
and operators take only tensors and scalars, so it finds its attention object by a handle. ``prepacked_linear`` and
``int8_linear`` are the linear layers of oneDNN with prepacked weights.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from itertools import count
from typing import Any, NamedTuple, Protocol
from weakref import WeakValueDictionary

import torch
from torch import Tensor


class AttentionOptions(NamedTuple):
    """How the tokens of an item attend to each other, the same for all items.

    ``pattern`` and ``bias`` are indices of the attention's patterns and position biases. Without a pattern, ``causal``
    tells whether a token attends to later ones. ``scaling`` is the factor of the scores (None: the default, by head
    size), and ``softcap`` their limit.
    """

    pattern: int | None = None
    causal: bool = False
    scaling: float | None = None
    bias: int | None = None
    softcap: float | None = None


class Attention(Protocol):
    """Attention of a packed batch: 1 × heads × tokens × head size in, 1 × tokens × heads × head size out."""

    def attend_within_items(self, query_key_value: list[Tensor], options: AttentionOptions) -> Tensor:
        """See ``PackedAttention``."""
        ...


_next_handle = count()
_attentions: WeakValueDictionary[int, Attention] = WeakValueDictionary()

# torch.library has no type annotations.
_library: Any = torch.library.Library("launcher", "DEF")  # type: ignore[no-untyped-call]
_library.define(
    "packed_attention(Tensor[] query_key_value, int handle, int? pattern, bool causal, float? scaling, int? bias, "
    "float? softcap) -> Tensor"
)


def register_attention(attention: Attention) -> int:
    """The handle by which ``packed_attention`` finds ``attention``, valid as long as the object lives."""
    _attentions[handle := next(_next_handle)] = attention
    return handle


def is_tracing() -> bool:
    """Whether the current call is being traced by TorchScript."""
    return torch._C._is_tracing()


def is_tracing_or_compiling() -> bool:
    """Whether the current call is being traced by TorchScript or compiled by TorchDynamo."""
    return is_tracing() or torch.compiler.is_compiling()


packed_attention: Callable[..., Tensor] = torch.ops.launcher.packed_attention


def _packed_attention(query_key_value: list[Tensor], handle: int, *options: Any) -> Tensor:
    return _attentions[handle].attend_within_items(query_key_value, AttentionOptions(*options))


def _packed_attention_meta(query_key_value: list[Tensor], *_: object) -> Tensor:
    return torch.empty_like(query_key_value[0].transpose(1, 2), memory_format=torch.contiguous_format)


_library.impl("packed_attention", _packed_attention, "CPU")
_library.impl("packed_attention", _packed_attention_meta, "Meta")


def has_prepacked_linear() -> bool:
    """Whether this build of torch has oneDNN's linear layers with prepacked weights."""
    available: bool = torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
    return available and hasattr(torch.ops.mkldnn, "_reorder_linear_weight")


def has_int8_linear() -> bool:
    """Whether this build of torch has oneDNN's linear layers in int8."""
    return has_prepacked_linear() and hasattr(torch.ops.onednn, "qlinear_pointwise")


# oneDNN's name for the variant of GELU with the error function, the default of ``nn.GELU``.
_VARIANTS = {"none": "", "gelu": "none"}
_FLOAT = 6  # fp32 as a ScalarType, by which an IR graph names a dtype


@cache
def prepacked_linear(activation: str) -> Callable[[Tensor, Tensor, Tensor | None], Tensor]:
    """A function of states (… × inputs), a weight in oneDNN's layout, and a bias or None. It returns … × outputs, with
    the ``activation`` (``none`` or ``gelu``) fused.

    Built as an IR graph because the tracer rejects one of the operator's arguments, a list of optional numbers.
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
        f"launcher_prepacked_linear_{activation}", graph
    )
    return function


@cache
def int8_linear(zero_point: int) -> Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]:
    """A function of states in uint8 (rows × inputs, with this ``zero_point``), an int8 weight in oneDNN's layout, and
    the scales (fp32) and zero points (int64) of its outputs. It returns fp32, rows × outputs."""
    graph = torch._C.parse_ir(
        f"""graph(%states : Tensor, %weight : Tensor, %scales : Tensor, %zeros : Tensor):
          %one : float = prim::Constant[value=1.]()
          %zero_point : int = prim::Constant[value={zero_point}]()
          %zero : int = prim::Constant[value=0]()
          %float : int = prim::Constant[value={_FLOAT}]()
          %bias : NoneType = prim::Constant()
          %activation : str = prim::Constant[value="none"]()
          %numbers : Scalar?[] = prim::ListConstruct()
          %variant : str = prim::Constant[value=""]()
          %result : Tensor = onednn::qlinear_pointwise(%states, %one, %zero_point, %weight, %scales, %zeros, %bias,
            %one, %zero, %float, %activation, %numbers, %variant)
          return (%result)"""
    )
    function: Callable[[Tensor, Tensor, Tensor, Tensor], Tensor] = torch._C._create_function_from_graph(
        f"launcher_int8_linear_{zero_point}", graph
    )
    return function
