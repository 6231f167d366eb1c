"""Pooling: the token embeddings of each item become one vector, in the modes of sentence-transformers 6.

Separate from ``embed`` because the modes have rules of their own. With ``prompts``, the leading tokens of each item are
left out, as the library does for ``include_prompt`` false. All vectors are float32. The modules after the pooling are
in ``embedding_modules``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from launcher.core.protocol.embedding_modules import PoolingMode
from launcher.core.protocol.model_info import Pooling


@dataclass(frozen=True, slots=True)
class TokenEmbeddings:
    """The token embeddings of a batch. ``hidden``: items × width × hidden size; ``lengths``: int64, the number of real
    tokens of each item. ``mask``: items × width, True for real tokens, or None if there is no padding. ``prompts``:
    int64, the number of leading tokens of each item to leave out, or None."""

    hidden: Tensor
    lengths: Tensor
    mask: Tensor | None
    prompts: Tensor | None = None

    def pooled(self) -> Tensor | None:
        """items × width, True for the tokens to pool; None for all of them."""
        if self.prompts is None:
            return self.mask
        after = torch.arange(self.hidden.shape[1]) >= self.prompts.unsqueeze(1)
        return after if self.mask is None else after & self.mask

    def counts(self) -> Tensor:
        """The number of tokens to pool of each item, items × 1; at least 1."""
        counts = self.lengths if self.prompts is None else (self.lengths - self.prompts).clamp(min=1)
        return counts.float().unsqueeze(1)


def pool(tokens: TokenEmbeddings, pooling: Pooling) -> Tensor:
    """Vectors of a batch, float32, items × hidden size; those of several modes are concatenated."""
    if isinstance(pooling, str):
        return _POOLERS[pooling](tokens)
    return torch.cat([_POOLERS[mode](tokens) for mode in pooling], dim=1)


def _mean(tokens: TokenEmbeddings) -> Tensor:
    mask = tokens.pooled()
    if mask is None:
        return tokens.hidden.float().mean(dim=1)
    return _weighted_sum(tokens.hidden, mask.float() / tokens.counts())


def _mean_sqrt_len(tokens: TokenEmbeddings) -> Tensor:
    """The sum divided by the square root of the number of tokens."""
    return _mean(tokens) * tokens.counts().sqrt()


def _weighted_mean(tokens: TokenEmbeddings) -> Tensor:
    """The mean with weights 1, 2, 3 … from the first token of the item on, whether it is left out or not."""
    mask = tokens.pooled()
    weights = torch.arange(1, tokens.hidden.shape[1] + 1, dtype=torch.float32).unsqueeze(0)
    weights = weights.expand(len(tokens.hidden), -1) if mask is None else weights * mask
    return _weighted_sum(tokens.hidden, weights / weights.sum(dim=1, keepdim=True).clamp(min=1e-9))


def _weighted_sum(hidden: Tensor, weights: Tensor) -> Tensor:
    return torch.bmm(weights.unsqueeze(1), hidden.float()).squeeze(1)


def _max(tokens: TokenEmbeddings) -> Tensor:
    mask, hidden = tokens.pooled(), tokens.hidden
    if mask is not None:
        hidden = hidden.masked_fill(~mask.unsqueeze(2), float("-inf"))
    return hidden.amax(dim=1).float()


def _cls(tokens: TokenEmbeddings) -> Tensor:
    """The first token to pool; the first of all if there is none."""
    if tokens.prompts is None:
        return tokens.hidden[:, 0].float()
    first = torch.where(tokens.prompts < tokens.lengths, tokens.prompts, 0)
    return tokens.hidden[torch.arange(len(first)), first].float()


def _last_token(tokens: TokenEmbeddings) -> Tensor:
    """The last token; zeros if it is left out."""
    vectors = tokens.hidden[torch.arange(len(tokens.lengths)), tokens.lengths - 1].float()
    if tokens.prompts is None:
        return vectors
    return vectors.masked_fill((tokens.prompts >= tokens.lengths).unsqueeze(1), 0.0)


_POOLERS: Mapping[PoolingMode, Callable[[TokenEmbeddings], Tensor]] = {
    "mean": _mean,
    "cls": _cls,
    "max": _max,
    "mean_sqrt_len_tokens": _mean_sqrt_len,
    "weightedmean": _weighted_mean,
    "lasttoken": _last_token,
}
