"""Descriptions of routes and of API families: everything that serving a route and documenting it needs.

Routing, ``/openapi.json`` and ``/docs`` are derived from these descriptions, so that a route is added in one place: the
module of its family in ``api``. Serving does not belong here.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from msgspec import Struct

from launcher.front.http.error_response import DEFAULT_ERRORS, ErrorFormat


@dataclass(frozen=True, slots=True)
class ResponseSpec:
    """The documentation of a response. ``type`` is that of its JSON; None: any object, or text that is not JSON."""

    description: str
    type: Any = None
    media_type: str = "application/json"


@dataclass(frozen=True, slots=True)
class HeaderSpec:
    """The documentation of a request header; ``schema`` is a JSON schema."""

    name: str
    description: str
    schema: Mapping[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Route:
    """One method of one path.

    ``path`` is written as in Starlette: ``{id}`` matches one segment, ``{id:path}`` the rest. Except after the latter,
    the same path with a slash at its end is served too. ``handler`` is a coroutine function that takes a Starlette
    request and returns a Starlette response, or raises ``RequestError``; it must not read the body without a limit (see
    ``BodyReader``). Routes that run the model are described by ``InferenceRoute``.

    ``responses`` and ``errors`` are by status; errors have the shape of the family. ``request`` is the type of the JSON
    body, and ``example`` a body that the server accepts.
    """

    path: str
    summary: str
    handler: Callable[[Any], Any]
    responses: Mapping[int, ResponseSpec]
    method: Literal["GET", "POST"] = "GET"
    errors: Mapping[int, str] = field(default_factory=dict)
    headers: Sequence[HeaderSpec] = ()
    request: type[Struct] | None = None
    example: Any = None

    @property
    def methods(self) -> frozenset[str]:
        """The methods that are answered."""
        return frozenset({self.method, "HEAD"} if self.method == "GET" else {self.method})

    @property
    def paths(self) -> tuple[str, ...]:
        """The paths that are served."""
        if self.path == "/" or self.path.endswith(":path}"):
            return (self.path,)
        return (self.path, f"{self.path}/")


@dataclass(frozen=True, slots=True)
class ApiFamily:
    """The routes of one API, and how it writes errors.

    All errors of its routes have the shape ``errors``. Unknown paths that begin with one of ``prefixes`` are answered
    in this shape too.
    """

    name: str
    routes: Sequence[Route]
    errors: ErrorFormat = DEFAULT_ERRORS
    prefixes: Sequence[str] = ()
