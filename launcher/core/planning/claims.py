"""Claims: cores that other launchers on this machine use, and what is left to plan with.

Pure decisions; ``host.registry`` reads and writes the claims. A claim concerns whole cores, because an instance on the
second hardware thread of a core would slow down the instance on the first.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from launcher.core.machine.cpuset import format_cpu_list
from launcher.core.machine.topology import Machine
from launcher.core.planning.plan import Plan
from launcher.errors import MachineError, UsageError

Kind = Literal["serve", "run", "bench", "engine"]

# Where claims are stored. Only root can create the first; the others can be used by all users on most systems.
REGISTRY_FOLDERS = ("/run/launch", "/run/lock/launch", "/tmp/launch-registry")


@dataclass(frozen=True, slots=True)
class Claim:
    """The cores of one launcher. ``cpus`` are all allowed cpus of its cores; ``since`` is in seconds since 1970.

    ``address`` is None for a launcher without HTTP, ``model`` for one without a model.
    """

    name: str
    pid: int
    user: str
    kind: Kind
    address: str | None
    model: str | None
    cpus: tuple[int, ...]
    since: float

    @property
    def title(self) -> str:
        """The launcher in a message: ``'demo-8000' (pid 12, user ann, http://127.0.0.1:8000, cpus 0-3)``."""
        facts = [f"pid {self.pid}", f"user {self.user}", self.address, f"cpus {format_cpu_list(self.cpus)}"]
        return f"{self.name!r} ({', '.join(fact for fact in facts if fact)})"


def claimed_cpus(machine: Machine, plan: Plan) -> tuple[int, ...]:
    """The cpus that a launcher with this plan claims: those of the cores of its instances and of its front."""
    used = {core for instance in plan.instances for core in instance.cores}
    reserved = set(plan.reserved_cpus)
    return tuple(
        sorted(cpu for core in machine.cores if core.id in used or core.cpus[0] in reserved for cpu in core.cpus)
    )


def overlapping(claims: Iterable[Claim], cpus: Iterable[int]) -> tuple[Claim, ...]:
    """The claims on any of these cpus."""
    wanted = set(cpus)
    return tuple(claim for claim in claims if wanted.intersection(claim.cpus))


def without_claimed(machine: Machine, claims: Sequence[Claim]) -> Machine:
    """The machine with the cores that nobody has claimed, and a warning about the others.

    Raises ``MachineError``, which names the other launchers, if no core is left.
    """
    concerned = overlapping(claims, (cpu for core in machine.cores for cpu in core.cpus))
    if not concerned:
        return machine
    taken = {cpu for claim in concerned for cpu in claim.cpus}
    free = tuple(core for core in machine.cores if not taken.intersection(core.cpus))
    count = len(machine.cores)
    if not free:
        raise MachineError(f"no core of {count} is free: all are {_claimed_by(concerned)}; {_remedy()}")
    warning = f"The plan is for {len(free)} of {count} usable cores, because others are {_claimed_by(concerned)}."
    return replace(machine, cores=free, warnings=(*machine.warnings, warning))


def refused(error: MachineError, machine: Machine, claims: Sequence[Claim]) -> MachineError:
    """The error of a plan that does not fit the cores that are free: the same, with the claims that could be why."""
    concerned = overlapping(claims, (cpu for core in machine.cores for cpu in core.cpus))
    if not concerned:
        return error
    return MachineError(f"{error}; not counted are the cores {_claimed_by(concerned)}; {_remedy()}")


def _claimed_by(claims: Sequence[Claim]) -> str:
    return f"claimed by {' and '.join(claim.title for claim in claims)}"


def _remedy() -> str:
    return "use `launch stop NAME`, or share the cores with --shared-cores"


def chosen(claims: Sequence[Claim], words: Sequence[str]) -> tuple[Claim, ...]:
    """The launchers that these names or process ids denote. Raises ``UsageError`` if one denotes none, or several."""
    found: dict[int, Claim] = {}
    for word in words:
        matching = [claim for claim in claims if word in (claim.name, str(claim.pid))]
        if len({claim.pid for claim in matching}) > 1:
            pids = ", ".join(str(claim.pid) for claim in matching)
            raise UsageError(f"{word!r} is the name of several launchers; use a process ID: {pids}")
        if not matching:
            running = ", ".join(claim.name for claim in claims) or "none"
            raise UsageError(f"no launcher {word!r} is running on this machine; running: {running}")
        found.update((claim.pid, claim) for claim in matching)
    return tuple(found.values())
