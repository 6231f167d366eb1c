"""Exports a plan for other supervisors: shell, systemd, Docker Compose, Slurm.

For users who start their processes with something else: each instance as a service of its own with the same cores and
memory, or one server that starts the instances itself. Each supervisor binds in its own way, so the commands passed in
are those of the programs alone. No files are written here.
"""

from __future__ import annotations

import json
import math
import shlex
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from launcher.core.machine.cpuset import format_cpu_list
from launcher.core.planning.binding import Binding, command_prefix
from launcher.core.planning.claims import REGISTRY_FOLDERS
from launcher.core.planning.plan import InstancePlan, Plan
from launcher.core.report.topology_report import Command
from launcher.options.choices import ExportTarget
from launcher.printable import printable

BOUND = Binding("bind", "numactl", "exported")
# The longest time without a sign of life from the event loop before systemd restarts a server.
WATCHDOG_SECONDS = 30
# In addition to the timeouts of the server itself, for its start and for what follows a drain.
MARGIN_SECONDS = 30

# systemd.exec(5). Not MemoryDenyWriteExecute: torch and oneDNN generate code. Binding to cpus and memory nodes needs no
# capability; the calls for it are in @system-service.
HARDENING = (
    "NoNewPrivileges=yes",
    "CapabilityBoundingSet=",
    "ProtectSystem=strict",
    # Claims of cores are stored there, for all launchers of the machine. "+": as root, outside of the sandbox.
    f"ExecStartPre=+/usr/bin/install -d -m 1777 {REGISTRY_FOLDERS[0]}",
    f"ReadWritePaths=-{REGISTRY_FOLDERS[0]}",
    "ProtectHome=read-only",
    "PrivateTmp=yes",
    "PrivateDevices=yes",
    "ProtectClock=yes",
    "ProtectControlGroups=yes",
    "ProtectHostname=yes",
    "ProtectKernelLogs=yes",
    "ProtectKernelModules=yes",
    "ProtectKernelTunables=yes",
    "RestrictAddressFamilies=AF_UNIX AF_INET AF_INET6",
    "RestrictNamespaces=yes",
    "RestrictRealtime=yes",
    "RestrictSUIDSGID=yes",
    "LockPersonality=yes",
    "SystemCallArchitectures=native",
    "SystemCallFilter=@system-service",
)


@dataclass(frozen=True, slots=True)
class ServerFacts:
    """What a supervisor must know of a ``launch`` server: its port, the seconds that its start and its shutdown may
    take, the account that it runs as (None if that is for the operator to choose), and whether it serves HTTPS."""

    port: int
    start_seconds: float
    stop_seconds: float
    user: str | None = None
    tls: bool = False


@dataclass(frozen=True, slots=True)
class Service:
    """One process that the supervisor starts. ``instance``: the instance whose cores and memory it is bound to; None
    for a server that binds its instances itself. ``server``: None for another program."""

    name: str
    why: str
    command: Command
    cpus: tuple[int, ...]
    instance: InstancePlan | None
    server: ServerFacts | None

    @property
    def bound_command(self) -> tuple[str, ...]:
        """The command, bound by numactl if it does not bind itself."""
        prefix = command_prefix(self.instance, BOUND) if self.instance else ()
        return (*prefix, *self.command.command)


@dataclass(frozen=True, slots=True)
class Export:
    """All services, below one name. ``summary`` describes them in a line."""

    name: str
    summary: str
    services: tuple[Service, ...]


def export_plan(
    plan: Plan,
    commands: Sequence[Command],
    target: ExportTarget,
    *,
    name: str = "launcher",
    servers: Sequence[ServerFacts] | None = None,
) -> str:
    """A service for each instance of the plan. ``commands`` are those of the programs, without a binding prefix, in the
    order of the instances; ``servers`` has the facts of each if they are servers.

    ``systemd`` gives several unit files in one text, each below a comment with its path.
    """
    facts: Sequence[ServerFacts | None] = servers or [None] * len(commands)
    services = tuple(
        Service(f"{name}-{one.id}", one.why, command, one.cpus, one, server)
        for one, command, server in zip(plan.instances, commands, facts, strict=True)
    )
    cores = sum(instance.threads for instance in plan.instances)
    return _text(Export(name, f"{_count(plan)} with {cores} threads, each on its own cores", services), target)


