"""Claims the cores of a plan, so that launchers on the same machine use different ones.

``host.registry`` stores claims, ``core.planning.claims`` decides which cores are free. Planning takes long (it may
download a model), so the registry is not locked meanwhile: the plan is made for the cores that are free, and made again
if another launcher has claimed one of them by then.
"""

from __future__ import annotations

import logging
import os
import re
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from launcher.core.planning.claims import Claim, Kind, claimed_cpus, overlapping
from launcher.errors import MachineError, UsageError
from launcher.host.registry import Held, Registry, user_name
from launcher.options import MachineOptions
from launcher.prepare.machine import is_this_machine
from launcher.prepare.prepared_instances import Prepared

log = logging.getLogger("launcher.registry")

# Each attempt fails only if another launcher has started during it.
ATTEMPTS = 5

Prepare = Callable[[Sequence[Claim]], Prepared]
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")


@dataclass(frozen=True, slots=True)
class Holder:
    """What others see of a launcher, besides its process and its cores."""

    kind: Kind
    default_name: str
    address: str | None = None
    model: str | None = None


def prepare_and_claim(
    options: MachineOptions, holder: Holder, prepare: Prepare, held: Held | None = None
) -> tuple[Prepared, Held]:
    """A plan for cores that no other launcher has claimed, which are then claimed until the result is released.

    ``prepare`` makes the plan, given the claims of others. ``held`` is the claim of a previous plan of the same
    launcher: its cores are free for the new plan, and it stays until the caller releases it. Raises any
    ``LauncherError``.
    """
    name = _name(options.name) if options.name else _default_name(holder.default_name)
    since = held.claim.since if held is not None and held.claim is not None else time.time()
    registry = Registry.of(os.environ)
    for problem in registry.read().problems:
        log.warning("%s", problem, extra={"event": "warning"})
    for _ in range(ATTEMPTS):
        prepared = prepare(() if options.shared_cores else registry.others(held))
        cpus = claimed_cpus(prepared.machine, prepared.plan)
        with registry.locked() as folder:
            if options.shared_cores or not overlapping(registry.others(held), cpus):
                claim = Claim(
                    name=name,
                    pid=os.getpid(),
                    user=user_name(os.geteuid()),
                    kind=holder.kind,
                    address=holder.address,
                    model=holder.model,
                    cpus=cpus,
                    since=since,
                )
                return prepared, registry.write(folder, claim)
    raise MachineError(f"other launchers claimed the planned cores {ATTEMPTS} times during the start; try again")


def prepare_report(options: MachineOptions, prepare: Prepare) -> Prepared:
    """The plan that would be started now. If a start would be refused because of claims, the plan of the whole machine,
    with that as a warning.
    """
    if options.shared_cores or not is_this_machine(options):
        return prepare(())
    registry = Registry.of(os.environ)
    claims, problems = registry.others(), registry.read().problems
    try:
        prepared = prepare(claims)
    except MachineError as error:
        if not claims:
            raise
        prepared = prepare(())  # raises the same error if the claims are not the reason
        problems = (*problems, f"A start would be refused now: {error}.")
    return replace(prepared, warnings=(*prepared.warnings, *problems)) if problems else prepared


def _name(name: str) -> str:
    if not _NAME.fullmatch(name):
        raise UsageError(
            f"--name {name!r}: must begin with a letter or a digit and have at most 100 letters, digits, '.', '_' or "
            "'-'"
        )
    return name


def _default_name(text: str) -> str:
    return re.sub(r"[^A-Za-z0-9._-]+", "-", text).strip("-._")[:100] or "launch"
