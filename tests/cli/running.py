"""Runs the command line as a user does, without options from the environment of the tests."""

from __future__ import annotations

import os
import subprocess
import sys


def launch(*arguments: str, env: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    kept = "LAUNCH_REGISTRY"  # not an option; see tests/conftest.py
    own = {name: value for name, value in os.environ.items() if not name.startswith("LAUNCH_") or name == kept}
    return subprocess.run(
        [sys.executable, "-m", "launcher", *arguments],
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
        env={**own, "COLUMNS": "80", "TERM": "dumb", **(env or {})},
    )
