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

from launcher.core.tasks.entities import OUTSIDE, join
from launcher.front.request_results import Vectors
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
    """Labels tokens by their scores; ``special_ids`` are the token ids that get no label."""

    def __init__(self, labels: tuple[str, ...], special_ids: frozenset[int]) -> None:
        self._labels = labels
        self._outside = np.array([label == OUTSIDE for label in labels])
        self._special_ids = np.array(sorted(special_ids), dtype=np.int32)

    async def encode(
        self, scores: Vectors, tokenized: Tokenized, texts: Sequence[str] | None, *, aggregate: bool
    ) -> list[bytes]:
        """The JSON list of each input: of its entities with ``aggregate``, else of its tokens.

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
                labels = self.of_text(rows, texts[index], tokenized.spans[index], aggregate)
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

    def of_text(self, scores: Vectors, text: str, spans: Spans, aggregate: bool) -> Iterator[TokenLabel]:
        """The result for one text, in order: its entities with ``aggregate``, else its tokens.

        ``scores`` has a row and ``spans`` an entry for each of its tokens, as ``Tokenized.spans``.
        """
        best = scores.argmax(axis=1)
        real = spans[:, 0] >= 0
        if not aggregate:
            for token, label, score in self._best_labels(np.flatnonzero(real), best, scores):
                start, end = spans[token].tolist()
                yield label_span(label, score, text, start, end)
            return
        inside = self._best_labels(np.flatnonzero(real & ~self._outside[best]), best, scores)
        for entity in join(*zip(*inside, strict=True)) if inside else ():
            start, end = int(spans[entity.first, 0]), int(spans[entity.last, 1])
            score = _shortest_decimals(np.array([entity.score], dtype=np.float32))[0]
            yield label_span(entity.label, score, text, start, end)

    def _best_labels(self, tokens: Indices, best: Indices, scores: Vectors) -> list[tuple[int, str, float]]:
        """The tokens at these indices, with their best labels and the scores of these."""
        chosen = best[tokens]
        labels = [self._labels[label] for label in chosen.tolist()]
        return list(zip(tokens.tolist(), labels, _shortest_decimals(scores[tokens, chosen]), strict=True))


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
