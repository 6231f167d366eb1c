"""The OpenAPI document, made from the types of ``bodies``, so that it cannot say anything else than the code does."""

from __future__ import annotations

from importlib.metadata import version
from typing import Any

import msgspec

from launcher.core.protocol.model_info import ModelInfo
from launcher.core.scheduling.events import PRIORITIES
from launcher.front.http.bodies import (
    EmbeddingsReply,
    EmbeddingsRequest,
    ErrorBody,
    Health,
    Model,
    ModelList,
    PredictReply,
    PredictRequest,
    Readiness,
    TagReply,
    TagRequest,
)
from launcher.front.http.request_headers import DEADLINE_HEADER, MOST_DIGITS, PRIORITY_HEADER
from launcher.options import FrontOptions

_TYPES: tuple[type, ...] = (
    EmbeddingsRequest,
    EmbeddingsReply,
    ModelList,
    Model,
    Health,
    Readiness,
    ErrorBody,
)
_REF = "#/components/schemas/{name}"

_COMPUTE_ERRORS = {
    400: "The body cannot be used: not JSON, a wrong type, an empty input, an input that is too long.",
    413: "Too large for ever: the body, or the number of inputs.",
    415: "The body is not plain application/json.",
    429: "Overloaded; Retry-After says when to come back.",
    500: "The inputs could not be computed, tried twice.",
    503: "No instance is ready, or the server is shutting down.",
    504: "The deadline cannot be met (refused at once), or passed while inputs waited.",
}
_REQUEST_HEADERS: list[dict[str, Any]] = [
    {
        "name": PRIORITY_HEADER,
        "in": "header",
        "description": "bulk takes only the time in which no interactive input waits, and waits while there is none.",
        "schema": {"type": "string", "enum": list(PRIORITIES), "default": PRIORITIES[0]},
    },
    {
        "name": DEADLINE_HEADER,
        "in": "header",
        "description": "Milliseconds from the arrival of the request after which nobody needs the answer.",
        "schema": {"type": "integer", "minimum": 1, "maximum": 10**MOST_DIGITS - 1},
    },
]

Json = dict[str, Any]


def openapi_document(model_info: ModelInfo, options: FrontOptions) -> Json:
    """The document for the served model, as JSON values."""
    types = (*_TYPES, *_predict_types(model_info))
    (_, components) = msgspec.json.schema_components(types, ref_template=_REF)
    limits = (
        f"A request may have {options.request_items} inputs and {options.body_bytes} bytes; "
        f"the model takes {model_info.max_length} tokens an input. Paths may end with a slash."
    )
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "launcher",
            "version": version("launcher"),
            "description": f"Serves {model_info.name}. {limits}",
        },
        "paths": _compute_paths(model_info) | _report_paths(),
        "components": {"schemas": components},
    }


def _predict_types(model_info: ModelInfo) -> tuple[type, type]:
    return (TagRequest, TagReply) if model_info.task == "tag" else (PredictRequest, PredictReply)


def _compute_paths(model_info: ModelInfo) -> Json:
    embeddings = _compute(
        "Embeddings, as OpenAI's API has them",
        EmbeddingsRequest,
        EmbeddingsReply,
        {"input": ["What is a core?", "A core computes."], "model": model_info.name},
        {404: "The model is not the one that is served."},
    )
    asked, answered = _predict_types(model_info)
    predict = _compute("The result of the model's own task", asked, answered, {"inputs": ["What is a core?"]}, {})
    return {"/v1/embeddings": {"post": embeddings}, "/predict": {"post": predict}}


def _compute(summary: str, body: type, answer: type, example: Json, errors: dict[int, str]) -> Json:
    content = {"application/json": {"schema": _ref(body), "example": example}}
    responses = {"200": _response(answer.__doc__ or "", answer)}
    for status, description in sorted({**_COMPUTE_ERRORS, **errors}.items()):
        responses[str(status)] = _response(description, ErrorBody)
    asked = {"required": True, "content": content}
    return {"summary": summary, "parameters": _REQUEST_HEADERS, "requestBody": asked, "responses": responses}


def _report_paths() -> Json:
    unready = {"503": _response("Not enough instances are ready, or the server is shutting down.", Readiness)}
    unknown = {"404": _response("The model is not the one that is served.", ErrorBody)}
    parameter = {"name": "id", "in": "path", "required": True, "schema": {"type": "string"}}
    return {
        "/v1/models": {"get": _report("The model that is served", _response("The list.", ModelList))},
        "/v1/models/{id}": {
            "get": {**_report("One model", _response("The model.", Model), unknown), "parameters": [parameter]}
        },
        "/health": {"get": _report("That the server lives", _response("It does.", Health))},
        "/ready": {"get": _report("Whether requests are answered", _response("They are.", Readiness), unready)},
        "/info": {"get": _report("Plan, model and the levels reached", _response("An object.", None))},
        "/lengths": {"get": _report("How many sequences of each length came", _response("Counts by tokens.", None))},
        "/metrics": {"get": _report("Metrics for Prometheus", _text("The text format of Prometheus.", "text/plain"))},
        "/docs": {"get": _report("This document for people", _text("A page.", "text/html"))},
        "/openapi.json": {"get": _report("This document", _response("An object.", None))},
    }


def _report(summary: str, answer: Json, more: Json | None = None) -> Json:
    return {"summary": summary, "responses": {"200": answer, **(more or {})}}


def _response(description: str, answer: type | None) -> Json:
    schema = _ref(answer) if answer else {"type": "object"}
    return {"description": description, "content": {"application/json": {"schema": schema}}}


def _text(description: str, kind: str) -> Json:
    return {"description": description, "content": {kind: {"schema": {"type": "string"}}}}


def _ref(answer: type) -> Json:
    return {"$ref": _REF.format(name=answer.__name__)}
