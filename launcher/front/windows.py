"""Pairs of a question and a context as items: one for each window of a context that is too long for one.

Separate from ``pairs``, which truncates. The windows, and the words that answers are aligned to, are those of the
question-answering pipeline of transformers 4 (version 5 has none).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from tokenizers import Encoding, Tokenizer

from launcher.front.pairs import Pair

MAX_TOKENS, MAX_STRIDE = 384, 128
CONTEXT = 1  # the place of the context in a pair

Spans = npt.NDArray[np.int32]


class WindowEncoder:
    """Encodes pairs with one tokenizer, in windows that overlap by a third or so. ``max_length`` is that of the
    model."""

    def __init__(self, tokenizer: Tokenizer, max_length: int) -> None:
        limit = min(MAX_TOKENS, max_length)
        self._tokenizer = Tokenizer.from_str(tokenizer.to_str())
        self._tokenizer.no_padding()
        self._tokenizer.enable_truncation(limit, stride=min(limit // 2, MAX_STRIDE), strategy="only_second")

    def encode(self, pairs: Sequence[Pair]) -> list[list[Encoding]]:
        """The windows of each pair. Raises a plain ``Exception``, as the Rust library does, if a question leaves no
        room for its context."""
        return [[encoding, *encoding.overflowing] for encoding in self._tokenizer.encode_batch(list(pairs))]


def answer_spans(encoding: Encoding) -> Spans:
    """For each token of a window, the position of its word in the context, int32, tokens × 2, end exclusive; -1 for
    tokens that are not in the context. A token without a word is its own."""
    spans = np.full((len(encoding), 2), -1, dtype=np.int32)
    context = np.array([side == CONTEXT for side in encoding.sequence_ids], dtype=np.bool_)
    spans[context] = np.array(encoding.offsets, dtype=np.int32).reshape(-1, 2)[context]
    words = np.array([-1 if word is None else word for word in encoding.word_ids], dtype=np.int64)
    same = np.flatnonzero(context & (words >= 0))
    if len(same):
        firsts = np.flatnonzero(np.diff(words[same], prepend=-1))
        counts = np.diff(firsts, append=len(same))
        lasts = firsts + counts - 1
        spans[same, 0] = np.repeat(spans[same[firsts], 0], counts)
        spans[same, 1] = np.repeat(spans[same[lasts], 1], counts)
    return spans
