"""``launch config``."""

from __future__ import annotations

from launcher.options import FormatOptions, ServeOptions
from launcher.options.sources import Resolved


def config(options: ServeOptions, output: FormatOptions, resolved: Resolved) -> None:
    """Print every option of serve with its value and source, as a file for --config. Starts nothing."""
    from launcher.cli.config_file import config_entries, config_text

    if output.json:
        import json

        print(json.dumps(list(config_entries(resolved)), indent=2))
        return
    print(config_text(resolved))
