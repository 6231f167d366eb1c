"""Converts the rows that workers computed to the return values of an engine's methods. One function per task."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import accumulate, pairwise
from typing import NamedTuple, TypeVar

import numpy as np
import numpy.typing as npt

from launcher.core.protocol.model_info import ModelInfo
from launcher.core.tasks.entities import AGGREGATIONS, Aggregation, default_aggregation
from launcher.engine.session import Computed
from launcher.errors import UsageError
from launcher.front.tasks.label_scores import LabelScore, ranked_labels
from launcher.front.tasks.token_labels import TokenLabeler
from launcher.front.tasks.words import WordStarts
from launcher.front.tokenizer import FrontTokenizer
from launcher.options.choices import Task

Vectors = npt.NDArray[np.float32]
Result = TypeVar("Result")
# The results of a chunk, one for each of its texts.
Decode = Callable[[Computed], Iterable[Result]]


class Entity(NamedTuple):
    """An entity or a token of a text: ``text`` is the substring from code point ``start`` to ``end`` (exclusive)."""

    label: str
    score: float
    text: str
    start: int
    end: int


def vectors(model: ModelInfo) -> Decode[Vectors]:
    """Vectors, float32 of shape (width,). Raises ``UsageError`` if the model has none."""
    _require(model, "embed")
    return lambda computed: computed.results


def label_scores(model: ModelInfo) -> Decode[list[LabelScore]]:
    """All labels with their scores, best first. Raises ``UsageError`` if the model is not a classifier."""
    _require(model, "classify")
    return lambda computed: [ranked_labels(row, model.labels) for row in computed.results]


def entities(model: ModelInfo, aggregation: Aggregation | None, tokenizer: FrontTokenizer) -> Decode[list[Entity]]:
    """Entities, or tokens if ``aggregation`` is ``none``. Raises ``UsageError`` if the model is not a tagger."""
    _require(model, "tag")
    if aggregation is not None and aggregation not in AGGREGATIONS:
        raise UsageError(f"aggregation={aggregation!r}: must be one of {', '.join(map(repr, AGGREGATIONS))}")
    wanted = aggregation or default_aggregation(model.labels)
    labeler = TokenLabeler(model.labels, frozenset(), WordStarts(tokenizer.vocabulary))

    def decode(computed: Computed) -> Iterator[list[Entity]]:
        items = computed.tokenized.items
        ends = accumulate(map(len, items), initial=0)
        parts = zip(pairwise(ends), items, computed.chunk.texts, computed.tokenized.spans, strict=True)
        for (start, end), ids, text, spans in parts:
            found = labeler.of_text(computed.results[start:end], ids, (text, spans), wanted)
            # Always set for texts; they are missing only for token ids.
            yield [Entity(one.label, one.score, one.text, one.start, one.end) for one in found]  # type: ignore[arg-type]

    return decode


def concatenate(parts: Sequence[Vectors], model: ModelInfo) -> Vectors:
    """All vectors as one array of shape (texts, width)."""
    return np.concatenate(parts) if parts else np.empty((0, model.result_width), dtype=np.float32)


def _require(model: ModelInfo, task: Task) -> None:
    if model.task != task:
        raise UsageError(
            f"the model {model.name!r} is for the task {model.task!r}, not {task!r}; use {model.task}(), or an engine "
            "with another model"
        )
