"""The result of a tagger: entities with their positions in the text, or a label for each token.

Separate from HTTP because the Python API returns the same, and from ``core.tasks.entities``, which knows tokens but not
texts. Paths and request bodies do not belong here.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence

import msgspec
import numpy as np
import numpy.typing as npt
import orjson
from msgspec import UNSET, Struct, UnsetType

from launcher.core.tasks.entities import WORD_AGGREGATIONS, Aggregation, is_outside, join, join_bioes
from launcher.front.request_results import Vectors
from launcher.front.tasks.words import WordStarts
from launcher.front.tokenizer import Tokenized

_encode = msgspec.json.Encoder().encode

# Labels encoded before other requests get a turn: 1 to 3 ms. An input costs as much as this many labels, and as many
# tokens that get no label cost as much as one label.
LABELS_PER_TURN = 1000
LABELS_PER_INPUT = 8
TOKENS_PER_LABEL = 16

Ids = npt.NDArray[np.int32]
Spans = npt.NDArray[np.int32]
Indices = npt.NDArray[np.int64]


class TokenLabel(Struct, frozen=True, omit_defaults=True):
    """An entity or a token, with its label and score. For a text, ``start`` and ``end`` (exclusive) are its position in
    code points and ``text`` is the substring; for token ids, ``index`` is its position.
    """

    label: str
    score: float
    text: str | UnsetType = UNSET
    start: int | UnsetType = UNSET
    end: int | UnsetType = UNSET
    index: int | UnsetType = UNSET


class TokenLabeler:
    """Labels tokens by their scores. ``special_ids`` are the token ids that get no label, ``word_starts`` finds the
    words of a text.
    """

    def __init__(self, labels: tuple[str, ...], special_ids: frozenset[int], word_starts: WordStarts) -> None:
        self._labels = labels
        self._outside = np.array([is_outside(label) for label in labels])
        self._special_ids = np.array(sorted(special_ids), dtype=np.int32)
        self._word_starts = word_starts

    async def encode(
        self, scores: Vectors, tokenized: Tokenized, texts: Sequence[str] | None, aggregation: Aggregation
    ) -> list[bytes]:
        """The JSON list of each input: of its entities or, if ``aggregation`` is ``none``, of its tokens.

        ``scores`` has a row for each token of all inputs; ``texts`` is None if the inputs are token ids, whose
        tokens are never joined. Pauses regularly, so that other requests are served.
        """
        parts: list[bytes] = []
        start = done = 0
        for index, ids in enumerate(tokenized.items):
            if done >= LABELS_PER_TURN:
                done = 0
                await asyncio.sleep(0)
            rows = scores[start : start + len(ids)]
            start += len(ids)
            done += LABELS_PER_INPUT + len(ids) // TOKENS_PER_LABEL
            if texts is None:
                labels = self._of_ids(rows, ids)
            else:
                labels = self.of_text(rows, ids, (texts[index], tokenized.spans[index]), aggregation)
            encoded = []
            for label in labels:
                encoded.append(_encode(label))
                done += 1
                if done >= LABELS_PER_TURN:
                    done = 0
                    await asyncio.sleep(0)
            parts.append(b"[%b]" % b",".join(encoded))
        return parts

    def _of_ids(self, scores: Vectors, ids: Ids) -> Iterator[TokenLabel]:
        best = scores.argmax(axis=1)
        real = np.flatnonzero(~np.isin(ids, self._special_ids))
        for token, label, score in self._best_labels(real, best, scores):
            yield TokenLabel(label, score, index=token)

    def of_text(
        self, scores: Vectors, ids: Ids, positions: tuple[str, Spans], aggregation: Aggregation
    ) -> Iterator[TokenLabel]:
        """The result for one text, in order: its entities or, if ``aggregation`` is ``none``, its tokens.

        ``scores`` has a row for each of its tokens, ``positions`` is the text with the spans of its tokens, as
        ``Tokenized.spans``.
        """
        text, spans = positions
        real = np.flatnonzero(spans[:, 0] >= 0)
        if aggregation == "none":
            for token, label, score in self._best_labels(real, scores.argmax(axis=1), scores):
                start, end = spans[token].tolist()
                yield label_span(label, score, text, start, end)
            return
        scores, spans = scores[real], spans[real]
        if aggregation in WORD_AGGREGATIONS and len(real):
            first = np.flatnonzero(self._word_starts(ids[real], text, spans))
            last = np.append(first[1:], len(real)) - 1
            scores = _word_scores(scores, first, aggregation)
            spans = np.stack([spans[first, 0], spans[last, 1]], axis=1)
        best = scores.argmax(axis=1)
        inside = self._best_labels(np.flatnonzero(~self._outside[best]), best, scores)
        grouped = join_bioes if aggregation == "bioes" else join
        for entity in grouped(*zip(*inside, strict=True)) if inside else ():
            start, end = int(spans[entity.first, 0]), int(spans[entity.last, 1])
            score = _shortest_decimals(np.array([entity.score], dtype=np.float32))[0]
            yield label_span(entity.label, score, text, start, end)

    def _best_labels(self, tokens: Indices, best: Indices, scores: Vectors) -> list[tuple[int, str, float]]:
        """The tokens at these indices, with their best labels and the scores of these."""
        chosen = best[tokens]
        labels = [self._labels[label] for label in chosen.tolist()]
        return list(zip(tokens.tolist(), labels, _shortest_decimals(scores[tokens, chosen]), strict=True))


def _word_scores(scores: Vectors, first: Indices, aggregation: Aggregation) -> Vectors:
    """A row of scores for each word; ``first`` holds the index of the first token of each."""
    if aggregation == "first":
        return scores[first]
    ends = np.append(first[1:], len(scores))
    if aggregation == "max":
        highest = scores.max(axis=1)
        words = zip(first.tolist(), ends.tolist(), strict=True)
        return scores[[start + int(highest[start:end].argmax()) for start, end in words]]
    sums: Vectors = np.add.reduceat(scores, first, axis=0)
    return (sums / (ends - first)[:, None]).astype(np.float32)


def label_span(label: str, score: float, text: str, start: int, end: int) -> TokenLabel:
    """The label of a span of ``text``, without the whitespace around it that some tokenizers count as its part."""
    found = text[start:end]
    if found and (found[0].isspace() or found[-1].isspace()) and (inner := found.strip()):
        start += len(found) - len(found.lstrip())
        found, end = inner, start + len(inner)
    return TokenLabel(label, score, found, start, end)


def _shortest_decimals(values: Vectors) -> list[float]:
    """The values as the shortest decimals that read back as the same float32: 0.9, not 0.8999999761581421."""
    numbers: list[float] = orjson.loads(orjson.dumps(np.ascontiguousarray(values), option=orjson.OPT_SERIALIZE_NUMPY))
    return numbers
