"""``launch doctor``: reads the facts of the machine, runs the checks and prints the findings."""

from __future__ import annotations

from launcher.options import DoctorOptions, FormatOptions


def doctor(options: DoctorOptions, output: FormatOptions) -> None:
    """Find performance problems of this machine, with the evidence and the command that fixes each."""
    import msgspec
    from rich.console import Console

    from launcher.core.diagnosis import diagnose
    from launcher.core.diagnosis.findings_report import findings_json, findings_text
    from launcher.host.machine.diagnosis_facts import read_facts

    facts = read_facts(options)
    findings = diagnose(facts)
    if output.json:
        print(msgspec.json.format(msgspec.json.encode(findings_json(findings)), indent=2).decode())
        return
    console = Console(highlight=False, soft_wrap=True)
    console.print(findings_text(facts.machine, findings, console.width))
