"""``launch serve``, the default command."""

from __future__ import annotations

from launcher.errors import UsageError
from launcher.options import DryRunOptions, ReportOptions, ServeOptions
from launcher.options.sources import ConfigurationSources


def serve(options: ServeOptions, dry: DryRunOptions, configuration: ConfigurationSources) -> None:
    """Serve a model from instances bound to their own cores (the default command)."""
    if dry.dry_run:
        from launcher.prepare.print_report import show

        show(options, ReportOptions(json=dry.json))
        return
    if dry.json:
        raise UsageError("--json applies to reports; use it with --dry-run, or with launch topology")
    from launcher.serve.server import run

    run(options, configuration)
