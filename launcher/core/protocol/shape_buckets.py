"""The number of tokens to which a packed batch is padded: one of a small set, the shape buckets.

The libraries below cache state for each shape (oneDNN its compiled kernels, the allocator its blocks), so a packed
batch is padded to one of about a hundred sizes. Short batches are not padded: the relative cost would be highest
there.
"""

from __future__ import annotations

UNPADDED_TOKENS = 32
"""Up to this number of tokens every size is a bucket of its own."""
BUCKETS_PER_DOUBLING = 16
"""Beyond it, each range from n to 2n tokens has this many buckets, so padding adds at most 1/16."""


def bucket_size(tokens: int) -> int:
    """The tokens to which a packed batch of ``tokens`` is padded; at least 2, because compilers specialize on 1."""
    if tokens <= UNPADDED_TOKENS:
        return max(2, tokens)
    step = 1 << max(0, (tokens // BUCKETS_PER_DOUBLING).bit_length() - 1)
    return -(-tokens // step) * step
