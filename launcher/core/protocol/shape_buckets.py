"""Rounds the length of a packed line up to one of about a hundred sizes.

Libraries cache something for each shape (oneDNN its compiled kernels, the allocator its blocks), so the number of
shapes must be small. Short lines are not rounded: there the filling would cost most.
"""

from __future__ import annotations

EXACT = 32
"""Up to this length, lines are not rounded."""
FILLING = 16
"""Above it, at most about one token in this many is filling."""


def line_tokens(tokens: int) -> int:
    """The padded length of a line of ``tokens`` tokens; at least 2, since compilers specialize on a size of 1."""
    if tokens <= EXACT:
        return max(2, tokens)
    step = 1 << max(0, (tokens // FILLING).bit_length() - 1)
    return -(-tokens // step) * step
