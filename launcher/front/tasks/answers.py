"""The result of question answering: spans of the context with their scores.

Separate from HTTP because the Python API returns the same. The rules are those of the question-answering pipeline of
transformers 4 (version 5 has none).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from msgspec import Struct

from launcher.front.request_results import Vectors

Ids = npt.NDArray[np.int32]
Spans = npt.NDArray[np.int32]
Floats = npt.NDArray[np.float64]

DEFAULT_TOP_K, DEFAULT_ANSWER_TOKENS = 1, 15
MAX_ANSWERS, MAX_ANSWER_TOKENS = 100, 512
# Several candidates can be the same answer, so more of them are considered than are returned.
MORE_CANDIDATES = 10


class Answer(Struct, frozen=True):
    """A span of the context, from code point ``start`` to ``end`` (exclusive), and its score."""

    score: float
    start: int
    end: int
    answer: str


@dataclass(frozen=True, slots=True)
class Window:
    """One window of a context: its token ids, their ``answer_spans``, and the logits (start, end) of each token."""

    ids: Ids
    spans: Spans
    logits: Vectors


@dataclass(frozen=True, slots=True)
class AnswerRules:
    """How answers are chosen: at most ``top_k``, of at most ``max_tokens`` tokens, and with ``impossible``, an empty
    one that scores how likely there is none. Tokens with the id ``cls_id`` stand for no answer."""

    cls_id: int | None
    top_k: int = DEFAULT_TOP_K
    max_tokens: int = DEFAULT_ANSWER_TOKENS
    impossible: bool = False

    def answers(self, context: str, windows: Sequence[Window]) -> list[Answer]:
        """The answers in a context, best first. The scores of equal answers, in any case of letters, are added."""
        found: dict[str, Answer] = {}
        null_score = 1e6
        for window in windows:
            null, candidates = self._candidates(window)
            null_score = min(null_score, null)
            for first, last, score in candidates:
                start, end = int(window.spans[first, 0]), int(window.spans[last, 1])
                key = context[start:end].lower()
                known = found.get(key)
                found[key] = (
                    Answer(known.score + score, known.start, known.end, known.answer)
                    if known
                    else Answer(score, start, end, context[start:end])
                )
        answers = list(found.values())
        if self.impossible:
            answers.append(Answer(null_score, 0, 0, ""))
        return sorted(answers, key=lambda answer: answer.score, reverse=True)[: self.top_k]

    def _candidates(self, window: Window) -> tuple[float, list[tuple[int, int, float]]]:
        """The score of no answer, and the best spans of tokens with their scores."""
        wanted = window.spans[:, 0] >= 0
        if self.cls_id is not None:
            wanted = wanted | (window.ids == self.cls_id)
        start, end = (_softmax(np.where(wanted, logits, -10000.0)) for logits in window.logits.T.astype(np.float64))
        null = float(start[0] * end[0])
        start[0] = end[0] = 0.0
        tokens = len(wanted)
        lengths = min(self.max_tokens, tokens)
        ends = np.concatenate([end, np.zeros(lengths)])
        scores = start[:, None] * np.lib.stride_tricks.sliding_window_view(ends, lengths)[:tokens]
        flat = scores.ravel()
        count = min(2 * self.top_k + MORE_CANDIDATES, len(flat))
        best = np.argsort(-flat, kind="stable")[:count]
        firsts = best // lengths
        lasts = firsts + best % lengths
        inside = window.spans[:, 0] >= 0
        return null, [
            (first, last, float(score))
            for first, last, score in zip(firsts.tolist(), lasts.tolist(), flat[best], strict=True)
            if last < tokens and inside[first] and inside[last]
        ]


def _softmax(logits: Floats) -> Floats:
    powers: Floats = np.exp(logits - logits.max())
    scores: Floats = powers / powers.sum()
    return scores
