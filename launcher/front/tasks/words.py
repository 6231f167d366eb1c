"""Finds where words begin among the tokens of a text, as transformers' token-classification pipeline does.

Separate from ``token_labels`` because it depends on the tokenizer alone. Labels and scores do not belong here.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from tokenizers import Tokenizer
from tokenizers.models import Unigram

Ids = npt.NDArray[np.int32]
Spans = npt.NDArray[np.int32]
Flags = npt.NDArray[np.bool_]


class WordStarts:
    """Tells whether a token continues the word of the token before it.

    A tokenizer that marks continuing tokens (WordPiece) is compared with the text: a token that is longer or shorter
    than its part of the text is a continuation. For others, a token is a continuation unless there is a space before it
    or at its beginning. Unknown tokens begin a word.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        model = tokenizer.model
        self._marked = bool(getattr(model, "continuing_subword_prefix", None))
        unknown = "<unk>" if isinstance(model, Unigram) else getattr(model, "unk_token", None)
        self._unknown_id = tokenizer.token_to_id(unknown or "<unk>")
        self._lengths: dict[int, int] = {}

    def __call__(self, ids: Ids, text: str, spans: Spans) -> Flags:
        """Whether each token begins a word; ``ids`` and ``spans`` are those of consecutive tokens of ``text``."""
        if self._marked:
            lengths = np.array([self._length(token) for token in ids.tolist()], dtype=np.int64)
            starts: Flags = lengths == spans[:, 1] - spans[:, 0]
        else:
            starts = np.array([start == 0 or " " in text[start - 1 : start + 1] for start in spans[:, 0].tolist()])
        if self._unknown_id is not None:
            starts |= ids == self._unknown_id
        starts[:1] = True
        return starts

    def _length(self, token: int) -> int:
        """The number of characters of a token, with its prefix."""
        length = self._lengths.get(token)
        if length is None:
            length = self._lengths[token] = len(self._tokenizer.id_to_token(token) or "")
        return length
