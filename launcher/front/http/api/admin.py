"""The routes for administrators: restart the instances, change the plan, and follow such a change.

They are served on the Unix socket of the administration, and on the port of the server with an admin key. What a
change does belongs to the engine.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Annotated, Any, Literal, TypeVar

import msgspec
from msgspec import Meta, Struct
from starlette.requests import Request
from starlette.responses import Response

from launcher.errors import RequestError
from launcher.front.http.admin_access import AdminActions
from launcher.front.http.body_reader import BodyMemory, BodyReader
from launcher.front.http.route import ApiFamily, HeaderSpec, ResponseSpec, Route
from launcher.front.http.services import Services

MAX_BODY_BYTES = 64 * 1024
MAX_BODIES_BYTES = 1024 * 1024
CLIENT = "admin"  # all administrators share this memory
# Planning takes longer with more, and more processes are not of use.
MAX_INSTANCES = 1024

_encode = msgspec.json.Encoder().encode
BodyT = TypeVar("BodyT", bound=Struct)


class RestartBody(Struct, frozen=True, forbid_unknown_fields=True):
    """Body of ``POST /admin/restart``; may be empty. ``wait``: answer when the restart has ended, not when it has
    begun."""

    wait: bool = True


class PlanBody(Struct, frozen=True, forbid_unknown_fields=True):
    """Body of ``POST /admin/plan``: options of the command line. Those that are not given stay as they are, except that
    the first three go together: if one of them is given, the others are not inherited.

    ``order``: whether new instances start beside the old ones, or each in place of an old one; ``auto`` decides by the
    free memory. ``wait``: answer when the change has ended, not when it has begun.
    """

    instances: Annotated[int, Meta(ge=1, le=MAX_INSTANCES)] | Literal["auto"] | None = None
    cores_per_instance: int | None = None
    classes: str | None = None
    reserve_cores: int | Literal["auto"] | None = None
    oversubscribe: bool | None = None
    mix_kinds: bool | None = None
    order: Literal["auto", "beside", "in_place"] = "auto"
    wait: bool = True


class ChangeReport(Struct, frozen=True):
    """A change of the instances. ``state``: ``new`` or ``old`` if it has ended, with the ``reason`` for ``old``;
    ``preparing``, ``retiring``, ``starting`` or ``restoring`` while it is in progress; ``none`` if there was none.

    ``instances`` are the ids of those in place, ``started`` is a Unix time. ``degraded`` are the reasons why the plan
    in effect is not the one that was asked for, or does not fit the machine as it is now.
    """

    kind: Literal["restart", "plan"] | None
    state: Literal["none", "preparing", "retiring", "starting", "restoring", "new", "old"]
    reason: str | None = None
    steps_done: int = 0
    steps: int = 0
    instances: tuple[int, ...] = ()
    started: float | None = None
    seconds: float = 0.0
    degraded: tuple[str, ...] = ()


class Cleared(Struct, frozen=True):
    """Response of ``POST /admin/quarantine/clear``: the number of inputs that were quarantined."""

    cleared: int


class Admin:
    """The handlers."""

    def __init__(self, services: Services) -> None:
        self._administration = services.administration
        options = replace(services.options, body_bytes=MAX_BODY_BYTES)
        self._reader = BodyReader(options, BodyMemory(MAX_BODIES_BYTES, MAX_BODY_BYTES))

    async def restart(self, request: Request) -> Response:
        """Restart all instances, one after another."""
        actions = self._actions(request)
        body = await self._body(request, RestartBody)
        return _report(await actions.restart(wait=body.wait), 200 if body.wait else 202)

    async def plan(self, request: Request) -> Response:
        """Change the plan."""
        actions = self._actions(request)
        body = await self._body(request, PlanBody)
        given = {name: value for name, value in msgspec.structs.asdict(body).items() if value is not None}
        order, wait = given.pop("order"), given.pop("wait")
        return _report(await actions.plan(given, order, wait=wait), 200 if wait else 202)

    async def change(self, request: Request) -> Response:
        """The change in progress, or else the last one."""
        return _report(self._actions(request).change())

    async def clear_quarantine(self, request: Request) -> Response:
        """Accept quarantined inputs again."""
        cleared = self._actions(request).clear_quarantine()
        return Response(_encode(Cleared(cleared)), media_type="application/json")

    def _actions(self, request: Request) -> AdminActions:
        """The actions, if the request may use them. Raises ``RequestError``."""
        if self._administration is None:
            raise RequestError("this server has no administration", status=404, code="not_found")
        self._administration.access.check(request)
        return self._administration.actions

    async def _body(self, request: Request, kind: type[BodyT]) -> BodyT:
        body = await self._reader.read(request.scope, request.receive, CLIENT)
        try:
            return msgspec.json.decode(body or b"{}", type=kind)
        except msgspec.DecodeError as error:
            raise RequestError(f"the body is not valid: {error}") from error
        finally:
            self._reader.release(body, CLIENT)


def _report(change: Any, status: int = 200) -> Response:
    return Response(_encode(msgspec.convert(change, ChangeReport)), status, media_type="application/json")


_HEADERS = (
    HeaderSpec(
        "authorization",
        "Bearer KEY, with the admin key; not needed on the Unix socket of the administration.",
        {"type": "string"},
    ),
)
_DENIED = {
    401: "The admin key is missing or wrong.",
    403: "Administration over HTTP is disabled: no admin key is configured.",
}
_ERRORS = {
    **_DENIED,
    400: "The body is not valid, or the plan is not possible; nothing was changed.",
    409: "Another change is in progress.",
    503: "The server is shutting down.",
}
_ENDED = ResponseSpec("The change has ended, in the new state or in the old one: see state.", ChangeReport)
_BEGUN = ResponseSpec("The change has begun, because wait is false.", ChangeReport)


def family(services: Services) -> ApiFamily:
    """The routes for administrators; none if the server has no administration."""
    if services.administration is None:
        return ApiFamily("administration", ())
    admin = Admin(services)
    return ApiFamily(
        "administration",
        (
            Route(
                path="/admin/restart",
                summary="Restart all instances, one after another, while requests are answered",
                handler=admin.restart,
                method="POST",
                responses={200: _ENDED, 202: _BEGUN},
                errors=_ERRORS,
                headers=_HEADERS,
                request=RestartBody,
                example={"wait": True},
            ),
            Route(
                path="/admin/plan",
                summary="Change the number of instances or their classes while requests are answered",
                handler=admin.plan,
                method="POST",
                responses={200: _ENDED, 202: _BEGUN},
                errors=_ERRORS,
                headers=_HEADERS,
                request=PlanBody,
                example={"instances": 1},
            ),
            Route(
                path="/admin/change",
                summary="The change of the instances in progress, or else the last one",
                handler=admin.change,
                responses={200: ResponseSpec("The change.", ChangeReport)},
                errors=_DENIED,
                headers=_HEADERS,
            ),
            Route(
                path="/admin/quarantine/clear",
                summary="Accept quarantined inputs again",
                handler=admin.clear_quarantine,
                method="POST",
                responses={200: ResponseSpec("They are accepted.", Cleared)},
                errors=_DENIED,
                headers=_HEADERS,
            ),
        ),
    )
