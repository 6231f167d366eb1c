"""Converts the rows that workers computed to the return values of an engine's methods. One function per task."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import accumulate, pairwise
from typing import Any, NamedTuple, TypeVar

import msgspec
import numpy as np
import numpy.typing as npt

from launcher.core.protocol.model_info import ModelInfo
from launcher.core.protocol.task_settings import MAX_TOP_K
from launcher.core.tasks.entities import AGGREGATIONS, Aggregation, default_aggregation
from launcher.engine.session import Computed
from launcher.errors import UsageError
from launcher.front.input_names import InputNames
from launcher.front.input_reader import InputReader
from launcher.front.tasks.filled_masks import FilledMask, MaskFiller
from launcher.front.tasks.label_scores import LabelScore, ranked_labels
from launcher.front.tasks.sparse_vectors import SparseVector, sparse_vector
from launcher.front.tasks.token_labels import TokenLabeler
from launcher.front.tasks.words import WordStarts
from launcher.options.choices import Task

_decode_json = msgspec.json.Decoder().decode
Vectors = npt.NDArray[np.float32]
Result = TypeVar("Result")
# The methods of an engine whose names differ from those of their tasks.
METHODS: Mapping[Task, str] = {
    "sparse-embed": "embed_sparse",
    "token-embed": "embed_tokens",
    "question-answering": "answer",
    "custom": "predict",
}
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
    # Copies, because a view would keep the results of its whole chunk in memory.
    return lambda computed: (row.copy() for row in computed.results)


def label_scores(model: ModelInfo) -> Decode[list[LabelScore]]:
    """All labels with their scores, best first. Raises ``UsageError`` if the model is not a classifier."""
    require_task(model, "classify")
    return lambda computed: [ranked_labels(row, model.labels) for row in computed.results]


def entities(model: ModelInfo, aggregation: Aggregation | None, tokenizer: InputReader) -> Decode[list[Entity]]:
    """Entities, or tokens if ``aggregation`` is ``none``. Raises ``UsageError`` if the model is not a tagger."""
    require_task(model, "tag")
    if aggregation is not None and aggregation not in AGGREGATIONS:
        raise UsageError(f"aggregation={aggregation!r}: must be one of {', '.join(map(repr, AGGREGATIONS))}")
    wanted = aggregation or default_aggregation(model.labels)
    labeler = TokenLabeler(model.labels, frozenset(), WordStarts(tokenizer.vocabulary))

    def decode(computed: Computed) -> Iterator[list[Entity]]:
        tokenized = computed.tokenized
        parts = zip(computed.by_token(), tokenized.items, computed.chunk.texts, tokenized.spans, strict=True)
        for scores, ids, text, spans in parts:
            assert isinstance(text, str), "a tagger takes no pairs"
            found = labeler.of_text(scores, ids, (text, spans), wanted)
            # Always set for texts; they are missing only for token ids.
            yield [Entity(one.label, one.score, one.text, one.start, one.end) for one in found]  # type: ignore[arg-type]

    return decode


def sparse_vectors(model: ModelInfo) -> Decode[SparseVector]:
    """Sparse vectors. Raises ``UsageError`` if the model has none."""
    require_task(model, "sparse-embed")
    return lambda computed: map(sparse_vector, computed.varying())


def token_vectors(model: ModelInfo) -> Decode[Vectors]:
    """Vectors of tokens, float32 of shape (tokens, width). Raises ``UsageError`` if the model has none."""
    require_task(model, "token-embed")
    first = int(model.token_vectors is not None and model.token_vectors.skip_first)
    return lambda computed: [rows[first:] for rows in computed.by_token()]


def filled_masks(model: ModelInfo, top_k: int, tokenizer: InputReader) -> Decode[list[list[FilledMask]]]:
    """The most probable tokens for each mask token. Raises ``UsageError`` if the model does not fill masks; decoding
    raises ``RequestError`` for a text without a mask token."""
    require_task(model, "fill-mask")
    if not 1 <= top_k <= MAX_TOP_K:
        raise UsageError(f"top_k={top_k!r}: must be 1 to {MAX_TOP_K}")
    filler = MaskFiller(tokenizer.vocabulary, model)

    def decode(computed: Computed) -> list[list[list[FilledMask]]]:
        names = InputNames("texts", computed.chunk.first, computed.chunk.lone)
        for index, ids in enumerate(computed.tokenized.items):
            filler.count(ids, names, index)
        parts = zip(computed.tokenized.items, computed.varying(), strict=True)
        return [filler.fill(ids, rows, top_k) for ids, rows in parts]

    return decode


def concatenate(parts: Sequence[Vectors], model: ModelInfo) -> Vectors:
    """All vectors as one array of shape (texts, width)."""
    return np.concatenate(parts) if parts else np.empty((0, model.result_width), dtype=np.float32)


def custom_results(model: ModelInfo) -> Decode[Any]:
    """The results of a custom class, from JSON. Raises ``UsageError`` if another model is served."""
    require_task(model, "custom")

    def decode(computed: Computed) -> Iterator[Any]:
        everything = computed.results.tobytes()
        for start, end in pairwise(accumulate(computed.rows, initial=0)):
            yield _decode_json(everything[start:end])

    return decode


def require_task(model: ModelInfo, task: Task) -> None:
    """Raise ``UsageError`` if the model is for another task."""
    if model.task != task:
        method = METHODS.get(model.task, model.task.replace("-", "_"))
        raise UsageError(
            f"the model {model.name!r} is for the task {model.task!r}, not {task!r}; use {method}(), or an engine with "
            "another model"
        )
