"""``launch ps``."""

from __future__ import annotations

from launcher.options import FormatOptions


def ps(output: FormatOptions) -> None:
    """List the launchers that run on this machine, with the cores that they have claimed."""
    import os

    from launcher.core.report.claims_report import claims_json, claims_text
    from launcher.host.log import write_line
    from launcher.host.registry import Registry

    listing = Registry.of(os.environ).read()
    for problem in listing.problems:
        write_line(f"launch: warning: {problem}")
    if output.json:
        import json

        print(json.dumps(claims_json(listing.claims), indent=2))
        return
    print(claims_text(listing.claims), end="")
