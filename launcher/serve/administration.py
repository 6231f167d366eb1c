"""What administrators can do to a running server, as actions on its engine.

Separate from the server so that the routes, signals and the watch of the machine use the same actions. How a change is
carried out belongs to the engine, who may ask for it to ``front.http.admin_access``.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Coroutine, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import anyio.to_thread

from launcher.core.lifecycle.change import Order
from launcher.core.machine.topology import Machine
from launcher.core.planning.claims import Claim
from launcher.engine.configuration import Configuration, configure
from launcher.engine.inference_engine import InferenceEngine
from launcher.engine.rolling_change import ChangeResult
from launcher.errors import ChangeInProgressError, LauncherError, RequestError
from launcher.front.http.admin_access import AdminAccess
from launcher.front.http.admin_socket import AdminSocket
from launcher.front.http.api import admin, operations
from launcher.front.http.app import create_app
from launcher.front.http.http_server import HttpServer
from launcher.front.http.services import Services
from launcher.host.process.spawn_worker import masked
from launcher.host.registry import Held
from launcher.options import MachineOptions, ServeOptions
from launcher.options.option import options_of
from launcher.options.values import convert
from launcher.prepare.claims import Holder, Prepare, prepare_and_claim
from launcher.prepare.prepared_instances import Prepared
from launcher.prepare.workers import AUTO, prepare_workers

log = logging.getLogger("launcher.serve")

# These determine the instances together, and exclude each other in part: one of them replaces all.
_INSTANCES = ("instances", "cores_per_instance", "classes")


class CoreClaim:
    """The claim of a server's cores, which follows its plan. Without a holder, no cores are claimed."""

    def __init__(self, holder: Holder | None = None, held: Held | None = None) -> None:
        self._holder = holder
        self._held = held or Held()

    def prepare(self, options: MachineOptions, prepare: Prepare) -> tuple[Prepared, Held]:
        """Another plan, for the cores that no other launcher has claimed, and its claim. Raises ``LauncherError``."""
        if self._holder is None:
            return prepare(()), Held()
        return prepare_and_claim(options, self._holder, prepare, self._held)

    def settle(self, held: Held, *, taken: bool) -> None:
        """The other plan was ``taken`` or not: release the claim that is no longer needed."""
        released, self._held = (self._held, held) if taken else (held, self._held)
        released.release()

    def __enter__(self) -> CoreClaim:
        return self

    def __exit__(self, *_: object) -> None:
        self._held.release()


