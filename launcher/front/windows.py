"""Pairs of a question and a context as items: one for each window of a context that is too long for one.

Separate from ``pairs``, which truncates. The windows, and the words that answers are aligned to, are those of the
question-answering pipeline of transformers 4 (version 5 has none). They are cut here and not by the tokenizers library,
so that their number is known before they are made: a question that fills a window makes one for each token.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from tokenizers import Encoding

from launcher.front.item_details import TypeIds
from launcher.front.pairs import PairLayout

MAX_TOKENS, MAX_STRIDE = 384, 128

Ids = npt.NDArray[np.int32]
Spans = npt.NDArray[np.int32]


@dataclass(frozen=True, slots=True)
class ContextWindow:
    """The tokens of a question and of one window of its context: their ids, token types and ``answer_spans``."""

    ids: Ids
    type_ids: TypeIds
    spans: Spans


class Windows:
    """The windows of one encoding of a pair, which overlap by a third or so. ``max_length`` is that of the model.

    Raises ``ValueError`` if the question leaves too little room for a window of the context.
    """

    def __init__(self, encoding: Encoding, layout: PairLayout, max_length: int) -> None:
        limit = min(MAX_TOKENS, max_length)
        stride = min(limit // 2, MAX_STRIDE)
        self._encoding, self._after = encoding, layout.after
        self._context = layout.before + layout.tokens_of_first(encoding) + layout.between
        self._tokens = len(encoding) - self._context - layout.after
        if len(encoding) <= limit:
            self._room = self._step = max(self._tokens, 1)
            return
        self._room = limit - self._context - layout.after
        self._step = self._room - stride
        if self._step < 1:
            question = layout.tokens_of_first(encoding)
            most = limit - stride - layout.special_tokens - 1
            raise ValueError(f"it has {question} tokens, but must have at most {most} if the context is this long")

    def __len__(self) -> int:
        return 1 + -(-max(0, self._tokens - self._room) // self._step)

    def __iter__(self) -> Iterator[ContextWindow]:
        encoding, context, end = self._encoding, self._context, self._context + self._tokens
        ids, type_ids = np.array(encoding.ids, dtype=np.int32), np.array(encoding.type_ids, dtype=np.uint8)
        outside = np.arange(context), np.arange(end, end + self._after)
        for place in range(len(self)):
            start = context + place * self._step
            tokens = range(start, min(start + self._room, end))
            kept = np.concatenate([outside[0], np.arange(tokens.start, tokens.stop), outside[1]])
            spans = np.full((len(kept), 2), -1, dtype=np.int32)
            spans[context : context + len(tokens)] = answer_spans(encoding, tokens)
            yield ContextWindow(ids[kept], type_ids[kept], spans)


def answer_spans(encoding: Encoding, tokens: range) -> Spans:
    """For each of these tokens of a context, the position of its word, int32, tokens × 2, end exclusive: of the part
    that is in these tokens. A token without a word is its own."""
    # One by one: the lists of all tokens would hold the interpreter lock for long.
    spans = np.array([encoding.token_to_chars(token) or (0, 0) for token in tokens], dtype=np.int32).reshape(-1, 2)
    found = [encoding.token_to_word(token) for token in tokens]
    words = np.array([-1 if word is None else word for word in found], dtype=np.int64)
    same = np.flatnonzero(words >= 0)
    if len(same):
        firsts = np.flatnonzero(np.diff(words[same], prepend=-1))
        counts = np.diff(firsts, append=len(same))
        lasts = firsts + counts - 1
        spans[same, 0] = np.repeat(spans[same[firsts], 0], counts)
        spans[same, 1] = np.repeat(spans[same[lasts], 1], counts)
    return spans
