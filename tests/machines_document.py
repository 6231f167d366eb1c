"""Generates the tables of ``docs/machines.md``: known machines, recorded machines, and guests as they last ran.

``./scripts/docs`` runs it. Tables that cannot be generated here stay unchanged: recorded machines where the recordings
are absent, and guests that were not booted on this machine.
"""

from __future__ import annotations

import functools
import sys
from pathlib import Path

from launcher.core.machine.catalogue import CATALOGUE, KnownMachine, machine_of
from launcher.core.machine.cpuset import format_cpu_list
from launcher.core.machine.topology import Machine
from launcher.core.planning.plan import InstancePlan, PlanRequest, make_plan
from launcher.core.report.text_format import shorten
from launcher.errors import MachineError
from launcher.host.machine.sysfs import read_machine
from tests.machines import recorded, recorded_names, truth

ROOT = Path(__file__).parents[1]
DOCUMENT = ROOT / "docs" / "machines.md"
# Written by the tests of the guests, in the format of the table in the document.
GUESTS = ROOT / ".cache" / "vm" / "guests.md"

INSTANCES = 4
MOST_CPUS = 24  # characters of a cpu list; longer lists are shortened

KNOWN_HEAD = "| name | machine | nodes | L3 groups | plan for 4 instances |\n|---|---|---|---|---|\n"
HEAD = "| machine | cores found / true | plan for 4 instances |\n|---|---|---|\n"


def known_row(known: KnownMachine) -> str:
    """The row of one known machine."""
    machine = machine_of(known)
    groups = len({core.l3 for core in machine.cores} - {None})
    return f"| {known.name} | {known.summary} | {len(machine.nodes)} | {groups or '-'} | {_plan(machine)} |"


def known_table() -> str:
    """The table of all known machines."""
    return KNOWN_HEAD + "\n".join(map(known_row, CATALOGUE))


@functools.cache
def recorded_row(name: str) -> str:
    """The row of one recorded machine. Skips the test, or raises, if the recorded machines are absent."""
    machine = read_machine(recorded(name))
    return f"| {name} | {len(machine.cores)} / {_true_cores(name)} | {_plan(machine)} |"


def _true_cores(name: str) -> int:
    """Usable cores according to the ground truth of the recording."""
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
    """The rows of a Markdown table, without its head."""
    return [line for line in table.splitlines() if line.startswith("| ")][1:]


def name_of(row: str) -> str:
    """The first cell of a row."""
    return row.split("|")[1].strip()


def section(document: str, name: str) -> str:
    """The content of the document between the markers of this name."""
    begin, end = _markers(name)
    return document.partition(begin)[2].partition(end)[0]


def replaced(document: str, name: str, content: str) -> str:
    """The document with new content between the markers of this name."""
    begin, end = _markers(name)
    before, _, rest = document.partition(begin)
    return f"{before}{begin}\n\n{content}\n\n{end}{rest.partition(end)[2]}"


def _markers(name: str) -> tuple[str, str]:
    return f"<!-- {name}: made by scripts/docs -->", f"<!-- end of {name} -->"


def merged_guests(known: str, fresh: str) -> str:
    """The table ``known``, with the rows of all guests in ``fresh`` replaced by those of ``fresh``.

    A guest has a row for each of its plans, named ``guest`` or ``guest, plan``.
    """
    booted = {name_of(row).partition(",")[0] for row in rows(fresh)}
    kept = [row for row in rows(known) if name_of(row).partition(",")[0] not in booted]
    head = (fresh if rows(fresh) else known).strip().splitlines()[:2]
    return "\n".join([*head, *sorted([*kept, *rows(fresh)])])


def made(document: str) -> str:
    """The document with every table that can be generated here."""
    document = replaced(document, "known machines", known_table())
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
