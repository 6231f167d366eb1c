"""``launch run``."""

from __future__ import annotations

from launcher.errors import UsageError
from launcher.options import DryRunOptions, RunOptions


def run(options: RunOptions, dry: DryRunOptions) -> None:
    """Start copies of any program, each on its own cores."""
    from launcher.run import runner

    if dry.dry_run:
        runner.show(options, as_json=dry.json)
        return
    if dry.json:
        raise UsageError("--json applies to reports; use it with --dry-run")
    runner.run(options)
