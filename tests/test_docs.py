"""Documents that are made from the code are what the code says now."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("docs")
    subprocess.run([ROOT / "scripts" / "docs", folder], check=True, timeout=60)
    return folder


@pytest.mark.parametrize("name", ["cli.md", "state-machines.md"])
def test_generated_documents_are_up_to_date(made: Path, name: str) -> None:
    wanted = (made / name).read_text()
    assert len(wanted) > 500
    assert (ROOT / "docs" / name).read_text() == wanted, "run ./scripts/docs"
