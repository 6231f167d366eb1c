"""Converts the rows that workers computed to the return values of an engine's methods. One function per task."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import accumulate, pairwise
from typing import Literal, NamedTuple, TypeVar

import numpy as np
import numpy.typing as npt

from launcher.core.protocol.model_info import ModelInfo
from launcher.engine.session import Computed
from launcher.errors import UsageError
from launcher.front.tasks.label_scores import LabelScore, ranked_labels
from launcher.front.tasks.token_labels import TokenLabeler
from launcher.options.choices import Task

Vectors = npt.NDArray[np.float32]
Aggregation = Literal["simple", "none"]
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
    require_task(model, "embed")
    return lambda computed: computed.results


def label_scores(model: ModelInfo) -> Decode[list[LabelScore]]:
    """All labels with their scores, best first. Raises ``UsageError`` if the model is not a classifier."""
    require_task(model, "classify")
    return lambda computed: [ranked_labels(row, model.labels) for row in computed.results]


def entities(model: ModelInfo, aggregation: Aggregation) -> Decode[list[Entity]]:
    """Entities, or tokens if ``aggregation`` is ``none``. Raises ``UsageError`` if the model is not a tagger."""
    require_task(model, "tag")
    if aggregation not in ("simple", "none"):
        raise UsageError(f"aggregation={aggregation!r}: must be 'simple' or 'none'")
    labeler = TokenLabeler(model.labels, frozenset())

    def decode(computed: Computed) -> Iterator[list[Entity]]:
        ends = accumulate(map(len, computed.tokenized.items), initial=0)
        parts = zip(pairwise(ends), computed.chunk.texts, computed.tokenized.spans, strict=True)
        for (start, end), text, spans in parts:
            assert isinstance(text, str), "a tagger takes no pairs"
            found = labeler.of_text(computed.results[start:end], text, spans, aggregation == "simple")
            # Always set for texts; they are missing only for token ids.
            yield [Entity(one.label, one.score, one.text, one.start, one.end) for one in found]  # type: ignore[arg-type]

    return decode


def concatenate(parts: Sequence[Vectors], model: ModelInfo) -> Vectors:
    """All vectors as one array of shape (texts, width)."""
    return np.concatenate(parts) if parts else np.empty((0, model.result_width), dtype=np.float32)


def require_task(model: ModelInfo, task: Task) -> None:
    """Raise ``UsageError`` if the model is for another task."""
    if model.task != task:
        method = model.task.replace("-", "_")
        raise UsageError(
            f"the model {model.name!r} is for the task {model.task!r}, not {task!r}; use {method}(), or an engine with "
            "another model"
        )
