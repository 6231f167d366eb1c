"""The tasks of an engine whose items are pairs of texts: what they send, and what they return.

Separate from ``results`` because these tasks combine several arguments to items. ``Engine`` and ``AsyncEngine`` use it.
"""

from __future__ import annotations

import itertools
from collections.abc import AsyncIterable, AsyncIterator, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from launcher.api.results import Decode, Vectors, concatenate, require_task
from launcher.core.protocol.model_info import ModelInfo
from launcher.engine.session import Computed, PairInputs
from launcher.errors import UsageError
from launcher.front.input_names import InputNames, RankingNames, ZeroShotNames
from launcher.front.pairs import Pair
from launcher.front.tasks.answers import MAX_ANSWER_TOKENS, MAX_ANSWERS, Answer, AnswerRules, Window
from launcher.front.tasks.label_scores import LabelScore
from launcher.front.tasks.ranking import ranked
from launcher.front.tasks.zero_shot import hypotheses, parse_labels, zero_shot_labels

CLASSIFY_INPUTS = PairInputs(InputNames("texts", halves=("[0]", "[1]")))
ANSWER_INPUTS = PairInputs(InputNames("questions", halves=("[0]", "[1]")), windows=True)
RERANK_INPUTS = PairInputs(RankingNames("documents"))


def answers(model: ModelInfo, **rules: Any) -> Decode[list[Answer]]:
    """Answers, best first. Raises ``UsageError`` if the model answers no questions."""
    require_task(model, "question-answering")
    for name, limit in (("top_k", MAX_ANSWERS), ("max_tokens", MAX_ANSWER_TOKENS)):
        if not 1 <= rules[name] <= limit:
            shown = "max_answer_len" if name == "max_tokens" else name
            raise UsageError(f"{shown}={rules[name]!r}: must be 1 to {limit}")
    assert model.answers is not None, "set for this task"
    chosen = AnswerRules(model.answers.cls_id, **rules)

    def decode(computed: Computed) -> Iterator[list[Answer]]:
        tokenized = computed.tokenized
        windows = map(Window, tokenized.items, tokenized.spans, computed.by_token())
        for pair, count in zip(computed.chunk.texts, tokenized.windows, strict=True):
            yield chosen.answers(pair[1], list(itertools.islice(windows, count)))

    return decode


class RankedDocument(NamedTuple):
    """A document by its index among those that were given, and its score; its text if that was requested."""

    index: int  # type: ignore[assignment]  # hides the method of tuple, as the field of a NamedTuple may
    score: float
    text: str | None = None


@dataclass(frozen=True, slots=True)
class Ranking:
    """One call of ``rerank``."""

    model: ModelInfo
    query: str
    documents: Sequence[str]
    top_k: int | None
    return_documents: bool
    raw_scores: bool

    @classmethod
    def of(cls, model: ModelInfo, query: str, documents: Iterable[str], **choices: Any) -> Ranking:
        """Check the arguments of a call. Raises ``UsageError``."""
        require_task(model, "rerank")
        if not isinstance(query, str):
            raise UsageError(f"query is of type {type(query).__name__}; it must be a str")
        if isinstance(documents, (str, bytes)):
            raise UsageError(f"documents is a single {type(documents).__name__}; it must be an iterable of str")
        top_k = choices["top_k"]
        if top_k is not None and top_k < 1:
            raise UsageError(f"top_k={top_k!r}: must be at least 1, or None for all documents")
        return cls(model, query, list(documents), **choices)

    def pairs(self) -> Iterator[Pair]:
        """The pairs to compute."""
        return ((self.query, document) for document in self.documents)

    def result(self, parts: Sequence[Vectors]) -> list[RankedDocument]:
        """The documents, best first, from the results of all pairs in order."""
        found = ranked(concatenate(parts, self.model), raw_scores=self.raw_scores, top_k=self.top_k)
        return [
            RankedDocument(index, score, self.documents[index] if self.return_documents else None)
            for index, score in found
        ]


@dataclass(frozen=True, slots=True)
class ZeroShot:
    """One call of ``zero_shot``."""

    model: ModelInfo
    labels: Sequence[str]
    hypotheses: Sequence[str]
    multi_label: bool

    @classmethod
    def of(cls, model: ModelInfo, labels: str | Iterable[str], template: str, *, multi_label: bool) -> ZeroShot:
        """Check the arguments of a call. Raises ``UsageError`` and ``RequestError``."""
        require_task(model, "zero-shot")
        found = parse_labels(labels if isinstance(labels, str) else list(labels), field="labels")
        for index, label in enumerate(found):
            if not isinstance(label, str):
                raise UsageError(f"labels[{index}] is of type {type(label).__name__}; it must be a str")
        return cls(model, found, hypotheses(found, template), multi_label)

    def inputs(self, *, lone: bool) -> PairInputs:
        """How the pairs are used. ``lone``: they are those of a single text."""
        names = ZeroShotNames("texts", lone=lone, labels=len(self.labels), labels_field="labels")
        return PairInputs(names, truncation="only_first")

    def pairs_of(self, text: Any) -> Iterator[tuple[Any, str]]:
        """The pairs of one text, whose type is checked later."""
        return ((text, hypothesis) for hypothesis in self.hypotheses)

    def pairs(self, texts: Iterable[Any]) -> Iterator[tuple[Any, str]]:
        """The pairs of all texts. Raises ``UsageError``."""
        if isinstance(texts, bytes):
            raise UsageError("texts is a single bytes; it must be an iterable of str, such as a list")
        return (pair for text in texts for pair in self.pairs_of(text))

    async def pairs_async(self, texts: AsyncIterable[Any]) -> AsyncIterator[tuple[Any, str]]:
        """The pairs of all texts."""
        async for text in texts:
            for pair in self.pairs_of(text):
                yield pair

    def decode(self) -> Decode[list[LabelScore]]:
        """A function that takes the results of pairs in order, in chunks of any size, and returns the results of the
        texts that are complete."""
        rest = np.empty((0, self.model.result_width), dtype=np.float32)

        def decode(computed: Computed) -> Iterator[list[LabelScore]]:
            nonlocal rest
            rest = np.concatenate([rest, computed.results])
            complete = len(rest) // len(self.labels)
            logits, rest = np.split(rest, [complete * len(self.labels)])
            for part in logits.reshape(complete, len(self.labels), -1):
                yield zero_shot_labels(part, self.labels, self.model.entailment, multi_label=self.multi_label)

        return decode
