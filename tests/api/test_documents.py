"""The examples in docs/python.md run, and the keyword arguments match the options."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
EXAMPLES = re.findall(r"^```python\n(.*?)^```$", (ROOT / "docs" / "python.md").read_text(), re.DOTALL | re.MULTILINE)


@pytest.mark.slow
@pytest.mark.parametrize("example", EXAMPLES, ids=range(len(EXAMPLES)))
def test_the_examples_run_unchanged(example: str, tmp_path: Path) -> None:
    script = tmp_path / "example.py"
    script.write_text(example)
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, str(script)], capture_output=True, text=True, timeout=500, check=False, env=environment
    )
    assert done.returncode == 0, done.stderr
    for printed in re.findall(r"print\(.*\)  # (.*?)(?:\.\.\.)?$", example, re.MULTILINE):
        assert printed in done.stdout


def test_there_are_examples() -> None:
    assert len(EXAMPLES) >= 5


def test_the_keyword_arguments_are_made_from_the_options() -> None:
    made = subprocess.run(
        [sys.executable, "scripts/engine_keywords.py"],
        cwd=ROOT, capture_output=True, text=True, check=True, env={**os.environ, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert (ROOT / "launcher/api/keywords.py").read_text() == made.stdout, "run ./scripts/docs"
