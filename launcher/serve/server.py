"""Runs the server: HTTP and signals on an engine, and the order of start and shutdown.

Start: the port, the machine, the model's files, the plan, the probes; only then processes. Shutdown (first Ctrl-C or
SIGTERM): not ready, admitted requests are finished, workers stop, HTTP closes, exit 0. A second signal exits at once.
SIGHUP reads the configuration again and restarts the instances. Signal handlers only record; a task reacts.
"""

from __future__ import annotations

import gc
import logging
import os
import re
import socket
import ssl
from dataclasses import dataclass
from pathlib import Path

import anyio
from anyio.abc import TaskGroup

from launcher.core.report.forecast import describe_basis
from launcher.core.scheduling.memory_gate import MemoryGate
from launcher.engine.inference_engine import EngineSettings, InferenceEngine
from launcher.errors import ChangeInProgressError, InstanceError, LauncherError
from launcher.front.http.admin_access import Administration, load_admin_access
from launcher.front.http.admin_socket import admin_socket
from launcher.front.http.app import Services, create_app
from launcher.front.http.authentication import ApiKeys, load_api_keys
from launcher.front.http.cors import check_origins
from launcher.front.http.http_server import HttpServer
from launcher.front.http.listening_socket import address_of, listening
from launcher.front.http.tls import load_tls, reload_certificate
from launcher.front.metrics import FrontMetrics
from launcher.front.token_id_decoder import TokenIdDecoder, load_decoder
from launcher.host import log as logs
from launcher.options import FrontOptions, ServeOptions
from launcher.options.env_prefixes import ADMIN_KEY_VARIABLE, API_KEY_VARIABLE
from launcher.options.sources import ConfigurationSources
from launcher.prepare.claims import Holder, prepare_and_claim
from launcher.prepare.machine import require_this_machine
from launcher.prepare.prepared_instances import Prepared
from launcher.prepare.workers import prepare_workers
from launcher.serve.administration import AdminParts, AdminServer, CoreClaim, EngineActions
from launcher.serve.interference import InterferenceWatch
from launcher.serve.machine_watch import MachineWatch
from launcher.serve.memory_watch import MemoryWatch
from launcher.serve.process_setup import (
    FrontBinding,
    bind_front,
    connections_of_process,
    raise_descriptor_limit,
)
from launcher.serve.reload import after_reload, changes
from launcher.serve.service_manager import ServiceManager
from launcher.serve.signals import STOP, SignalInbox, StoppedAtStart
from launcher.serve.state_report import report_state
from launcher.signal_sets import name_of

log = logging.getLogger("launcher.serve")

# How often to look whether another change of the instances has ended.
CHANGE_SECONDS = 0.5


@dataclass(frozen=True, slots=True)
class Access:
    """Who may connect: the API keys and the TLS context; None: not required."""

    api_keys: ApiKeys | None = None
    tls: ssl.SSLContext | None = None


@dataclass(frozen=True, slots=True)
class ServerParts:
    """Who may connect, the administration, and the claim of the cores."""

    access: Access
    admin: AdminParts
    claim: CoreClaim


@dataclass(frozen=True, slots=True)
class ProcessContext:
    """What this process was started with, besides its options.

    ``configuration``: the sources of its options, which SIGHUP reads again; None if they cannot be read again. ``mask``
    is the affinity that workers inherit if the front has bound itself.
    """

    signals: SignalInbox
    manager: ServiceManager
    parts: ServerParts
    configuration: ConfigurationSources | None = None
    mask: tuple[int, ...] | None = None
    id_decoder: TokenIdDecoder | None = None