def export_server(
    plan: Plan, command: Command, server: ServerFacts, target: ExportTarget, *, name: str = "launcher"
) -> str:
    """One service: the server that starts and binds all instances of the plan, and dispatches to them."""
    cpus = tuple(sorted({cpu for one in plan.instances for cpu in one.cpus} | set(plan.reserved_cpus)))
    summary = f"one server with {_count(plan)} on cpus {format_cpu_list(cpus)}"
    return _text(Export(name, summary, (Service(name, summary, command, cpus, None, server),)), target)


def _count(plan: Plan) -> str:
    return f"{len(plan.instances)} instance{'' if len(plan.instances) == 1 else 's'}"


def _text(export: Export, target: ExportTarget) -> str:
    return "\n".join(WRITERS[target](export)) + "\n"


def _shell(export: Export) -> Iterator[str]:
    yield "#!/bin/sh"
    yield f"# {export.name}: {export.summary}"
    yield "# Stops all instances when interrupted; its exit status is that of the last one that failed."
    yield "pids="
    yield "trap 'kill $pids 2>/dev/null' INT TERM"
    for service in export.services:
        yield f"\n# {_label(service)}"
        yield f"{shlex.join((*_env_words(service.command.env), *service.bound_command))} &"
        yield 'pids="$pids $!"'
    yield "\nstatus=0"
    # A trapped signal makes `wait` return early, so wait again until the process is gone.
    yield "for pid in $pids; do"
    yield '  wait "$pid" || status=$?'
    yield '  while kill -0 "$pid" 2>/dev/null; do wait "$pid" || status=$?; done'
    yield "done"
    yield 'exit "$status"'


def _slurm(export: Export) -> Iterator[str]:
    yield "#!/bin/sh"
    yield f"# {export.name}: {export.summary}"
    yield f"#SBATCH --job-name={export.name}"
    yield "#SBATCH --nodes=1"
    yield "#SBATCH --exclusive"
    for service in export.services:
        yield f"\n# {_label(service)}"
        step = ["srun", "--ntasks=1", "--overlap", f"--cpu-bind=mask_cpu:{_mask(service.cpus)}"]
        own = [*_env_words(service.command.env), *service.command.command]
        instance = service.instance
        if instance and instance.memory == "bind":
            step.append(f"--mem-bind=mask_mem:{_mask(instance.nodes)}")
        elif instance and instance.memory == "interleave":
            # Slurm binds memory but does not interleave it.
            interleaved = ["numactl", "-i", format_cpu_list(instance.nodes), *service.command.command]
            own = [*_env_words(service.command.env), *interleaved]
        yield f"{shlex.join([*step, *own])} &"
    yield "\nwait"


def _systemd(export: Export) -> Iterator[str]:
    single = len(export.services) == 1 and export.services[0].name == export.name
    if not single:
        yield f"# /etc/systemd/system/{export.name}.target"
        yield "[Unit]"
        yield f"Description={_escaped(export.summary)}"
        yield f"Wants={' '.join(f'{service.name}.service' for service in export.services)}"
        yield "\n[Install]"
        yield "WantedBy=multi-user.target\n"
    for index, service in enumerate(export.services):
        yield f"{chr(10) if index else ''}# /etc/systemd/system/{service.name}.service"
        yield "[Unit]"
        yield f"Description={_escaped(service.why)}"
        if service.server:
            yield "Wants=network-online.target"
            yield "After=network-online.target"
        if not single:
            yield f"PartOf={export.name}.target"
        yield "\n[Service]"
        yield f"ExecStart={' '.join(_unit_word(word) for word in service.command.command)}"
        for variable, value in service.command.env.items():
            yield f"Environment={_unit_word(f'{variable}={value}', command=False)}"
        if instance := service.instance:
            yield f"CPUAffinity={format_cpu_list(instance.cpus)}"
            if instance.memory != "local":
                yield f"NUMAPolicy={instance.memory}"
                yield f"NUMAMask={format_cpu_list(instance.nodes)}"
        yield "Restart=on-failure"
        yield from _unit_of_server(service) if service.server else ()
        if single:
            yield "\n[Install]"
            yield "WantedBy=multi-user.target"


