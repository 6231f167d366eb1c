"""OpenAI's API: ``POST /v1/embeddings`` and the list of models."""

from __future__ import annotations

import base64
import time
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta, Struct
from starlette.requests import Request
from starlette.responses import Response

from launcher.core.protocol.model_info import ModelInfo
from launcher.core.tasks import routes
from launcher.errors import RequestError
from launcher.front.http.error_response import DEFAULT_ERRORS
from launcher.front.http.inference_route import (
    INFERENCE_ERRORS,
    InferenceContext,
    InferenceHandler,
    InferenceRoute,
    routed_prompt,
)
from launcher.front.http.inputs import Inputs, Prompt, PromptName, Truncate
from launcher.front.http.inputs import Route as RouteName
from launcher.front.http.json_results import Usage, truncate_dimensions, usage, vector_json
from launcher.front.http.route import ApiFamily, ResponseSpec, Route
from launcher.front.http.services import Services
from launcher.front.request_results import Vectors
from launcher.front.tokenizer import Tokenized
from launcher.options.choices import VectorEncoding

_encode = msgspec.json.Encoder().encode
_MODEL_NOT_FOUND = {404: "This model is not served here."}


class EmbeddingsRequest(Struct, frozen=True):
    """Body of ``POST /v1/embeddings``: OpenAI's, extended by ``truncate``, the prompt and the route."""

    input: Inputs
    model: Annotated[str | None, Meta(description="The name of the served model; may be omitted.")] = None
    encoding_format: Annotated[
        VectorEncoding | None,
        Meta(description="base64: the vector as little-endian float32 values."),
    ] = None
    dimensions: Annotated[
        int | None,
        Meta(description="Keep only this many leading values, normalized again if the model's vectors have length 1."),
    ] = None
    user: Annotated[str | None, Meta(description="Accepted for compatibility, and ignored.")] = None
    truncate: Truncate = False
    prompt_name: PromptName = None
    prompt: Prompt = None
    route: RouteName = None


class Embedding(Struct, frozen=True):
    """One vector: a list of numbers, or a string if base64 was requested."""

    object: Literal["embedding"]
    index: int
    embedding: list[float] | str


class EmbeddingsResponse(Struct, frozen=True):
    """Response of ``POST /v1/embeddings``: one embedding per input, in order."""

    object: Literal["list"]
    data: list[Embedding]
    model: str
    usage: Usage


class Model(Struct, frozen=True):
    """A served model."""

    id: str
    created: int
    object: Literal["model"] = "model"
    owned_by: str = "launcher"


class ModelList(Struct, frozen=True):
    """Response of ``GET /v1/models``."""

    data: list[Model]
    object: Literal["list"] = "list"


class EmbeddingsHandler(InferenceHandler[EmbeddingsRequest]):
    """Embeds the inputs."""

    inputs_field = "input"

    def __init__(self, context: InferenceContext) -> None:
        super().__init__(context)
        self._model_json = _encode(self._model_info.name)

    def validate(self, body: EmbeddingsRequest) -> None:
        """See the base class."""
        check_model(body.model, self._model_info)
        if self._model_info.task != "embed":
            name, task = self._model_info.name, self._model_info.task
            raise RequestError(
                f"the model {name!r} is for the task {task!r} and has no embeddings; use POST /predict",
                code="wrong_task",
            )
        width = self._model_info.result_width
        if body.dimensions is not None and not 1 <= body.dimensions <= width:
            raise RequestError(
                f"'dimensions' is {body.dimensions}; for this model it must be 1 to {width}",
                code="invalid_dimensions",
                param="dimensions",
            )

    def inputs(self, body: EmbeddingsRequest) -> tuple[Any, bool]:
        """See the base class."""
        return body.input, body.truncate

    def prompt(self, body: EmbeddingsRequest) -> routes.Prompt | None:
        """See the base class."""
        return routed_prompt(self._model_info, body.route, body.prompt, body.prompt_name)

    def postprocess(self, body: EmbeddingsRequest, results: Vectors) -> Vectors:
        """See the base class."""
        if body.dimensions is None or body.dimensions == results.shape[1]:
            return results
        return truncate_dimensions(results, body.dimensions, self._model_info.unit_vectors)

    def encode_results(self, body: EmbeddingsRequest, results: Vectors, first: int) -> list[bytes]:
        """See the base class."""
        if body.encoding_format == "base64":
            values = [b'"%b"' % base64.b64encode(row) for row in results.astype("<f4", copy=False)]
        else:
            values = [vector_json(row) for row in results]
        form = b'{"object":"embedding","index":%d,"embedding":%b}'
        return [form % (index, value) for index, value in enumerate(values, first)]

    def envelope(self, body: EmbeddingsRequest, tokenized: Tokenized) -> tuple[bytes, bytes]:
        """See the base class."""
        after = b'],"model":%b,"usage":%b}' % (self._model_json, _encode(usage(tokenized)))
        return b'{"object":"list","data":[', after


def check_model(asked: str | None, model_info: ModelInfo) -> None:
    """Raise ``RequestError`` unless the request names the served model, or none."""
    if asked is None or asked in (model_info.name, model_info.requested):
        return
    raise RequestError(
        f"the model {asked[:200]!r} is not served here; this server has {model_info.name!r}",
        status=404,
        code="model_not_found",
        param="model",
    )


class Models:
    """The list of models, which has one entry."""

    def __init__(self, model_info: ModelInfo) -> None:
        self._model_info = model_info
        self._model = Model(model_info.name, int(time.time()))

    async def list(self, request: Request) -> Response:
        """All models."""
        return _json(ModelList([self._model]))

    async def get(self, request: Request) -> Response:
        """The model with this id. Raises ``RequestError``."""
        check_model(request.path_params["id"], self._model_info)
        return _json(self._model)


def _json(body: Struct) -> Response:
    return Response(_encode(body), media_type="application/json")


def family(services: Services) -> ApiFamily:
    """The routes for the served model."""
    model_info = services.model_info
    models = Models(model_info)
    return ApiFamily(
        "openai",
        errors=DEFAULT_ERRORS,
        routes=(
            InferenceRoute(
                path="/v1/embeddings",
                summary="Embeddings, compatible with OpenAI's API",
                handler=EmbeddingsHandler,
                request=EmbeddingsRequest,
                example={"input": ["What is a core?", "A core computes."], "model": model_info.name},
                responses={200: ResponseSpec("One embedding per input, in order.", EmbeddingsResponse)},
                errors={**INFERENCE_ERRORS, **_MODEL_NOT_FOUND},
            ),
            Route(
                path="/v1/models",
                summary="The served model, as a list",
                handler=models.list,
                responses={200: ResponseSpec("The list.", ModelList)},
            ),
            Route(
                path="/v1/models/{id:path}",
                summary="One model",
                handler=models.get,
                responses={200: ResponseSpec("The model.", Model)},
                errors=_MODEL_NOT_FOUND,
            ),
        ),
    )
