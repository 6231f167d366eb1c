"""The types of the diagnosis: evidence, verdict and finding, and the check that turns facts into a verdict.

Every check produces exactly one finding on every machine, even if nothing is wrong or the facts are unknown. Individual
checks do not belong here.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from launcher.core.diagnosis.facts import Facts, PerCpu, Reading
from launcher.core.machine.cpuset import format_cpu_list

Severity = Literal["problem", "advice", "unknown", "fine"]
SEVERITIES: tuple[Severity, ...] = ("problem", "advice", "unknown", "fine")

ABSENT = "not found"


@dataclass(frozen=True, slots=True)
class Evidence:
    """A file or command, with its content or output."""

    source: str
    found: str


RECORDED = Evidence("--sysroot", "a recorded machine")


@dataclass(frozen=True, slots=True)
class Verdict:
    """The result of a check. ``fix`` holds shell commands, and comments (``# …``) for steps that are not commands."""

    severity: Severity
    title: str
    evidence: tuple[Evidence, ...]
    fix: tuple[str, ...] = ()
    needs_root: bool = False


@dataclass(frozen=True, slots=True)
class Check:
    """One check; ``why`` it matters is the same on every machine."""

    id: str
    why: str
    run: Callable[[Facts], Verdict]


@dataclass(frozen=True, slots=True)
class Finding:
    """One finding of the report. ``fix`` is None if nothing can be done; ``needs_root`` refers to ``fix``."""

    id: str
    severity: Severity
    title: str
    evidence: tuple[Evidence, ...]
    why: str
    fix: tuple[str, ...] | None
    needs_root: bool

    def to_json(self) -> dict[str, Any]:
        """One entry of ``findings`` in the document of schema 1."""
        return {
            "id": self.id,
            "severity": self.severity,
            "title": self.title,
            "evidence": [{"source": one.source, "found": one.found} for one in self.evidence],
            "why": self.why,
            "fix": None if self.fix is None else list(self.fix),
            "needs_root": self.needs_root,
        }


def fine(title: str, *evidence: Evidence) -> Verdict:
    """Nothing needs to be done."""
    return Verdict("fine", title, evidence)


def unknown(title: str, *evidence: Evidence, fix: tuple[str, ...] = ()) -> Verdict:
    """The facts are insufficient; the evidence lists what was tried."""
    return Verdict("unknown", title, evidence, fix)


def advice(title: str, *evidence: Evidence, fix: tuple[str, ...] = (), root: bool = False) -> Verdict:
    """Performance may improve."""
    return Verdict("advice", title, evidence, fix, root)


def problem(title: str, *evidence: Evidence, fix: tuple[str, ...] = (), root: bool = False) -> Verdict:
    """Performance is reduced."""
    return Verdict("problem", title, evidence, fix, root)


def only_live(what: str) -> Verdict:
    """For a recorded machine: ``what`` (a noun phrase) is known only on the machine itself."""
    return unknown(f"{what} can be checked only on the machine itself.", RECORDED)


def evidence_of(*readings: Reading | PerCpu) -> tuple[Evidence, ...]:
    """The readings as evidence."""
    return tuple(
        Evidence(reading.source, _value(reading) if isinstance(reading, Reading) else _spread(reading))
        for reading in readings
    )


def _value(reading: Reading) -> str:
    return ABSENT if reading.value is None else reading.value or "empty"


def _spread(reading: PerCpu) -> str:
    if not reading.values:
        return ABSENT
    if len(reading.values) == 1:
        return reading.values[0][0]
    return ", ".join(f"{value} on {cpus_text(cpus)}" for value, cpus in reading.values)


def cpus_text(cpus: tuple[int, ...] | list[int]) -> str:
    """``cpu 3`` or ``cpus 0-3``."""
    return f"cpu{'' if len(cpus) == 1 else 's'} {format_cpu_list(cpus)}"


def count(number: int, one: str, many: str | None = None) -> str:
    """``1 core``, ``2 cores``."""
    return f"{number} {one if number == 1 else many or one + 's'}"


def nodes_text(nodes: list[int]) -> str:
    """``node 3`` or ``nodes 0-3``."""
    return f"node{'' if len(nodes) == 1 else 's'} {format_cpu_list(nodes)}"
