"""Renders findings as text and as the JSON document of schema 1. Nothing is printed or decided here."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from rich.text import Text

from launcher.core.diagnosis.finding import RECORDED, SEVERITIES, Evidence, Finding, Severity, count
from launcher.core.machine.topology import Machine
from launcher.core.report.text_format import without_controls, wrap, wrap_lines

SCHEMA = 1
WIDEST = 110  # columns; longer lines are hard to read
INDENT, LABEL = "    ", 7

HEADS: dict[Severity, str] = {
    "problem": "Problems: reduced performance",
    "advice": "Advice: possible improvements",
    "unknown": "Unknown: could not be checked",
    "fine": "Fine",
}
STYLES: dict[Severity, str] = {
    "problem": "bold red",
    "advice": "bold yellow",
    "unknown": "bold cyan",
    "fine": "green",
}


def findings_json(findings: Sequence[Finding]) -> dict[str, Any]:
    """The document that ``launch doctor --json`` prints."""
    return {"schema": SCHEMA, "findings": [finding.to_json() for finding in findings]}


def findings_text(machine: Machine, findings: Sequence[Finding], width: int) -> Text:
    """All findings, grouped by severity, the most severe first, in lines of at most ``width`` columns."""
    width = max(40, min(width, WIDEST))
    lines = [*_head(machine, findings, width)]
    for severity in SEVERITIES:
        group = [finding for finding in findings if finding.severity == severity]
        if group:
            lines += [Text(""), Text(HEADS[severity], STYLES[severity]), *_group(severity, group, width)]
    return Text("\n").join(map(without_controls, lines))


def _head(machine: Machine, findings: Sequence[Finding], width: int) -> Iterator[Text]:
    nodes = len({core.node for core in machine.cores} - {None})
    place = f" in {count(nodes, 'node')}" if nodes else ""
    name = f"{machine.model or 'Unknown processor'}: {count(len(machine.cores), 'usable core')}{place}"
    yield from wrap(name, width, style="bold")
    numbers = {severity: sum(one.severity == severity for one in findings) for severity in SEVERITIES}
    words = {"problem": count(numbers["problem"], "problem")}
    words |= {severity: f"{numbers[severity]} {severity}" for severity in SEVERITIES[1:]}
    yield from wrap(f"{count(len(findings), 'check')}: {', '.join(words.values())}", width)


def _group(severity: Severity, group: Sequence[Finding], width: int) -> Iterator[Text]:
    if severity == "fine":
        yield from _table(group, width)
    elif severity == "unknown":
        yield from _unknowns(group, width)
    else:
        for index, finding in enumerate(group):
            if index:
                yield Text("")
            yield from _details(finding, width)


def _details(finding: Finding, width: int) -> Iterator[Text]:
    yield from _title(finding, width)
    yield from _labelled("found", _evidence_lines(finding.evidence, width))
    yield from _labelled("why", wrap_lines(finding.why, width - len(INDENT) - LABEL))
    yield from _fix_lines(finding, width)


def _title(finding: Finding, width: int) -> Iterator[Text]:
    lines = list(wrap(finding.title, width, "  ", STYLES[finding.severity]))
    name = f"[{finding.id}]"
    if len(lines[-1]) + len(name) + 2 <= width:
        lines[-1].append(f"  {name}", "dim")
    else:
        lines.append(Text(f"  {name}", "dim"))
    yield from lines


def _evidence_lines(evidence: Iterable[Evidence], width: int) -> Iterator[str]:
    for one in evidence:
        yield from wrap_lines(f"{one.source}: {one.found}", width - len(INDENT) - LABEL, "  ", first="")


def _fix_lines(finding: Finding, width: int) -> Iterator[Text]:
    commands = finding.fix or ()
    if finding.needs_root and not all(command.startswith("#") for command in commands):
        commands = ("# as root:", *commands)
    room = width - len(INDENT) - LABEL
    yield from _labelled("fix", (line for command in commands for line in _shell(command, room)), "cyan")


def _labelled(label: str, lines: Iterable[str], style: str = "") -> Iterator[Text]:
    for index, line in enumerate(lines):
        head = label if index == 0 else ""
        yield Text(INDENT).append(f"{head:<{LABEL}}", "dim").append(line, style)


def _shell(command: str, room: int) -> list[str]:
    """A shell command, wrapped with line continuations."""
    if command.startswith("#"):
        return wrap_lines(command, room, "#   ", first="")
    lines = wrap_lines(command, room - 2, "  ", first="")
    return [f"{line} \\" for line in lines[:-1]] + lines[-1:]


def _unknowns(group: Sequence[Finding], width: int) -> Iterator[Text]:
    """Each finding with what was tried; those that need the machine itself on one line."""
    recorded = [finding for finding in group if finding.evidence == (RECORDED,)]
    if recorded:
        names = ", ".join(finding.id for finding in recorded)
        yield from wrap(f"Can be checked only on the machine itself: {names}.", width, "  ", STYLES["unknown"])
    for finding in group:
        if finding.evidence != (RECORDED,):
            yield from _title(finding, width)
            yield from _labelled("tried", _evidence_lines(finding.evidence, width))
            yield from _fix_lines(finding, width)


def _table(group: Sequence[Finding], width: int) -> Iterator[Text]:
    column = max(len(finding.id) for finding in group) + 2
    for finding in group:
        for index, line in enumerate(wrap_lines(finding.title, width - column - 2)):
            yield Text("  ").append(f"{finding.id if index == 0 else '':<{column}}", STYLES["fine"]).append(line)
