"""Attention that keeps the items of a packed batch apart.

Registered with the attention interface of transformers. It runs once per group of items of equal length. Separate from
the layout because the model calls it, not the layout.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface, AttentionMaskInterface, masking_utils

from launcher.worker.batches import LengthGroup
from launcher.worker.interfaces import PackingUnsupportedError
from launcher.worker.layouts.item_attention import AttentionPattern, BiasHandle, MaskHandle, PositionBias
from launcher.worker.optimizations import custom_ops
from launcher.worker.optimizations.custom_ops import AttentionOptions

IMPLEMENTATION = "launcher_packed"

# Every token attends to every token. Older versions of transformers have no such function.
_BIDIRECTIONAL = getattr(masking_utils, "bidirectional_mask_function", None)


class PackedAttention:
    """Attention within each item of a packed batch.

    With ``fp32`` set, attention is computed in fp32 whatever the dtype of the model is. ``has_patterns`` tells whether
    the model restricts which tokens attend to which.
    """

    def __init__(self, encoder: torch.nn.Module) -> None:
        self.fp32 = False
        self._groups: tuple[LengthGroup, ...] = ()
        self._patterns: list[AttentionPattern] = []
        self._biases: list[PositionBias] = []
        self._next_pattern = 0
        self._handle = custom_ops.register_attention(self)
        AttentionInterface.register(IMPLEMENTATION, self.attention_forward)
        AttentionMaskInterface.register(IMPLEMENTATION, self.mask_of)
        for module in encoder.modules():
            if callable(getattr(module, "compute_bias", None)):
                self._replace_bias(module)

    @property
    def has_patterns(self) -> bool:
        """See the class."""
        return bool(self._patterns)

    def start_batch(self, groups: tuple[LengthGroup, ...]) -> None:
        """Compute the batch with these groups from now on."""
        self._groups, self._next_pattern = groups, 0

    def mask_of(self, *arguments: Any, **options: Any) -> MaskHandle | None:
        """As transformers calls it to build a mask: None if every token attends to every token, else a handle.

        No mask is built for the packed sequence: its size would be the square of the number of tokens. A model asks
        for the same masks in the same order for each batch.
        """
        function = options["mask_function"]
        if function is _BIDIRECTIONAL:
            return None
        index = self._next_pattern
        self._next_pattern += 1
        if index == len(self._patterns):
            self._patterns.append(AttentionPattern(function))
        return MaskHandle(index)

    def attention_forward(
        self, module: torch.nn.Module, query: Tensor, key: Tensor, value: Tensor, mask: object, **options: Any
    ) -> tuple[Tensor, None]:
        """As transformers calls it: 1 × heads × tokens × head size in, 1 × tokens × heads × head size out.

        As there, without a mask the module tells whether attention is causal. Raises ``PackingUnsupportedError`` for
        inputs that would have to be split by item as well.
        """
        unknown = sorted(
            name for name, value in options.items() if isinstance(value, Tensor) and value.is_floating_point()
        )
        if unknown:
            raise PackingUnsupportedError(f"the attention of the model also takes {', '.join(unknown)}")
        pattern, causal = None, False
        if isinstance(mask, MaskHandle):
            pattern = mask.index
        elif mask is None:
            stated = options.get("is_causal")
            causal = bool(getattr(module, "is_causal", False) if stated is None else stated)
        else:
            raise PackingUnsupportedError("the model builds its own attention mask")
        bias = options.get("position_bias")
        chosen = AttentionOptions(
            pattern, causal, options.get("scaling"), None if bias is None else bias.index, options.get("softcap")
        )
        if custom_ops.is_tracing_or_compiling():
            return custom_ops.packed_attention([query, key, value], self._handle, *chosen), None
        return self.attend_within_items([query, key, value], chosen), None

    def attend_within_items(self, query_key_value: list[Tensor], options: AttentionOptions) -> Tensor:
        """Attention of each item to itself; shapes as in ``attention_forward``."""
        query, key, _ = query_key_value
        out = torch.empty_like(query.transpose(1, 2), memory_format=torch.contiguous_format)
        for group in self._groups:
            # Converted group by group: the fp32 states of a long sequence would not stay in the caches.
            q, k, v = (_states_of(group, states, fp32=self.fp32) for states in query_key_value)
            mask, causal = self._mask(group.length, q.dtype, options)
            if options.softcap is not None:
                part = _capped_attention(q, k, v, _with_causal(mask, group.length, causal), options)
            else:
                part = scaled_dot_product_attention(
                    q, k, v, attn_mask=mask, is_causal=causal, scale=options.scaling,
                    enable_gqa=key.shape[1] != query.shape[1],
                )  # fmt: skip
            group.of(out[0]).copy_(part.transpose(1, 2))
        return out

    def _mask(self, length: int, dtype: torch.dtype, options: AttentionOptions) -> tuple[Tensor | None, bool]:
        """The mask of an item, True where a token attends to another or added to the scores, and whether it is causal
        besides."""
        mask, causal = None, options.causal
        if options.pattern is not None:
            mask, causal = self._patterns[options.pattern].of(length)
        if options.bias is None:
            return mask, causal
        bias = self._biases[options.bias].of(length, dtype)
        mask = _with_causal(mask, length, causal)
        return (bias if mask is None else bias.masked_fill(~mask, torch.finfo(dtype).min)), False

    def _replace_bias(self, module: Any) -> None:
        """Let the module pass a handle to its attention: the biases of the packed sequence would be as large as its
        mask."""
        compute, handle = module.compute_bias, BiasHandle(len(self._biases))
        self._biases.append(PositionBias(compute))

        def compute_bias(*arguments: Any, **options: Any) -> Any:
            packed = module.config._attn_implementation == IMPLEMENTATION
            return handle if packed else compute(*arguments, **options)

        module.compute_bias = compute_bias


def _states_of(group: LengthGroup, states: Tensor, *, fp32: bool) -> Tensor:
    """The group's part of 1 × heads × tokens × head size, as items × heads × length × head size."""
    part = group.of(states[0].transpose(0, 1)).transpose(1, 2)
    return part.float() if fp32 else part


def _with_causal(mask: Tensor | None, length: int, causal: bool) -> Tensor | None:
    """The mask, or else that of causal attention if it is causal."""
    return torch.ones(length, length, dtype=torch.bool).tril() if causal else mask


def _capped_attention(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, options: AttentionOptions
) -> Tensor:
    """Attention whose scores are limited to ± ``softcap``, as in Gemma 2; shapes as in ``_states_of``."""
    cap, scaling = options.softcap or 1.0, options.scaling or query.shape[-1] ** -0.5
    repeats = query.shape[1] // key.shape[1]
    key, value = key.repeat_interleave(repeats, 1), value.repeat_interleave(repeats, 1)
    scores = torch.tanh(query @ key.transpose(2, 3) * scaling / cap) * cap
    if mask is not None:
        scores = scores.masked_fill(~mask, torch.finfo(scores.dtype).min)
    return torch.softmax(scores, -1, dtype=torch.float32).to(query.dtype) @ value
