"""Runs the server: HTTP and signals on an engine, and the order of start and shutdown.

Start: the port, the machine, the model's files, the plan, the probes; only then processes. Shutdown (first Ctrl-C or
SIGTERM): not ready, admitted requests are finished, workers stop, HTTP closes, exit 0. A second signal exits at once.
Signal handlers only record; a task reacts.
"""

from __future__ import annotations

import gc
import logging
import os
import re
import signal
import socket
import ssl
from dataclasses import dataclass
from pathlib import Path

import anyio
from anyio.abc import TaskGroup

from launcher.core.report.forecast import describe_basis
from launcher.engine.inference_engine import EngineSettings, InferenceEngine
from launcher.errors import InstanceError, LauncherError
from launcher.front.http.app import Services, create_app
from launcher.front.http.authentication import ApiKeys, load_api_keys
from launcher.front.http.cors import check_origins
from launcher.front.http.http_server import HttpServer
from launcher.front.http.listening_socket import address_of, listening
from launcher.front.http.tls import load_tls, reload_certificate
from launcher.front.token_id_decoder import TokenIdDecoder, load_decoder
from launcher.host import log as logs
from launcher.options import FrontOptions, ServeOptions
from launcher.options.env_prefixes import API_KEY_VARIABLE
from launcher.prepare.claims import Holder, prepare_and_claim
from launcher.prepare.machine import require_this_machine
from launcher.prepare.prepared_instances import Prepared
from launcher.prepare.workers import prepare_workers
from launcher.serve.process_setup import bind_front, raise_descriptor_limit

log = logging.getLogger("launcher.serve")


def run(options: ServeOptions) -> None:
    """Serve until a signal arrives. Raises any ``LauncherError``; returns after a graceful shutdown."""
    require_this_machine(options.machine)
    logs.set_up(options.log)
    raise_descriptor_limit()
    front = options.front
    id_decoder = load_decoder(front.token_ids, text_characters=front.text_characters)
    access = load_access(front)
    with listening(front) as sock:
        holder = _holder(options, address_of(sock, tls=access.tls is not None))
        prepared, claim = prepare_and_claim(
            options.machine, holder, lambda claims: prepare_workers(options, model_needed=True, claims=claims)
        )
        os.environ.pop(API_KEY_VARIABLE, None)  # workers inherit the environment and need no keys
        mask = bind_front(prepared, strict=options.machine.strict)
        server = Server(options, prepared, sock, ServerParts(mask, id_decoder, access))
        with claim:
            anyio.run(server.run, backend_options={"use_uvloop": True})
    if server.failure:
        raise server.failure


def _holder(options: ServeOptions, address: str) -> Holder:
    """How other launchers see this one; the default name has the end of the address: ``demo-8000``."""
    model = options.model.model
    end = re.split(r"[:/]", address)[-1]
    return Holder("serve", f"{Path(model).name}-{end}", address, model)


@dataclass(frozen=True, slots=True)
class Access:
    """Who may connect: the API keys and the TLS context; None: not required."""

    api_keys: ApiKeys | None = None
    tls: ssl.SSLContext | None = None


def load_access(front: FrontOptions) -> Access:
    """Read keys and certificates. Raises ``UsageError``."""
    check_origins(front.cors_origin)
    return Access(load_api_keys(front.api_key_file, os.environ), load_tls(front))


@dataclass(frozen=True, slots=True)
class ServerParts:
    """Optional parts of a server. ``mask`` is the affinity that workers inherit if the front has bound itself."""

    mask: tuple[int, ...] | None = None
    id_decoder: TokenIdDecoder | None = None
    access: Access = Access()


class Server:
    """One run of the server; the observer of its engine."""

    def __init__(
        self,
        options: ServeOptions,
        prepared: Prepared,
        sock: socket.socket,
        parts: ServerParts = ServerParts(),
    ) -> None:
        self._options = options
        self._access = access = parts.access
        self._prepared = prepared
        self._engine = engine = InferenceEngine(options, prepared, EngineSettings(mask=parts.mask), self)
        services = Services(
            dispatcher=engine.dispatcher,
            tokenizer=engine.tokenizer,
            model_info=engine.model_info,
            options=options.front,
            info=engine.info,
            states=engine.states,
            is_ready=engine.is_ready,
            metrics=engine.metrics,
            id_decoder=parts.id_decoder,
            api_keys=access.api_keys,
        )
        self._http = HttpServer(create_app(services), sock, options.front, tls=access.tls)
        self._address = address_of(sock, tls=access.tls is not None)
        self._group: TaskGroup | None = None
        self._signals = 0
        self._finished = anyio.Event()

    @property
    def failure(self) -> LauncherError | None:
        """Why the server stopped without a signal, or None."""
        return self._engine.failure

    def reload_access(self) -> None:
        """Read the API keys and the certificate again. Raises ``UsageError``, and keeps those that cannot be read."""
        if self._access.api_keys is not None:
            self._access.api_keys.reload()
        if self._access.tls is not None:
            reload_certificate(self._access.tls, self._options.front)

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
            group.start_soon(self._engine.run)
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

    async def _watch_signals(self) -> None:
        with anyio.open_signal_receiver(signal.SIGINT, signal.SIGTERM) as received:
            async for number in received:
                self._signals += 1
                name = signal.Signals(number).name
                if self._signals == 1:
                    log.info(
                        "%s: draining; a second signal stops the server at once", name, extra={"event": "draining"}
                    )
                    self._begin_shutdown()
                else:
                    log.warning("%s again: stopping at once", name, extra={"event": "ending"})
                    self._engine.stop_now()
                    self._finished.set()

    def _begin_shutdown(self) -> None:
        if self._group is not None:
            self._group.start_soon(self._shut_down)

    async def _shut_down(self) -> None:
        """Graceful shutdown: admitted requests are finished, unless they take longer than ``drain_seconds``."""
        await self._engine.drain(self._options.front.drain_seconds)
        await self._engine.stop()
        await self._http.stop(self._options.supervise.stop_seconds)  # for responses that are being written
        self._engine.close()
        self._finished.set()

    def all_ready(self) -> None:
        """See ``EngineObserver``."""
        log.info("ready: %s (API at /docs, plan at /info)", self._address, extra={"event": "serving"})

    def failed(self, error: InstanceError) -> None:
        """Shut down; the exit status says that the server failed."""
        self._begin_shutdown()
