"""Prepares the process of ``launch serve`` before the event loop runs: affinity and the descriptor limit.

Separate from the engine, which may run in the process of a user (Python API) and must not change any of this.
"""

from __future__ import annotations

import contextlib
import logging
import os
import resource

from launcher.core.machine.cpuset import format_cpu_list
from launcher.core.planning.plan import front_cpus
from launcher.errors import MachineError
from launcher.front.http.connection_limit import maximum_connections
from launcher.pinning import allowed_cpus, bind_process
from launcher.prepare.prepared_instances import Prepared

log = logging.getLogger("launcher.serve")

UNLIMITED_DESCRIPTORS = 1 << 20
USED_DESCRIPTORS = 32  # without /proc, more than a server has open when it starts


def raise_descriptor_limit() -> None:
    """Raise the soft limit on descriptors, 1,024 on most systems, to the hard limit: each connection needs one."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        with contextlib.suppress(OSError, ValueError):  # refused in some sandboxes; fewer connections are accepted then
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def connections_of_process(asked: int | None, instances: int) -> int:
    """The number of connections that this process may have, at most what was ``asked``. Raises ``MachineError``."""
    limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    limit = UNLIMITED_DESCRIPTORS if limit == resource.RLIM_INFINITY else limit
    try:
        used = len(os.listdir("/proc/self/fd"))  # noqa: PTH208  # names are enough
    except OSError:
        used = USED_DESCRIPTORS
    found = maximum_connections(asked, limit, used, instances)
    if asked is not None and found < asked:
        message = "--max-connections %d: only %d are accepted, because at most %d files may be open (ulimit -n)"
        log.warning(message, asked, found, limit, extra={"event": "warning"})
    return found


class FrontBinding:
    """Where this process is bound. ``mask`` is its affinity without that, ``bound`` the one that it has given itself;
    both are None if it has not bound itself."""

    def __init__(self, mask: tuple[int, ...] | None) -> None:
        self.mask = mask
        self.bound = None if mask is None else allowed_cpus()

    def allow(self, cpus: tuple[int, ...]) -> None:
        """The affinity would be ``cpus`` now, because the machine has changed."""
        if self.mask is not None:
            self.mask = cpus

    def follow(self, prepared: Prepared) -> None:
        """Bind this process to the front's cpus in another plan. A refusal is logged."""
        if self.mask is not None:
            try:
                bind_process(self.mask)
            except MachineError as error:
                log.warning("The front keeps its cpus: %s", error, extra={"event": "warning"})
                return
        self.mask = bind_front(prepared, strict=False)
        self.bound = None if self.mask is None else allowed_cpus()


def bind_front(prepared: Prepared, *, strict: bool) -> tuple[int, ...] | None:
    """Bind this process to the front's cpus in the plan. Returns the previous mask, or None if it is unchanged.

    With ``strict`` a refusal raises ``MachineError``, otherwise it is logged.
    """
    cpus = front_cpus(prepared.machine, prepared.plan)
    if not cpus:
        return None
    try:
        before = bind_process(cpus)
    except MachineError as error:
        if strict:
            raise
        log.warning("The front is not bound: %s", error, extra={"event": "warning"})
        return None
    log.info("the front is bound to cpus %s", format_cpu_list(cpus), extra={"event": "front", "cpus": list(cpus)})
    return before
