"""``launch topology``."""

from __future__ import annotations

from launcher.options import ReportOptions, ServeOptions


def topology(options: ServeOptions, report: ReportOptions) -> None:
    """Show the machine and the plan: what serve would start, where, and why. Accepts the options of serve."""
    from launcher.prepare.print_report import show

    show(options, report)
