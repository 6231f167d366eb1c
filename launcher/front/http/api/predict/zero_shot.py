"""``POST /predict`` for zero-shot classification: labels that the request names, by their scores."""

from __future__ import annotations

from dataclasses import replace
from typing import Annotated, Any, Literal

from msgspec import Meta, Struct

from launcher.front.http.api.predict.task_route import TaskHandler, TaskRoute, encode_json
from launcher.front.http.inference_route import Tokenize
from launcher.front.http.inputs import Truncate, texts_or_token_ids, too_many_inputs
from launcher.front.http.json_results import Usage
from launcher.front.input_names import ZeroShotNames
from launcher.front.request_results import Vectors
from launcher.front.tasks.label_scores import LabelScore
from launcher.front.tasks.zero_shot import (
    DEFAULT_TEMPLATE,
    parse_labels,
    premise_pairs,
    truncated_texts,
    zero_shot_labels,
)
from launcher.front.tokenizer import Tokenized


class ZeroShotRequest(Struct, frozen=True):
    """Body of ``POST /predict`` for zero-shot classification."""

    inputs: Annotated[str | list[str], Meta(description="A text or a list of texts.")]
    candidate_labels: Annotated[
        str | list[str], Meta(description="The labels, as a list or as one text in which commas separate them.")
    ]
    hypothesis_template: Annotated[
        str, Meta(description="The statement that the model compares with each text, with {} for the label.")
    ] = DEFAULT_TEMPLATE
    multi_label: Annotated[
        bool, Meta(description="Score each label independently; otherwise the scores of a text sum to 1.")
    ] = False
    truncate: Truncate = False


class ZeroShotResponse(Struct, frozen=True):
    """Response of ``POST /predict`` for zero-shot classification: one list per input, in order, of all labels with
    their scores, best first."""

    model: str
    task: Literal["zero-shot"]
    predictions: list[list[LabelScore]]
    usage: Usage


class ZeroShotHandler(TaskHandler[ZeroShotRequest]):
    """Classifies the inputs by the labels of the request."""

    def prepare(self, body: ZeroShotRequest) -> tuple[int, Tokenize]:
        """See the base class."""
        limit = self._options.request_items
        texts, _ = texts_or_token_ids(body.inputs, "inputs", limit)
        assert texts is not None, "the type of the field excludes token ids"
        labels = parse_labels(body.candidate_labels)
        items = len(texts) * len(labels)
        if items > limit:
            raise too_many_inputs("inputs", f"{len(texts)} × {len(labels)} labels = {items}", limit)
        pairs = premise_pairs(texts, labels, body.hypothesis_template)
        names = ZeroShotNames("inputs", lone=isinstance(body.inputs, str), labels=len(labels))

        async def tokenize(wait: Any) -> Tokenized:
            tokenized = await self._tokenizer.pairs(
                pairs, truncate=body.truncate, truncation="only_first", field=names, wait=wait
            )
            return replace(tokenized, truncated=truncated_texts(tokenized.truncated, len(labels)))

        return items, tokenize

    def postprocess(self, body: ZeroShotRequest, results: Vectors) -> Vectors:
        """The logits of each input: inputs × labels of the request × labels of the model."""
        return results.reshape(-1, len(parse_labels(body.candidate_labels)), results.shape[1])

    def encode_results(self, body: ZeroShotRequest, results: Vectors, first: int) -> list[bytes]:
        """See the base class."""
        labels, entailment = parse_labels(body.candidate_labels), self._model_info.entailment
        found = (zero_shot_labels(logits, labels, entailment, multi_label=body.multi_label) for logits in results)
        return [encode_json(labels) for labels in found]


ZERO_SHOT = TaskRoute(
    handler=ZeroShotHandler,
    request=ZeroShotRequest,
    response=ZeroShotResponse,
    example={"inputs": ["Which cores are free?"], "candidate_labels": ["computers", "gardening"]},
    returns="All labels of each input with their scores, best first.",
)