def _unit_of_server(service: Service) -> Iterator[str]:
    """What systemd can know of a server of ours, and what that needs no access to."""
    server = service.server
    assert server is not None, "called for servers"
    yield "Type=notify"
    yield "NotifyAccess=main"
    yield "ExecReload=/bin/kill -HUP $MAINPID"
    yield f"WatchdogSec={WATCHDOG_SECONDS}"
    yield f"TimeoutStartSec={math.ceil(server.start_seconds) + MARGIN_SECONDS}"
    yield f"TimeoutStopSec={math.ceil(server.stop_seconds) + MARGIN_SECONDS}"
    yield "# SIGTERM to the server alone, which stops its workers after the drain."
    yield "KillMode=mixed"
    if server.user:
        yield f"User={_unit_word(server.user, command=False)}"
    else:
        yield "# Without User=, it runs as root without capabilities, so the model must belong to root or be public."
    yield f"CacheDirectory={service.name}"
    yield f"Environment=XDG_CACHE_HOME=/var/cache/{service.name}"
    yield from HARDENING


def _compose(export: Export) -> Iterator[str]:
    yield f"# {export.name}: {export.summary}"
    yield "# The image needs numactl; SYS_NICE lets it set the memory policy under Docker's default seccomp profile."
    yield "services:"
    for service in export.services:
        yield f"  # {service.why}"
        yield f"  {service.name}:"
        yield "    image: ${IMAGE:?set IMAGE to the image to run}"
        yield f"    cpuset: {json.dumps(format_cpu_list(service.cpus))}"
        yield f"    command: {_json(service.bound_command)}"
        if service.command.env:
            yield "    environment:"
        for variable, value in service.command.env.items():
            yield f"      {variable}: {_json(value)}"
        yield "    cap_add: [SYS_NICE]"
        yield "    restart: on-failure"
        yield from _compose_server(service.server) if service.server else ()
    if any(service.server for service in export.services):
        yield "volumes:"
        yield "  cache:"


def _compose_server(server: ServerFacts) -> Iterator[str]:
    port = server.port
    # The certificate is for the name under which clients know the server.
    unverified = ", context=ssl._create_unverified_context()" if server.tls else ""
    url = f"{'https' if server.tls else 'http'}://127.0.0.1:{port}/ready"
    ready = f"import ssl, urllib.request; urllib.request.urlopen('{url}', timeout=5{unverified})"
    yield f"    ports: [{json.dumps(f'{port}:{port}')}]"
    yield "    init: true"
    yield f"    stop_grace_period: {math.ceil(server.stop_seconds) + MARGIN_SECONDS}s"
    yield "    healthcheck:"
    yield f"      test: {_json(('CMD', 'python3', '-c', ready))}"
    yield "      interval: 10s"
    yield "      timeout: 10s"
    yield f"      start_period: {math.ceil(server.start_seconds) + MARGIN_SECONDS}s"
    yield '    volumes: ["cache:/root/.cache"]'


def _json(value: str | Sequence[str]) -> str:
    """As a value in a Compose file, where a dollar sign starts a variable."""
    return json.dumps(value.replace("$", "$$") if isinstance(value, str) else [one.replace("$", "$$") for one in value])


WRITERS: Mapping[ExportTarget, Callable[[Export], Iterator[str]]] = {
    "shell": _shell,
    "systemd": _systemd,
    "compose": _compose,
    "slurm": _slurm,
}


def _label(service: Service) -> str:
    return f"{service.instance.id}: {service.why}" if service.instance else service.why


def _env_words(env: Mapping[str, str]) -> list[str]:
    return ["env", *(f"{name}={value}" for name, value in env.items())] if env else []


def _mask(ids: Sequence[int]) -> str:
    return hex(sum(1 << one for one in ids))


def _escaped(text: str) -> str:
    return text.replace("%", "%%")


def _unit_word(word: str, *, command: bool = True) -> str:
    """A word in the syntax of ``systemd.syntax(7)``: specifiers escaped, in commands variables too, quoted if
    necessary."""
    text = _escaped(printable(word.replace("\\", "\\\\").replace('"', '\\"')))
    if command:
        text = text.replace("$", "$$")
    plain = text and not set(text) & set(" \t\"'\\;")
    return text if plain else f'"{text}"'
