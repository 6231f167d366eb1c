"""Makes the tables of ``docs/machines.md``: recorded machines as they are read now, and guests as they last ran.

``./scripts/docs`` runs it. What cannot be made here stays as it is in the document: recorded machines where these are
absent, guests that were not booted on this machine.
"""

from __future__ import annotations

import functools
import sys
from pathlib import Path

from launcher.core.machine.cpuset import format_cpu_list
from launcher.core.machine.topology import Machine
from launcher.core.planning.plan import InstancePlan, PlanRequest, make_plan
from launcher.core.report.text import shorten
from launcher.errors import MachineError
from launcher.host.machine.sysfs import read_machine
from tests.machines import recorded, recorded_names, truth

ROOT = Path(__file__).parents[1]
DOCUMENT = ROOT / "docs" / "machines.md"
# Written by the tests of the guests, in the same form as the table in the document.
GUESTS = ROOT / ".cache" / "vm" / "guests.md"

INSTANCES = 4
MOST_CPUS = 24  # characters of a cpu list; most are shorter, a few machines number their cores so that none is

HEAD = "| machine | cores found / true | plan for 4 instances |\n|---|---|---|\n"


@functools.cache
def recorded_row(name: str) -> str:
    """The line of one recorded machine. Skips the test, or raises, where the recorded machines are absent."""
    machine = read_machine(recorded(name))
    return f"| {name} | {len(machine.cores)} / {_true_cores(name)} | {_plan(machine)} |"


def _true_cores(name: str) -> int:
    """Cores with a cpu that may be used, as the recording's own ground truth has them."""
    known = truth(name)
    usable = set(known["cpus_allowed"]) - set(known["isolated"])
    return sum(bool(usable & set(core)) for core in known["kernel_cores"])


def _plan(machine: Machine) -> str:
    try:
        plan = make_plan(machine, PlanRequest(instances=INSTANCES))
    except MachineError as error:
        return f"refused: {error}"
    parts = [_instance(one) for one in plan.instances]
    for cpus, what in ((plan.reserved_cpus, "for the front"), (plan.unused_cpus, "unused")):
        if cpus:
            parts.append(f"{len(cpus)} {what}: {shorten(format_cpu_list(cpus), MOST_CPUS)}")
    return "; ".join(parts)


def _instance(one: InstancePlan) -> str:
    memory = f"{one.memory} {format_cpu_list(one.nodes)}" if one.nodes else one.memory
    return f"{one.threads}: {shorten(format_cpu_list(one.cpus), MOST_CPUS)} ({memory})"


def rows(table: str) -> list[str]:
    """The lines of a Markdown table, without its head."""
    return [line for line in table.splitlines() if line.startswith("| ")][1:]


def name_of(row: str) -> str:
    """The first cell of a line."""
    return row.split("|")[1].strip()


def section(document: str, name: str) -> str:
    """What the document has between the markers of that name."""
    begin, end = _markers(name)
    return document.partition(begin)[2].partition(end)[0]


def replaced(document: str, name: str, content: str) -> str:
    """The document with other content between the markers of that name."""
    begin, end = _markers(name)
    before, _, rest = document.partition(begin)
    return f"{before}{begin}\n\n{content}\n\n{end}{rest.partition(end)[2]}"


def _markers(name: str) -> tuple[str, str]:
    return f"<!-- {name}: made by scripts/docs -->", f"<!-- end of {name} -->"


def merged_guests(known: str, fresh: str) -> str:
    """The table ``known``, with all lines of the guests that ``fresh`` has taken from there.

    A guest has a line for each of its plans, named ``guest`` or ``guest, plan``.
    """
    booted = {name_of(row).partition(",")[0] for row in rows(fresh)}
    kept = [row for row in rows(known) if name_of(row).partition(",")[0] not in booted]
    head = (fresh if rows(fresh) else known).strip().splitlines()[:2]
    return "\n".join([*head, *sorted([*kept, *rows(fresh)])])


def made(document: str) -> str:
    """The document with every table that can be made here made anew."""
    names = recorded_names()
    if names:
        document = replaced(document, "recorded machines", HEAD + "\n".join(map(recorded_row, names)))
    if GUESTS.exists():
        known = section(document, "guests")
        document = replaced(document, "guests", merged_guests(known, GUESTS.read_text()))
    return document


if __name__ == "__main__":
    place = Path(sys.argv[1])
    place.write_text(made(DOCUMENT.read_text()))