def run(options: ServeOptions, configuration: ConfigurationSources | None = None) -> None:
    """Serve until a signal arrives. Raises any ``LauncherError``; returns after a graceful shutdown."""
    require_this_machine(options.machine)
    logs.set_up(options.log)
    signals, manager = SignalInbox(), ServiceManager()
    raise_descriptor_limit()
    front = options.front
    id_decoder = load_decoder(front.token_ids, text_characters=front.text_characters)
    access = load_access(front)
    admin_access = load_admin_access(front.admin_key_file, os.environ)
    with listening(front) as sock:
        holder = _holder(options, address_of(sock, tls=access.tls is not None))
        try:
            prepared, held = prepare_and_claim(
                options.machine, holder, lambda claims: prepare_workers(options, model_needed=True, claims=claims)
            )
        except StoppedAtStart:
            log.info("stopped before an instance was started", extra={"event": "ended"})
            raise
        for secret in (ADMIN_KEY_VARIABLE, API_KEY_VARIABLE):
            os.environ.pop(secret, None)  # workers inherit the environment and need no keys
        mask = bind_front(prepared, strict=options.machine.strict)
        with CoreClaim(holder, held) as claim, admin_socket(front.admin_socket, _end_of(sock), os.environ) as admin:
            parts = ServerParts(access, AdminParts(admin_access, admin), claim)
            context = ProcessContext(signals, manager, parts, configuration, mask, id_decoder)
            server = Server(options, prepared, sock, context)
            signals.hold()
            anyio.run(server.run, backend_options={"use_uvloop": True})
    signals.finish(server.failure.exit_code if server.failure else 0)
    if server.failure:
        raise server.failure


def _holder(options: ServeOptions, address: str) -> Holder:
    """How other launchers see this one; the default name has the end of the address: ``demo-8000``."""
    model = options.model.model
    end = re.split(r"[:/]", address)[-1]
    return Holder("serve", f"{Path(model).name}-{end}", address, model)


def _end_of(sock: socket.socket) -> int | str:
    """What distinguishes the address from those of other servers of this user: the port, or the name of the socket."""
    name = sock.getsockname()
    return Path(name).stem if sock.family == socket.AF_UNIX else int(name[1])


def load_access(front: FrontOptions) -> Access:
    """Read keys and certificates. Raises ``UsageError``."""
    check_origins(front.cors_origin)
    return Access(load_api_keys(front.api_key_file, os.environ), load_tls(front))


