"""The routes for operators: health, readiness, metrics and documentation.

Only ``/ready?deep=1`` waits for workers, for a bounded time.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import msgspec
from msgspec import UNSET, Struct, UnsetType
from starlette.requests import Request
from starlette.responses import Response

from launcher.front.http.route import ApiFamily, ResponseSpec, Route
from launcher.front.http.services import Services
from launcher.front.metrics import METRICS_CONTENT_TYPE

_encode = msgspec.json.Encoder().encode


class Health(Struct, frozen=True):
    """Response of ``GET /health``."""

    status: Literal["ok"] = "ok"


class Readiness(Struct, frozen=True):
    """Response of ``GET /ready``: whether requests are answered, and the state of each instance.

    ``computes`` tells for each instance whether it has just computed; only with ``deep=1``.
    """

    ready: bool
    instances: dict[str, Any]
    computes: Mapping[str, bool] | UnsetType = UNSET


_HEALTH = _encode(Health())
DEEP = ("1", "true")


class Operations:
    """The handlers."""

    def __init__(self, services: Services) -> None:
        self._services = services

    async def health(self, request: Request) -> Response:
        """Report that the HTTP server is alive."""
        return _json(_HEALTH)

    async def ready(self, request: Request) -> Response:
        """Whether requests are answered, and the state of each instance."""
        computes: Mapping[str, bool] | UnsetType = UNSET
        if request.query_params.get("deep") in DEEP:
            computes = await self._services.probe()
        ready = self._services.is_ready() and (not isinstance(computes, Mapping) or any(computes.values()))
        states = {str(id): state for id, state in self._services.states().items()}
        headers = {} if ready else {"retry-after": "1"}
        return Response(_encode(Readiness(ready, states, computes)), 200 if ready else 503, headers, "application/json")

    async def info(self, request: Request) -> Response:
        """Plan, model and what was verified."""
        return _json(_encode(self._services.info()))

    async def lengths(self, request: Request) -> Response:
        """The histogram of sequence lengths so far, in the format of ``--lengths``."""
        return _json(_encode(dict(sorted(self._services.dispatcher.lengths.items()))))

    async def metrics(self, request: Request) -> Response:
        """All metrics."""
        return Response(self._services.metrics.render(), headers={"content-type": METRICS_CONTENT_TYPE})

    async def docs(self, request: Request) -> Response:
        """The documentation as a page."""
        return Response(request.app.state.docs_page, media_type="text/html")

    async def openapi(self, request: Request) -> Response:
        """The documentation as an OpenAPI document."""
        return _json(request.app.state.openapi)


def _json(body: bytes) -> Response:
    return Response(body, media_type="application/json")


def family(services: Services) -> ApiFamily:
    """The routes of the server as a whole, whatever model it serves."""
    operations = Operations(services)
    not_ready = ResponseSpec("Not enough instances are ready, or the server is shutting down.", Readiness)
    return ApiFamily(
        "operations",
        (
            Route(
                path="/health",
                summary="Whether the server is alive",
                handler=operations.health,
                responses={200: ResponseSpec("It is.", Health)},
            ),
            Route(
                path="/ready",
                summary="Whether requests are answered; with the query deep=1, after a sample batch on each instance",
                handler=operations.ready,
                responses={200: ResponseSpec("They are.", Readiness), 503: not_ready},
            ),
            Route(
                path="/info",
                summary="Plan, model, and how each instance is bound",
                handler=operations.info,
                responses={200: ResponseSpec("An object.")},
            ),
            Route(
                path="/lengths",
                summary="Histogram of sequence lengths so far",
                handler=operations.lengths,
                responses={200: ResponseSpec("Counts by length in tokens.")},
            ),
            Route(
                path="/metrics",
                summary="Metrics for Prometheus",
                handler=operations.metrics,
                responses={200: ResponseSpec("Prometheus text format.", media_type="text/plain")},
            ),
            Route(
                path="/docs",
                summary="This documentation as a page",
                handler=operations.docs,
                responses={200: ResponseSpec("The page.", media_type="text/html")},
            ),
            Route(
                path="/openapi.json",
                summary="This documentation as an OpenAPI document",
                handler=operations.openapi,
                responses={200: ResponseSpec("The document.")},
            ),
        ),
    )
