"""Attention that keeps the items of a packed batch apart.

Registered with the attention interface of transformers. It runs once per group of items of equal length, without a
mask. Separate from the layout because the model calls it, not the layout.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface, AttentionMaskInterface

from launcher.worker.batches import LengthGroup
from launcher.worker.interfaces import PackingUnsupportedError
from launcher.worker.optimizations import custom_ops

IMPLEMENTATION = "launcher_packed"


class PackedAttention:
    """Attention within each item of a packed batch.

    ``groups`` are those of the batch that is being computed. With ``fp32`` set, attention is computed in fp32 whatever
    the dtype of the model is.
    """

    def __init__(self) -> None:
        self.groups: tuple[LengthGroup, ...] = ()
        self.fp32 = False
        self._handle = custom_ops.register_attention(self)
        AttentionInterface.register(IMPLEMENTATION, self.attention_forward)
        AttentionMaskInterface.register(IMPLEMENTATION, _no_mask)

    def attention_forward(
        self, module: torch.nn.Module, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, **options: Any
    ) -> tuple[Tensor, None]:
        """As transformers calls it: 1 × heads × tokens × head size in, 1 × tokens × heads × head size out.

        Raises ``PackingUnsupportedError`` for inputs that would have to be split by item as well, such as position
        biases.
        """
        unknown = sorted(
            name for name, value in options.items() if isinstance(value, Tensor) and value.is_floating_point()
        )
        if unknown or options.get("softcap") is not None:
            raise PackingUnsupportedError(f"the attention of the model also takes {', '.join(unknown) or 'a softcap'}")
        causal = bool(getattr(module, "is_causal", False))
        scaling, window = options.get("scaling"), options.get("sliding_window")
        if custom_ops.is_tracing_or_compiling():
            return custom_ops.packed_attention([query, key, value], self._handle, causal, scaling, window), None
        return self.attend_within_items([query, key, value], causal, scaling, window), None

    def attend_within_items(
        self, query_key_value: list[Tensor], causal: bool, scaling: float | None, window: int | None
    ) -> Tensor:
        """Attention of each item to itself; shapes as in ``attention_forward``."""
        query, key, _ = query_key_value
        out = torch.empty_like(query.transpose(1, 2), memory_format=torch.contiguous_format)
        for group in self.groups:
            mask = _window_mask(group.length, window, causal)
            # Converted group by group: the fp32 states of a long sequence would not stay in the caches.
            q, k, v = (_states_of(group, states, fp32=self.fp32) for states in query_key_value)
            part = scaled_dot_product_attention(
                q, k, v, attn_mask=mask, is_causal=causal and mask is None, scale=scaling,
                enable_gqa=key.shape[1] != query.shape[1],
            )  # fmt: skip
            group.of(out[0]).copy_(part.transpose(1, 2))
        return out


def _no_mask(*arguments: Any, **options: Any) -> None:
    """No mask is built for the packed sequence: its size would be the square of the number of tokens."""


def _states_of(group: LengthGroup, states: Tensor, *, fp32: bool) -> Tensor:
    """The group's part of 1 × heads × tokens × head size, as items × heads × length × head size."""
    part = group.of(states[0].transpose(0, 1)).transpose(1, 2)
    return part.float() if fp32 else part


def _window_mask(length: int, window: int | None, causal: bool) -> Tensor | None:
    """Mask of a sliding window, as transformers defines it: True where two tokens are less than ``window`` apart and,
    if ``causal``, the second is not later. None if the window covers the whole item."""
    if window is None or length <= window:
        return None
    positions = torch.arange(length)
    distances = positions[:, None] - positions[None, :]
    near = distances.abs() < window
    return near & (distances >= 0) if causal else near