class Server:
    """One run of the server; the observer of its engine."""

    def __init__(self, options: ServeOptions, prepared: Prepared, sock: socket.socket, context: ProcessContext) -> None:
        self._options = options
        self._prepared = prepared
        self._context = context
        self._manager = context.manager
        self._access, admin = context.parts.access, context.parts.admin
        self._engine = engine = InferenceEngine(options, prepared, EngineSettings(mask=context.mask), self)
        self._front = FrontBinding(context.mask)
        self._actions = EngineActions(engine, context.mask, context.parts.claim)
        self._machine = MachineWatch(engine, self._actions, self._front, options.watch)
        self._interference = InterferenceWatch(engine, self._front)
        gate = MemoryGate(options.front.memory_reserve)
        self._memory = MemoryWatch(gate, engine.metrics)
        services = Services(
            dispatcher=engine.dispatcher,
            tokenizer=engine.tokenizer,
            model_info=engine.model_info,
            options=options.front,
            info=lambda: {**engine.info(), "machine": self._machine.status()},
            states=engine.states,
            is_ready=engine.is_ready,
            probe=engine.probe,
            metrics=engine.metrics,
            id_decoder=context.id_decoder,
            api_keys=self._access.api_keys,
            administration=Administration(self._actions, admin.access),
            memory_gate=gate,
        )
        maximum = connections_of_process(options.front.connections, len(prepared.plan.instances))
        app, tls = create_app(services), self._access.tls
        self._http = HttpServer(app, sock, options.front, max_connections=maximum, tls=tls)
        self._admin = AdminServer(services, admin.socket)
        self._watch_resources(engine.metrics)
        self._address = address_of(sock, tls=tls is not None)
        self._group: TaskGroup | None = None
        self._draining = self._reloading = self._reload_again = False
        self._ignored: set[int] = set()
        self._finished = anyio.Event()

    @property
    def failure(self) -> LauncherError | None:
        """Why the server stopped without a signal, or None."""
        return self._engine.failure

    def _reload_access(self) -> None:
        """Read the API keys and the certificate again, for new requests and connections. Those that cannot be read stay
        as they were."""
        keys, tls, extra = self._access.api_keys, self._access.tls, {"event": "access_reloaded"}
        if keys is not None:
            try:
                keys.reload()
                log.info("SIGHUP: read the API keys again: %d", len(keys), extra=extra)
            except LauncherError as error:
                log.error("SIGHUP: the API keys stay as they were: %s", error, extra={"event": "reload_refused"})
        if tls is not None:
            try:
                reload_certificate(tls, self._options.front)
                log.info("SIGHUP: read the certificate again", extra=extra)
            except LauncherError as error:
                log.error("SIGHUP: the certificate stays as it was: %s", error, extra={"event": "reload_refused"})

    async def run(self) -> None:
        """Serve until a signal arrives, or until no instance is left."""
        self._finished = anyio.Event()
        # Existing objects live until exit. Traversing them took the garbage collector 20 to 25 ms, in the middle of
        # requests.
        gc.collect()
        gc.freeze()
        self._log_start()
        async with anyio.create_task_group() as group:
            self._group = group
            group.start_soon(self._watch_signals)
            group.start_soon(self._http.run)
            group.start_soon(self._admin.run)
            group.start_soon(self._memory.run)
            group.start_soon(self._machine.run)
            group.start_soon(self._interference.run)
            group.start_soon(self._engine.run)
            group.start_soon(report_state, self._manager, self._engine, self._is_healthy)
            await self._finished.wait()
            group.cancel_scope.cancel()
        log.info("ended", extra={"event": "ended"})

    def _log_start(self) -> None:
        plan, model_info, setup = self._prepared.plan, self._engine.model_info, self._engine.setup
        log.info(
            "model %s (%s, %s, at most %d tokens) in %s on %d instance%s; listening on %s, not ready yet",
            model_info.name, model_info.architecture, model_info.task, model_info.max_length, setup.dtype,
            len(plan.instances), "s" if len(plan.instances) > 1 else "", self._address, extra={"event": "starting",
            "address": self._address},
        )  # fmt: skip
        choice = self._prepared.forecast.choice if self._prepared.forecast else None
        if choice is not None:
            log.info("%s %s", choice.why, describe_basis(choice.predicted), extra={"event": "classes"})
        for warning in self._prepared.warnings:
            log.warning("%s", warning, extra={"event": "warning"})
        for instance in self._prepared.instances:
            command = instance.command.command
            extra = {"instance": instance.plan.id, "event": "planned", "command": list(command)}
            log.info("%s", instance.plan.why, extra=extra)
            log.debug("command: %s", " ".join(command), extra=extra)

    def _watch_resources(self, metrics: FrontMetrics) -> None:
        http = self._http
        metrics.watch("launcher_connections", "Open connections.", lambda: http.connections)
        metrics.watch(
            "launcher_connections_refused", "Connections refused because of --max-connections.", lambda: http.refused
        )
        metrics.watch(
            "launcher_log_lines_dropped",
            "Lines of the log dropped because standard error did not accept them.",
            logs.dropped_lines,
        )

    def _is_healthy(self) -> bool:
        return self._http.serving and self._engine.failure is None

    async def _watch_signals(self) -> None:
        async for number in self._context.signals.received():
            name, meaning = name_of(number), self._context.signals.meaning(number)
            if meaning == "none":
                # Once: a timer of another program may send it again and again.
                level = logging.DEBUG if number in self._ignored else logging.INFO
                self._ignored.add(number)
                closed = "the terminal was closed, and the server runs under nohup"
                hint = closed if name == "SIGHUP" else "SIGTERM drains, SIGHUP reloads"
                log.log(level, "%s has no effect; %s", name, hint, extra={"event": "signal"})
            elif meaning == "reload":
                self._request_reload()
            elif not self._draining:
                log.info("%s: draining; a second signal stops the server at once", name, extra={"event": "draining"})
                self._begin_shutdown()
            elif number in STOP:
                log.warning("%s again: stopping at once", name, extra={"event": "ending"})
                self._engine.stop_now()
                self._finished.set()

    def _request_reload(self) -> None:
        if self._draining:
            log.info("SIGHUP has no effect: the server is draining", extra={"event": "signal"})
        elif self._reloading:
            self._reload_again = True
        elif self._group is not None:
            self._reloading = True
            self._group.start_soon(self._reload)

    async def _reload(self) -> None:
        """Read the configuration again, use what can change in a running server, and restart the instances."""
        self._manager.reloading()
        try:
            self._reload_again = True
            while self._reload_again and not self._draining:
                self._reload_again = False
                if self._reconfigure():
                    await self._restart_instances()
        except Exception:  # such as a lack of threads or descriptors: the server must go on
            log.exception("SIGHUP: the reload failed", extra={"event": "reload_refused"})
        finally:
            self._reloading = False
            if not self._draining:
                self._manager.reloaded()

    def _reconfigure(self) -> bool:
        """Returns False if the configuration cannot be used; then nothing has changed."""
        configuration, old = self._context.configuration, self._options
        try:
            new = old if configuration is None else configuration.read(ServeOptions)
        except LauncherError as error:
            log.error(
                "SIGHUP: the configuration is not used, and nothing has changed: %s", error,
                extra={"event": "reload_refused"},
            )  # fmt: skip
            return False
        self._options = after_reload(old, new)
        self._engine.reconfigure(self._options.supervise)
        self._http.reconfigure(self._options.front)
        self._machine.options = self._options.watch
        self._reload_access()
        if self._options.log != old.log:
            logs.set_up(self._options.log)
        path = configuration.path if configuration else None
        what = f"read {path} again" if path else "there is no configuration file to read again"
        log.info("SIGHUP: %s", what, extra={"event": "reloading"})
        for change in changes(old, new):
            if change.live:
                log.info("changed: %s", change, extra={"event": "option_changed", "option": change.option.key})
            else:
                message = "not in effect until the server is started again: %s"
                log.warning(message, change, extra={"event": "option_unchanged", "option": change.option.key})
        return True

    async def _restart_instances(self) -> None:
        """Restart the instances one by one, after another change of them if one is in progress."""
        try:
            await self._engine.wait_ready()
            while not self._draining:
                try:
                    result = await self._engine.restart_instances()
                except ChangeInProgressError:
                    await anyio.sleep(CHANGE_SECONDS)
                    continue
                if result.state == "old" and not self._draining:
                    log.error("SIGHUP: not all instances were restarted: %s", result.reason)
                return
        except LauncherError as error:
            log.error("SIGHUP: the instances were not restarted: %s", error)

    def _begin_shutdown(self) -> None:
        if self._group is not None and not self._draining:
            self._draining = True
            self._manager.stopping()
            self._group.start_soon(self._shut_down)

    async def _shut_down(self) -> None:
        """Graceful shutdown: admitted requests are finished, unless they take longer than ``drain_seconds``."""
        await self._engine.drain(self._options.front.drain_seconds)
        await self._engine.stop()
        await self._http.stop(self._options.supervise.stop_seconds)  # for responses that are being written
        await self._admin.stop(self._options.supervise.stop_seconds)
        self._engine.close()
        self._finished.set()

    def all_ready(self) -> None:
        """See ``EngineObserver``."""
        self._memory.became_ready()
        log.info("ready: %s (API at /docs, plan at /info)", self._address, extra={"event": "serving"})

    def changed(self, prepared: Prepared) -> None:
        """Bind the front to its cpus in the new plan; other instances need other memory."""
        if len(prepared.instances) != len(self._prepared.instances):
            self._memory.instances_changed()
        self._prepared = prepared
        self._front.follow(prepared)
        self._engine.set_mask(self._front.mask)
        self._actions.mask = self._front.mask

    def failed(self, error: InstanceError) -> None:
        """Shut down; the exit status says that the server failed."""
        self._begin_shutdown()
