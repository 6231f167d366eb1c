"""``launch doctor``: reads the facts, has them judged, prints the findings.

Separate from ``prepare``, which reads what a server needs; a diagnosis looks at much that no plan depends on.
"""

from __future__ import annotations

from pathlib import Path

import msgspec
from rich.console import Console

from launcher.core.diagnosis import diagnose
from launcher.core.diagnosis.findings_report import findings_json, findings_text
from launcher.host.machine.doctor import read_facts


def show(sysroot: Path, *, as_json: bool) -> None:
    """Print the performance problems of the machine. Raises ``LauncherError`` when the machine cannot be read."""
    facts = read_facts(sysroot)
    findings = diagnose(facts)
    if as_json:
        print(msgspec.json.format(msgspec.json.encode(findings_json(findings)), indent=2).decode())
        return
    console = Console(highlight=False, soft_wrap=True)
    console.print(findings_text(facts.machine, findings, console.width))
