"""How long a line of packed items is made: a number of tokens out of few.

Libraries below keep something for each shape that they meet (oneDNN its compiled kernels, the allocator its blocks),
so a line is filled up to one of about a hundred numbers. Short lines are not: there the filling would cost most.
"""

from __future__ import annotations

EXACT = 32
"""Up to here every number of tokens is a shape of its own."""
FILLING = 16
"""Beyond, at most about one token in this many is filling."""


def line_tokens(tokens: int) -> int:
    """The tokens that a line of ``tokens`` is filled up to; at least 2, since compilers take 1 for a constant."""
    if tokens <= EXACT:
        return max(2, tokens)
    step = 1 << max(0, (tokens // FILLING).bit_length() - 1)
    return -(-tokens // step) * step
