"""The OpenAPI document, derived from the descriptions of the routes and the types of their bodies.

So it cannot differ from the code. Routes must not be listed here.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from importlib.metadata import version
from typing import Any

import msgspec

from launcher.core.protocol.model_info import ModelInfo
from launcher.front.http.authentication import ADMIN_PREFIX, KEY_HEADERS, OPEN_PATHS
from launcher.front.http.error_response import ErrorFormat
from launcher.front.http.route import ApiFamily, ResponseSpec, Route
from launcher.options import FrontOptions

Json = dict[str, Any]
Schemas = Mapping[Any, Json]

_PARAMETER = re.compile(r"{(\w+)(?::\w+)?}")
_JSON = "application/json"
_SECURITY_SCHEMES: Json = {
    "bearer": {"type": "http", "scheme": "bearer"},
    **{name: {"type": "apiKey", "in": "header", "name": name} for name in KEY_HEADERS},
}


def openapi_document(
    families: Sequence[ApiFamily], model_info: ModelInfo, options: FrontOptions, *, keys: bool = False
) -> Json:
    """The document for the served families and model, as JSON values. ``keys``: requests need an API key."""
    types = list(dict.fromkeys(_types(families)))
    references, components = msgspec.json.schema_components(types, ref_template="#/components/schemas/{name}")
    schemas = dict(zip(types, references, strict=True))
    paths: Json = {}
    for family in families:
        for route in family.routes:
            methods = paths.setdefault(_PARAMETER.sub(r"{\1}", route.path), {})
            methods[route.method.lower()] = _operation(route, family.errors, schemas)
    if keys:
        _require_keys(paths, families, schemas)
    security = {"securitySchemes": _SECURITY_SCHEMES} if keys else {}
    limits = (
        f"The limits per request are {options.request_items} inputs and {options.body_bytes} bytes; the model accepts "
        f"{model_info.max_length} tokens per input. Paths may end with a slash."
    )
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "launcher",
            "version": version("launcher"),
            "description": f"Serves {model_info.name}. {limits}",
        },
        "paths": paths,
        "components": {"schemas": components, **security},
        **({"security": [{name: []} for name in _SECURITY_SCHEMES]} if keys else {}),
    }


def _require_keys(paths: Json, families: Sequence[ApiFamily], schemas: Schemas) -> None:
    """Add the response 401 to the routes that need a key, and mark the others."""
    for family in families:
        for route in family.routes:
            operation = paths[_PARAMETER.sub(r"{\1}", route.path)][route.method.lower()]
            if route.path in OPEN_PATHS or route.path.startswith(ADMIN_PREFIX):
                operation["security"] = []
            else:
                refused = ResponseSpec("The API key is missing or not valid.", family.errors.body_type)
                operation["responses"]["401"] = _response(refused, schemas)


def _types(families: Sequence[ApiFamily]) -> Iterator[Any]:
    for family in families:
        for route in family.routes:
            if route.request is not None:
                yield route.request
            yield from (response.type for response in route.responses.values() if response.type is not None)
        yield family.errors.body_type


def _operation(route: Route, errors: ErrorFormat, schemas: Schemas) -> Json:
    operation: Json = {"summary": route.summary}
    if parameters := _parameters(route):
        operation["parameters"] = parameters
    if route.request is not None:
        content = {"schema": schemas[route.request], "example": route.example}
        operation["requestBody"] = {"required": True, "content": {_JSON: content}}
    failures = {status: ResponseSpec(reason, errors.body_type) for status, reason in route.errors.items()}
    responses = sorted({**route.responses, **failures}.items())
    operation["responses"] = {str(status): _response(response, schemas) for status, response in responses}
    return operation


def _parameters(route: Route) -> list[Json]:
    in_path = [
        {"name": name, "in": "path", "required": True, "schema": {"type": "string"}}
        for name in _PARAMETER.findall(route.path)
    ]
    in_headers = [
        {"name": header.name, "in": "header", "description": header.description, "schema": header.schema}
        for header in route.headers
    ]
    return [*in_path, *in_headers]


def _response(response: ResponseSpec, schemas: Schemas) -> Json:
    if response.type is not None:
        schema = schemas[response.type]
    else:
        schema = {"type": "object" if response.media_type == _JSON else "string"}
    return {"description": response.description, "content": {response.media_type: {"schema": schema}}}
