"""Our own API for every task: ``POST /predict``. The task of the served model decides what it returns."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta, Struct

from launcher.core.protocol.model_info import FLOAT32_BYTES
from launcher.core.scheduling.events import Priority
from launcher.errors import RequestError
from launcher.front.dispatcher import Vectors
from launcher.front.http.body_decoder import Body
from launcher.front.http.disconnect import Client
from launcher.front.http.inference_route import InferenceContext, InferenceHandler, InferenceRoute, chosen_prompt
from launcher.front.http.inputs import Inputs, Prompt, PromptName, Truncate
from launcher.front.http.json_results import Usage, usage, vector_json
from launcher.front.http.route import ApiFamily, ResponseSpec
from launcher.front.http.services import Services
from launcher.front.label_scores import LabelScore, ranked_labels
from launcher.front.token_labels import TokenLabel, TokenLabeler
from launcher.front.tokenizer import Tokenized

_encode = msgspec.json.Encoder().encode


class PredictRequest(Struct, frozen=True):
    """Body of ``POST /predict``."""

    inputs: Inputs
    truncate: Truncate = False
    prompt_name: PromptName = None
    prompt: Prompt = None


class PredictResponse(Struct, frozen=True):
    """Response of ``POST /predict``: one prediction per input, in order.

    For a classifier a prediction is a list of all labels with their scores, best first; for an embedder it is the
    vector.
    """

    model: str
    task: Literal["embed", "classify"]
    predictions: list[list[LabelScore | float]]
    usage: Usage


class TagRequest(Struct, frozen=True):
    """Body of ``POST /predict`` if the served model tags tokens."""

    inputs: Inputs
    truncate: Truncate = False
    aggregation: Annotated[
        Literal["simple", "none"] | None,
        Meta(
            description="simple (only for texts, and their default): adjacent tokens of one entity are joined, and "
            "tokens outside of entities are omitted. none: every token with its best label; always used for token ids."
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


class _TaskHandler(InferenceHandler[Body]):
    """What the handlers of all tasks have in common."""

    inputs_field = "inputs"

    def __init__(self, context: InferenceContext) -> None:
        super().__init__(context)
        names = _encode({"model": self._model_info.name, "task": self._model_info.task})
        self._before_predictions = names[:-1] + b',"predictions":['

    def inputs(self, body: Any) -> tuple[Any, bool]:
        """See the base class."""
        return body.inputs, body.truncate

    def envelope(self, body: Any, tokenized: Tokenized) -> tuple[bytes, bytes]:
        """See the base class."""
        return self._before_predictions, b'],"usage":%b}' % _encode(usage(tokenized))


class PredictHandler(_TaskHandler[PredictRequest]):
    """Embeds or classifies the inputs."""

    def prompt(self, body: PredictRequest) -> str | None:
        """See the base class."""
        return chosen_prompt(self._model_info, body.prompt, body.prompt_name)

    def encode_results(self, body: PredictRequest, results: Vectors, first: int) -> list[bytes]:
        """See the base class."""
        if self._model_info.task == "classify":
            return [_encode(ranked_labels(row, self._model_info.labels)) for row in results]
        return [vector_json(row) for row in results]


class TagHandler(_TaskHandler[TagRequest]):
    """Tags the tokens of the inputs."""

    def __init__(self, context: InferenceContext) -> None:
        super().__init__(context)
        self._labeler = TokenLabeler(self._model_info.labels, self._tokenizer.special_ids)

    def validate(self, body: TagRequest) -> None:
        """See the base class."""
        if body.aggregation == "simple" and body.inputs and _texts(body.inputs) is None:
            raise RequestError(
                "token ids are labelled token by token; omit 'aggregation', or send texts to have tokens joined",
                code="invalid_aggregation",
                param="aggregation",
            )

    async def _tokenize(
        self, body: TagRequest, client: Client, priority: Priority, deadline: float | None
    ) -> Tokenized:
        tokenized = await super()._tokenize(body, client, priority, deadline)
        # Results of other tasks are limited by the number of inputs.
        limit = self._options.result_bytes // (FLOAT32_BYTES * self._model_info.result_width)
        if tokenized.tokens > limit:
            raise RequestError(
                f"'inputs' have {tokenized.tokens} tokens together, the limit is {limit} per request for this model; "
                "send several requests",
                status=413,
                code="too_many_tokens",
                param="inputs",
            )
        return tokenized

    async def encode_all_results(self, body: TagRequest, results: Vectors, tokenized: Tokenized) -> list[bytes]:
        """See the base class."""
        aggregate = body.aggregation != "none"
        return await self._labeler.encode(results, tokenized, _texts(body.inputs), aggregate=aggregate)


def _texts(inputs: Any) -> Sequence[str] | None:
    """The texts of a request; None if its inputs are token ids."""
    if isinstance(inputs, str):
        return [inputs]
    return inputs if inputs and isinstance(inputs[0], str) else None


def family(services: Services) -> ApiFamily:
    """The route for the task of the served model."""
    handler: type[InferenceHandler[Any]] = PredictHandler
    request: type[Struct] = PredictRequest
    response = ResponseSpec("One prediction per input, in order.", PredictResponse)
    if services.model_info.task == "tag":
        handler, request = TagHandler, TagRequest
        response = ResponseSpec("One list of entities or tokens per input, in order.", TagResponse)
    route = InferenceRoute(
        path="/predict",
        summary="The result of the model's task",
        handler=handler,
        request=request,
        example={"inputs": ["What is a core?"]},
        responses={200: response},
    )
    return ApiFamily("predict", (route,))
