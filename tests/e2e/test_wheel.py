"""The wheel is complete, and an installation from it works without the repository.

The environment is a new one with the wheel really installed. Only its dependencies come from the environment of the
tests, since installing torch again would take minutes: a .pth file adds the folders to the path. An editable install of
the launcher is not found that way, because .pth files in such folders are not read.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("wheel")]

ROOT = Path(__file__).parents[2]
SOURCES = ("pyproject.toml", "README.md", "LICENSE")
SETUPTOOLS = 77  # build-system.requires in pyproject.toml


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built from a copy, so that neither an old build/ nor egg-info of the repository can add to it."""
    try:
        found = importlib.metadata.version("setuptools")
    except importlib.metadata.PackageNotFoundError:
        found = "0"
    if int(found.partition(".")[0]) < SETUPTOOLS:
        pytest.skip(f"building needs setuptools >= {SETUPTOOLS} in this environment, found {found}")
    copy = tmp_path_factory.mktemp("source")
    shutil.copytree(ROOT / "launcher", copy / "launcher", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copytree(ROOT / "tests" / "core", copy / "tests", ignore=shutil.ignore_patterns("__pycache__"))
    for name in SOURCES:
        shutil.copy(ROOT / name, copy)
    folder = tmp_path_factory.mktemp("dist")
    build = ["-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "--wheel-dir", folder, copy]
    subprocess.run([sys.executable, *build], check=True, timeout=300)
    (built,) = folder.glob("*.whl")
    return built


@dataclass(frozen=True)
class Installed:
    """An environment with the wheel, and a folder outside the repository to run it in."""

    bin: Path
    work: Path

    @property
    def env(self) -> dict[str, str]:
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "VIRTUAL_ENV"))}
        return {**kept, "XDG_CACHE_HOME": str(self.work / "cache")}

    def run(self, *command: str) -> str:
        program = [self.bin / command[0], *command[1:]]
        done = subprocess.run(
            program, cwd=self.work, env=self.env, check=False, capture_output=True, text=True, timeout=300
        )
        assert done.returncode == 0, done.stderr
        return done.stdout


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Installed:
    venv = tmp_path_factory.mktemp("venv")
    subprocess.run([sys.executable, "-m", "venv", venv], check=True, timeout=300)
    (site,) = (venv / "lib").glob("python*/site-packages")
    here = [path for path in sys.path if path.endswith(("site-packages", "dist-packages"))]
    (site / "dependencies.pth").write_text("".join(f"{path}\n" for path in here))
    install = ["install", "--quiet", "--no-deps", "--no-index", str(wheel)]
    subprocess.run([venv / "bin/python", "-m", "pip", *install], check=True, timeout=300)
    return Installed(venv / "bin", tmp_path_factory.mktemp("elsewhere"))


def test_the_wheel_has_every_file_of_the_package_and_nothing_else(wheel: Path) -> None:
    sources = {
        str(path.relative_to(ROOT))
        for path in (ROOT / "launcher").rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    names = set(zipfile.ZipFile(wheel).namelist())
    assert {name for name in names if not re.match(r"[^/]+\.dist-info/", name)} == sources
    assert "launcher/py.typed" in names


def test_the_metadata_has_version_license_and_readme(wheel: Path) -> None:
    version = re.search(r'^version = "(.+)"$', (ROOT / "pyproject.toml").read_text(), re.MULTILINE)
    assert version is not None
    with zipfile.ZipFile(wheel) as file:
        folder = f"launcher-{version[1]}.dist-info"
        metadata = file.read(f"{folder}/METADATA").decode()
        assert f"{folder}/licenses/LICENSE" in file.namelist()
    assert f"\nVersion: {version[1]}\n" in metadata
    assert "\nRequires-Python: >=3.10\n" in metadata
    assert "\nLicense-Expression: Apache-2.0\n" in metadata
    assert (ROOT / "README.md").read_text().strip() in metadata


def test_the_installed_package_is_the_one_that_runs(installed: Installed) -> None:
    where = installed.run("python", "-c", "import launcher; print(launcher.__file__)")
    assert Path(where.strip()).is_relative_to(installed.bin.parent)
    version = re.search(r'^version = "(.+)"$', (ROOT / "pyproject.toml").read_text(), re.MULTILINE)
    assert version is not None
    assert installed.run("launch", "--version").strip() == f"launch {version[1]}"


def test_help_names_the_commands(installed: Installed) -> None:
    shown = installed.run("launch", "--help")
    for command in ("serve", "topology", "run", "doctor", "bench"):
        assert command in shown


def test_topology_plans_for_this_machine(installed: Installed) -> None:
    document = json.loads(installed.run("launch", "topology", "--json"))
    commands = [instance["command"] for instance in document["plan"]["instances"]]
    assert commands
    assert all(str(installed.bin) in " ".join(command) for command in commands)


def test_serve_answers_requests_and_shuts_down(installed: Installed) -> None:
    with serving(installed, "--instances", "1") as (process, address):
        body = {"model": "demo", "input": ["A bird in the hand", "is worth two in the bush"]}
        reply = httpx.post(f"{address}/v1/embeddings", json=body, timeout=300)
        assert reply.status_code == 200, reply.text
        assert [len(item["embedding"]) for item in reply.json()["data"]] == [384, 384]
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0


def test_the_python_api_embeds(installed: Installed) -> None:
    script = installed.work / "embed.py"
    script.write_text(
        "from launcher import Engine\n"
        "with Engine('demo', instances=1) as engine:\n"
        "    print(engine.embed(['A bird in the hand', 'is worth two in the bush']).shape)\n"
    )
    assert installed.run("python", str(script)).strip() == "(2, 384)"


@contextlib.contextmanager
def serving(installed: Installed, *options: str) -> Iterator[tuple[subprocess.Popen[bytes], str]]:
    """A ready server of the installed launcher, and its address."""
    log = installed.work / "serve.log"
    command = [installed.bin / "launch", "serve", "--port", "0", "--log-json", *options]
    with log.open("wb") as stderr:
        process = subprocess.Popen(command, cwd=installed.work, env=installed.env, stderr=stderr)
    try:
        records = wait_for_event(process, log, "serving")
        (address,) = (record["address"] for record in records if record.get("event") == "starting")
        yield process, address
    finally:
        if process.poll() is None:
            process.terminate()
            process.wait(60)


def wait_for_event(process: subprocess.Popen[bytes], log: Path, event: str) -> list[dict[str, str]]:
    """Wait for a log record of this event; returns all records."""
    deadline = time.monotonic() + 300
    while time.monotonic() < deadline and process.poll() is None:
        lines = log.read_text().splitlines(keepends=True)
        records: list[dict[str, str]] = [json.loads(line) for line in lines if line.endswith("\n")]
        if any(record.get("event") == event for record in records):
            return records
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(0.1)
    raise AssertionError(f"no {event!r} in the log: {log.read_text()}")
