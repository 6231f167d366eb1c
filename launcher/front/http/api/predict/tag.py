"""``POST /predict`` for taggers: the entities or tokens of each input."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Literal

from msgspec import Meta, Struct

from launcher.core.tasks.entities import Aggregation, default_aggregation
from launcher.errors import RequestError
from launcher.front.dispatcher import Outcome
from launcher.front.http.api.predict.item_rows import ItemRowsHandler
from launcher.front.http.api.predict.task_route import TaskRoute
from launcher.front.http.inference_route import InferenceContext
from launcher.front.http.inputs import Inputs, Truncate
from launcher.front.http.json_results import Usage
from launcher.front.tasks.token_labels import TokenLabel, TokenLabeler
from launcher.front.tasks.words import WordStarts
from launcher.front.tokenizer import Tokenized


class TagRequest(Struct, frozen=True):
    """Body of ``POST /predict`` if the served model tags tokens."""

    inputs: Inputs
    truncate: Truncate = False
    aggregation: Annotated[
        Aggregation | None,
        Meta(
            description="How tokens are joined to entities; tokens outside of entities are omitted. simple, first, "
            "average and max are the strategies of transformers' pipeline: simple joins adjacent tokens of one entity, "
            "the others join words. bioes joins tokens by the prefixes of BIOES, BILOU and BMES. none: every token "
            "with its best label; always used for token ids. The default for texts is bioes if the labels have such "
            "prefixes, and simple otherwise."
        ),
    ] = None


class TagResponse(Struct, frozen=True):
    """Response of ``POST /predict`` if the served model tags tokens: one list per input, in order.

    Special tokens are omitted, whether they were added to a text or are among the token ids.
    """

    model: str
    task: Literal["tag"]
    predictions: list[list[TokenLabel]]
    usage: Usage


class TagHandler(ItemRowsHandler[TagRequest]):
    """Tags the tokens of the inputs."""

    def __init__(self, context: InferenceContext) -> None:
        super().__init__(context)
        labels, tokenizer = self._model_info.labels, self._tokenizer
        self._labeler = TokenLabeler(labels, tokenizer.special_ids, WordStarts(tokenizer.vocabulary))
        self._default_aggregation = default_aggregation(labels)

    def validate(self, body: TagRequest) -> None:
        """See the base class."""
        joins = body.aggregation not in (None, "none")
        if self._id_decoder is None and joins and body.inputs and _texts(body.inputs) is None:
            raise RequestError(
                "token ids are labelled token by token; omit 'aggregation', or send texts to have tokens joined",
                code="invalid_aggregation",
                param="aggregation",
            )

    async def encode_outcome(self, body: TagRequest, outcome: Outcome, tokenized: Tokenized) -> list[bytes]:
        """See the base class."""
        aggregation = body.aggregation or self._default_aggregation
        texts = _texts(body.inputs) if tokenized.texts is None else tokenized.texts
        return await self._labeler.encode(outcome.results, tokenized, texts, aggregation)


def _texts(inputs: Any) -> Sequence[str] | None:
    """The texts of a request; None if its inputs are token ids."""
    if isinstance(inputs, str):
        return [inputs]
    return inputs if inputs and isinstance(inputs[0], str) else None


TAG = TaskRoute(
    handler=TagHandler,
    request=TagRequest,
    response=TagResponse,
    example={"inputs": ["What is a core?"]},
    returns="One list of entities or tokens per input, in order.",
)
