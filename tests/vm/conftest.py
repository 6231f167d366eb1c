"""Guests and reference vectors, created once for all tests."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.vm.guests import DRIVER, REPOSITORY, Guests, serve
from tests.vm.table import guest_table

TABLE = REPOSITORY / ".cache/vm/guests.md"


@pytest.fixture(scope="session")
def guests(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Guests]:
    """All guests, by the name of their shape. ``VM_KEEP=DIR`` keeps their output.

    At the end the table of those that booted is written to ``TABLE``, for the documentation.
    """
    kept = os.environ.get("VM_KEEP")
    found = Guests(Path(kept) if kept else tmp_path_factory.mktemp("guests"))
    yield found
    TABLE.parent.mkdir(parents=True, exist_ok=True)
    TABLE.write_text(guest_table(found.booted))


@pytest.fixture(scope="session")
def host_vectors(tmp_path_factory: pytest.TempPathFactory) -> list[list[float]]:
    """The vectors of ``TEXTS`` from a server on this machine, without a guest."""
    results = tmp_path_factory.mktemp("host")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    (results / "steps.json").write_text(json.dumps([serve("served", "--instances", "1", port=port)]))
    environment = {**os.environ, "VM_RESULTS": str(results)}
    command = [sys.executable, str(DRIVER)]
    done = subprocess.run(command, cwd=REPOSITORY, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    vectors: list[list[float]] = json.loads((results / "served.json").read_text())["alone"]
    return vectors