class EngineActions:
    """See ``front.http.admin_access.AdminActions``."""

    def __init__(
        self, engine: InferenceEngine, mask: tuple[int, ...] | None = None, claim: CoreClaim | None = None
    ) -> None:
        """``mask`` is the affinity to probe bindings with if the front has bound itself."""
        self._engine = engine
        self.mask = mask
        # The machine as it is now, if it has changed since the plan was made; and why the plan is not as asked for.
        self.machine: Machine | None = None
        self.degraded: tuple[str, ...] = ()
        # A plan without --classes auto drops them; another one with it needs them again.
        self._lengths = engine.configuration.options.machine.lengths
        self._claim = claim or CoreClaim()
        self._running: asyncio.Task[ChangeResult] | None = None

    async def restart(self, *, wait: bool) -> Mapping[str, Any]:
        """Restart all instances, one after another."""
        return await self._run(self._engine.restart_instances(), wait)

    async def plan(self, options: Mapping[str, object], order: Order, *, wait: bool) -> Mapping[str, Any]:
        """Change to the plan for these options of the command line."""
        try:
            configuration, held = await self.configuration(options)
        except LauncherError as error:
            raise RequestError(str(error), status=400, code="plan_not_possible") from error
        return await self._run(self.apply(configuration, held, order), wait)

    async def apply(self, configuration: Configuration, held: Held, order: Order) -> ChangeResult:
        """Change to a configuration, whose cores are claimed as ``held``. Raises as ``InferenceEngine.apply``."""
        taken = False
        try:
            result = await self._engine.apply(configuration, order=order)
            taken = result.state == "new"
            return result
        finally:
            self._claim.settle(held, taken=taken)

    def discard(self, held: Held) -> None:
        """Release the claim of a configuration that is not applied."""
        self._claim.settle(held, taken=False)

    def change(self) -> Mapping[str, Any]:
        """The change in progress, or else the last one."""
        return self._report()

    def clear_quarantine(self) -> int:
        """Accept quarantined inputs again; returns their number."""
        return self._engine.clear_quarantine()

    async def configuration(
        self, given: Mapping[str, object], base: MachineOptions | None = None
    ) -> tuple[Configuration, Held]:
        """The configuration that follows from the present one with these options in place of those in ``base`` (by
        default, the present ones), and the claim of its cores. Raises ``LauncherError``.

        It is for ``machine``, by default the one that the present plan was made for."""
        now = self._engine.configuration
        wanted = replace(now.options, machine=self._changed(base or now.options.machine, given))
        return await anyio.to_thread.run_sync(self._prepare, wanted, self.machine or now.prepared.machine)

    def _prepare(self, options: ServeOptions, machine: Machine) -> tuple[Configuration, Held]:
        def prepare(claims: Sequence[Claim]) -> Prepared:
            return prepare_workers(options, model_needed=True, machine=machine, claims=claims)

        with masked(self.mask):
            prepared, held = self._claim.prepare(options.machine, prepare)
        return configure(options, prepared), held

    def _changed(self, now: MachineOptions, given: Mapping[str, object]) -> MachineOptions:
        """The options with the given ones changed. Raises ``UsageError``."""
        known = {option.name: option for option in options_of(MachineOptions)}
        inherited: dict[str, Any] = dict.fromkeys(_INSTANCES) if any(name in given for name in _INSTANCES) else {}
        values = {name: convert(known[name], value, name) for name, value in given.items()}
        changed = replace(now, **{**inherited, **values})
        return replace(changed, lengths=self._lengths if changed.classes == AUTO else None)

    async def _run(self, change: Coroutine[Any, Any, ChangeResult], wait: bool) -> Mapping[str, Any]:
        task = asyncio.create_task(change, name="launcher change")
        if not wait:
            # It begins, or is refused, when the task first runs.
            await asyncio.wait({task}, timeout=0)
            self._running = task
        if wait or task.done():
            try:
                await asyncio.shield(task)
            except ChangeInProgressError as error:
                raise RequestError(str(error), status=409, code="change_in_progress") from error
            except LauncherError as error:
                raise RequestError(str(error), status=503, code="draining") from error
        return self._report()

    def _report(self) -> Mapping[str, Any]:
        change = self._engine.change_status() or {"kind": None, "state": "none"}
        return {**change, "degraded": self.degraded}


@dataclass(frozen=True, slots=True)
class AdminParts:
    """Who may use the administration over TCP, and its Unix socket, if there is one."""

    access: AdminAccess = field(default_factory=AdminAccess)
    socket: AdminSocket | None = None


class AdminServer:
    """The HTTP server of the administration on its Unix socket. Without a socket it does nothing."""

    def __init__(self, services: Services, opened: AdminSocket | None) -> None:
        self._http: HttpServer | None = None
        self._path = None if opened is None else opened.path
        if opened is not None and services.administration is not None:
            trusted = replace(services.administration, access=AdminAccess(trusted=True))
            options = replace(services.options, cors_origin=())
            own = replace(services, administration=trusted, api_keys=None, options=options)
            self._http = HttpServer(create_app(own, (admin.family, operations.family)), opened.sock, options)

    async def run(self) -> None:
        """Serve; returns after ``stop``."""
        if self._http is not None:
            log.info("administration: unix:%s", self._path, extra={"event": "administration", "path": str(self._path)})
            await self._http.run()

    async def stop(self, seconds: float) -> None:
        """As ``HttpServer.stop``."""
        if self._http is not None:
            await self._http.stop(seconds)
