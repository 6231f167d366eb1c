"""Composes the API families into one ASGI application.

It derives routing, documentation and error responses from the descriptions of the families; the behaviour of routes
does not belong here.
"""

from __future__ import annotations

import http
from collections.abc import Callable, Collection, Mapping, Sequence
from operator import itemgetter
from typing import Any

import msgspec
from starlette import routing
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send

from launcher.errors import RequestError
from launcher.front.dispatcher import Dispatcher
from launcher.front.http.api import FAMILIES, FamilyFactory
from launcher.front.http.authentication import RefusalContext, RequireApiKey
from launcher.front.http.body_reader import BodyMemory
from launcher.front.http.cors import with_cors
from launcher.front.http.docs_page import docs_page
from launcher.front.http.error_response import DEFAULT_ERRORS, ErrorFormat, internal_error
from launcher.front.http.inference_route import InferenceContext, InferenceRoute
from launcher.front.http.openapi import openapi_document
from launcher.front.http.responses import with_connection_close
from launcher.front.http.route import ApiFamily
from launcher.front.http.services import Services

__all__ = ["Services", "create_app"]

_encode = msgspec.json.Encoder().encode


def create_app(services: Services, families: Sequence[FamilyFactory] = FAMILIES) -> ASGIApp:
    """The application that serves ``families``, with API keys and CORS if they are configured. Raises ``ValueError`` if
    two families have the same route."""
    options = services.options
    served = [one for family in families if (one := family(services)).routes]
    memory = BodyMemory(max(options.total_body_bytes, options.body_bytes), options.body_bytes)
    inference: dict[str, ASGIApp] = {}
    routes: list[_FamilyRoute] = []
    for family in served:
        for route in family.routes:
            handler: Callable[..., Any] = route.handler
            if isinstance(route, InferenceRoute):
                context = InferenceContext(route, family.errors, services, memory)
                handler = inference[route.path] = route.handler(context)
            routes += [_FamilyRoute(path, handler, route.methods, family) for path in route.paths]
    _check_unique(routes)
    app = _Application(routes, inference, served, services.dispatcher)
    document = openapi_document(served, services.model_info, options, keys=services.api_keys is not None)
    app.state.openapi, app.state.docs_page = _encode(document), docs_page(document).encode()
    return _guarded(app, services)


def _guarded(app: _Application, services: Services) -> ASGIApp:
    """The application behind API keys and CORS: nothing is added, and costs anything, unless it is configured."""
    guarded: ASGIApp = app
    if services.api_keys is not None:
        context = RefusalContext(app.errors_of, lambda: services.dispatcher.draining, services.metrics.unauthorized)
        guarded = RequireApiKey(guarded, services.api_keys, context)
    # Outside of the keys: browsers send no key with a preflight request, and pages may read why a key is refused.
    return with_cors(guarded, services.options.cors_origin) if services.options.cors_origin else guarded


class _FamilyRoute(routing.Route):
    """One path of a route, and the family that it belongs to."""

    def __init__(self, path: str, handler: Callable[..., Any], methods: Collection[str], family: ApiFamily) -> None:
        super().__init__(path, handler, methods=methods)
        self.allowed = methods
        self.family = family


class _Application(Starlette):
    """Starlette with a shorter way to the routes that run the model: they need nothing of its middleware.

    This saves 9 µs of about 150 for each request.
    """

    def __init__(
        self,
        routes: Sequence[_FamilyRoute],
        inference: Mapping[str, ASGIApp],
        families: Sequence[ApiFamily],
        dispatcher: Dispatcher,
    ) -> None:
        handlers: dict[Any, Any] = {
            HTTPException: self._routing_error,
            RequestError: self._request_error,
            Exception: self._internal_error,
        }
        super().__init__(routes=routes, exception_handlers=handlers)
        # Clients that do not follow redirects, or drop the body when they do, would fail.
        self.router.redirect_slashes = False
        self._table = routes
        self._inference = inference
        self._families = families
        self._dispatcher = dispatcher

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        handler = self._inference.get(scope["path"]) if scope["type"] == "http" and scope["method"] == "POST" else None
        if handler is not None:
            await handler(scope, receive, send)
        else:
            await super().__call__(scope, receive, with_connection_close(send) if self._dispatcher.draining else send)

    async def _routing_error(self, request: Request, error: HTTPException) -> Response:
        """For what Starlette raises: unknown paths and wrong methods. ``OPTIONS`` is answered here too."""
        method, path, status = request.method, request.url.path, error.status_code
        if status == 404:
            message = f"there is no route {path}; GET /docs lists all routes"
            return self._response(request, RequestError(message, status=404, code="not_found"))
        if status == 405:
            allowed = sorted({"OPTIONS"}.union(*(route.allowed for route in self._matching(request.scope["path"]))))
            headers = {"Allow": ", ".join(allowed)}
            if method == "OPTIONS":
                return Response(status_code=204, headers=headers)
            message = f"{path} does not allow {method}; it allows {', '.join(allowed)}"
            return self._response(request, RequestError(message, status=405, code="method_not_allowed"), headers)
        code = http.HTTPStatus(status).name.lower()
        return self._response(request, RequestError(str(error.detail), status=status, code=code), error.headers)

    async def _request_error(self, request: Request, error: RequestError) -> Response:
        return self._response(request, error)

    async def _internal_error(self, request: Request, error: Exception) -> Response:
        """Starlette raises the exception again after this, so that uvicorn logs it with its traceback."""
        return self._response(request, internal_error())

    def _response(self, request: Request, error: RequestError, headers: Mapping[str, str] | None = None) -> Response:
        status, body, more = self.errors_of(request.scope).response(error)
        all_headers = {**(headers or {}), **{name.decode(): value.decode() for name, value in more}}
        return Response(body, status, all_headers, media_type="application/json")

    def errors_of(self, scope: Scope) -> ErrorFormat:
        """The error format of the family that has the requested route, or else its path, or else its prefix."""
        path: str = scope["path"]
        matching = self._matching(path)
        for route in [route for route in matching if scope["method"] in route.allowed] or matching:
            return route.family.errors
        prefixes = [(prefix, family.errors) for family in self._families for prefix in family.prefixes]
        known = [(len(prefix), errors) for prefix, errors in prefixes if path.startswith(prefix)]
        return max(known, key=itemgetter(0))[1] if known else DEFAULT_ERRORS

    def _matching(self, path: str) -> list[_FamilyRoute]:
        """The routes that have this path, with any method."""
        return [route for route in self._table if route.path_regex.match(path)]


def _check_unique(routes: Sequence[_FamilyRoute]) -> None:
    owners: dict[tuple[str, str], str] = {}
    for route in routes:
        for method in route.allowed:
            if owner := owners.get((method, route.path)):
                raise ValueError(f"{method} {route.path} is described twice: by {owner} and by {route.family.name}")
            owners[method, route.path] = route.family.name
