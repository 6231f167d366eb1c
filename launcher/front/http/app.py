"""The table of routes, as one Starlette application."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import msgspec
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route
from starlette.types import ASGIApp, Receive, Scope, Send

from launcher.front.dispatcher import Dispatcher
from launcher.front.http.bodies import Health, Readiness
from launcher.front.http.compute import ComputeRoute, Services
from launcher.front.http.docs import docs_page
from launcher.front.http.errors import http_exception, internal_error
from launcher.front.http.exchange import Intake, closing
from launcher.front.http.openai import EmbeddingsRoute, Models
from launcher.front.http.openapi import openapi_document
from launcher.front.http.predict import PredictRoute
from launcher.front.http.tag import TagRoute
from launcher.front.metrics import METRICS_CONTENT_TYPE

__all__ = ["Services", "create_app"]

_encode = msgspec.json.Encoder().encode
# Of bodies, from their first byte to their answer. What comes of a body takes a few times its size.
INSIDE_BYTES = 256 * 1024 * 1024
_HEALTH = _encode(Health())


def create_app(services: Services) -> Starlette:
    """The application with all routes of the HTTP contract; it holds no state besides ``services``."""
    models, reports = Models(services.model_info), Reports(services)
    intake = Intake(services.options.body_bytes, INSIDE_BYTES)
    predict = TagRoute if services.model_info.task == "tag" else PredictRoute
    computing: list[ComputeRoute[Any]] = [EmbeddingsRoute(services, intake), predict(services, intake)]
    routes: list[BaseRoute] = [
        *(route for endpoint in computing for route in _both(endpoint.path, endpoint, "POST")),
        *_both("/v1/models", models.list, "GET"),
        Route("/v1/models/{id:path}", models.one, methods=["GET"]),
        *_both("/health", reports.health, "GET"),
        *_both("/ready", reports.ready, "GET"),
        *_both("/metrics", reports.metrics, "GET"),
        *_both("/info", reports.info, "GET"),
        *_both("/lengths", reports.lengths, "GET"),
        *_both("/docs", reports.docs, "GET"),
        *_both("/openapi.json", reports.openapi, "GET"),
    ]
    return _Application(routes, {endpoint.path: endpoint for endpoint in computing}, services.dispatcher)


class _Application(Starlette):
    """Starlette with a shorter way to the routes that compute: they need nothing of what it puts around a route.

    That saves 9 µs of about 150 for each request.
    """

    def __init__(self, routes: Sequence[BaseRoute], direct: Mapping[str, ASGIApp], dispatcher: Dispatcher) -> None:
        super().__init__(routes=routes, exception_handlers={HTTPException: http_exception, Exception: internal_error})
        # A redirect would send clients that do not follow it, and those that drop the body, into nothing.
        self.router.redirect_slashes = False
        self._direct = direct
        self._dispatcher = dispatcher

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        direct = self._direct.get(scope["path"]) if scope["type"] == "http" and scope["method"] == "POST" else None
        if direct is not None:
            await direct(scope, receive, send)
        else:
            await super().__call__(scope, receive, closing(send) if self._dispatcher.draining else send)


def _both(path: str, endpoint: ASGIApp | Callable[[Request], object], method: str) -> list[BaseRoute]:
    """A route with and without a slash at its end."""
    return [Route(path, endpoint, methods=[method]), Route(f"{path}/", endpoint, methods=[method])]


class Reports:
    """The routes that tell how the server is; none of them waits for a worker."""

    def __init__(self, services: Services) -> None:
        self._services = services
        document = openapi_document(services.model_info, services.options)
        self._openapi = _encode(document)
        self._docs = docs_page(document).encode()

    async def health(self, request: Request) -> Response:
        """That the front lives."""
        return _json(_HEALTH)

    async def ready(self, request: Request) -> Response:
        """Whether requests are answered, and the states of the instances."""
        ready = self._services.is_ready()
        states = {str(id): state for id, state in self._services.states().items()}
        headers = {} if ready else {"retry-after": "1"}
        return Response(_encode(Readiness(ready, states)), 200 if ready else 503, headers, "application/json")

    async def metrics(self, request: Request) -> Response:
        """Everything that is counted."""
        return Response(self._services.metrics.render(), headers={"content-type": METRICS_CONTENT_TYPE})

    async def info(self, request: Request) -> Response:
        """Plan, model, levels reached."""
        return _json(_encode(self._services.info()))

    async def lengths(self, request: Request) -> Response:
        """How many sequences of each length came, as ``--lengths`` takes it."""
        return _json(_encode(dict(sorted(self._services.dispatcher.lengths.items()))))

    async def docs(self, request: Request) -> Response:
        """The page for people."""
        return Response(self._docs, media_type="text/html")

    async def openapi(self, request: Request) -> Response:
        """The document for programs."""
        return _json(self._openapi)


def _json(body: bytes) -> Response:
    return Response(body, media_type="application/json")
