"""The documents agree with the code, with the files they name, and with each other."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
PAGES = sorted([*ROOT.glob("*.md"), *DOCS.rglob("*.md")])
GENERATED_ROWS = ("behaviour.md", "machines.md", "models.md")
PACKAGE_FOLDERS = (
    "api",
    "bench",
    "cli",
    "core",
    "engine",
    "front",
    "host",
    "options",
    "prepare",
    "run",
    "serve",
    "worker",
)
PICTURE = "images/c5.metal.svg"
GENERATED = ("behaviour.md", "cli.md", "models.md", "state-machines.md", PICTURE)
TERMINAL = {"COLUMNS": "118", "NO_COLOR": "1"}

page = pytest.mark.parametrize("page", PAGES, ids=lambda path: str(path.relative_to(ROOT)))


def launch(*arguments: str | Path) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "launcher", *arguments],
        cwd=ROOT,
        env={**os.environ, **TERMINAL},
        check=False,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def fences(text: str, *languages: str) -> Iterator[str]:
    """The contents of the fenced code blocks in these languages."""
    for found in re.finditer(r"^ *```(\w*)\n(.*?)^ *```$", text, re.MULTILINE | re.DOTALL):
        if found[1] in languages:
            yield found[2]


def without_code(text: str) -> str:
    return re.sub(r"^ *```.*?^ *```$", "", text, flags=re.MULTILINE | re.DOTALL)


def anchors(path: Path) -> set[str]:
    """The anchors of a page's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.+)$", without_code(path.read_text()), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


# --- generated documents


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("docs")
    subprocess.run([ROOT / "scripts" / "docs", folder], check=True, timeout=60)
    return folder


@pytest.mark.parametrize("name", GENERATED)
def test_generated_documents_are_up_to_date(made: Path, name: str) -> None:
    wanted = (made / name).read_text()
    assert len(wanted) > 500
    assert (DOCS / name).read_text() == wanted, "run ./scripts/docs"


def test_the_readme_names_the_command_that_draws_its_picture() -> None:
    readme = " ".join((ROOT / "README.md").read_text().split())
    command = re.search(r"drawn by `launch ([^`]+ --svg )docs/(\S+)`", readme)
    assert command is not None
    assert command[2] == PICTURE
    assert f'launcher {command[1]}"$out/{PICTURE}"' in (ROOT / "scripts" / "docs").read_text()


# --- commands and their output


def sessions() -> list[tuple[list[str], list[str]]]:
    """(arguments of launch, lines of output) of the sessions in the README."""
    found = []
    for block in fences((ROOT / "README.md").read_text(), "console"):
        command, *output = block.splitlines()
        assert command.startswith("$ launch ")
        found.append((shlex.split(command.removeprefix("$ launch ")), [line for line in output if line != "…"]))
    return found


def test_the_readme_has_sessions() -> None:
    assert len(sessions()) >= 2


@pytest.mark.parametrize("session", sessions(), ids=lambda session: " ".join(session[0]))
def test_sessions_of_the_readme_show_what_the_tool_prints(session: tuple[list[str], list[str]]) -> None:
    arguments, output = session
    printed = iter(launch(*arguments).splitlines())
    assert output
    for line in output:
        assert line in printed, f"not printed, or not in this order: {line}"


@page
def test_commands_use_existing_options(page: Path) -> None:
    known = set(re.findall(r"--?[a-z][a-z-]*", (DOCS / "cli.md").read_text()))
    blocks = fences(page.read_text(), "sh", "console")
    for line in "\n".join(blocks).replace("\\\n", " ").splitlines():
        command = re.search(r"(?<![\w/.-])(?:\./scripts/)?launch( [^#|&>]*)", line)
        if command is not None:
            own = command[1].partition(" -- ")[0]
            options = re.findall(r"(?<= )--?[a-z][a-z-]*", own)
            assert set(options) <= known, line


# --- files, links, numbers, lines


@page
def test_links_lead_to_files_and_headings(page: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", without_code(page.read_text())):
        if re.match(r"https?:", target):
            continue
        name, _, anchor = target.partition("#")
        path = (page.parent / name).resolve() if name else page
        assert path.exists(), target
        assert not anchor or anchor in anchors(path), target


@page
def test_named_paths_exist(page: Path) -> None:
    text = without_code(page.read_text())
    if page.name == "CHANGELOG.md" or page.parent.name == "decisions":
        return  # they describe the state at their time
    for name in re.findall(r"`((?:[\w.-]+/)+[\w.-]*|\w+\.py)`", text):
        top = name.split("/")[0]
        if top in ("launcher", "docs", "tests", "scripts"):
            assert (ROOT / name).exists(), name
        elif top in PACKAGE_FOLDERS or "/" not in name:
            assert (ROOT / "launcher" / name).exists(), name


def test_decisions_are_numbered_without_gaps_and_listed() -> None:
    names = sorted(path.name for path in (DOCS / "decisions").glob("*.md"))
    assert [int(name[:4]) for name in names] == list(range(1, len(names) + 1))
    listed = re.findall(r"^\* \[(\d{4})\]\(decisions/(.+?)\) (.+)$", (DOCS / "README.md").read_text(), re.MULTILINE)
    assert [name for _, name, _ in listed] == names
    for number, name, title in listed:
        first, _, date, *_ = (DOCS / "decisions" / name).read_text().splitlines()
        assert first == f"# {number} {title}"
        assert re.fullmatch(r"\d{4}-\d{2}-\d{2}", date)


@page
def test_lines_fit_in_120_characters(page: Path) -> None:
    lines = page.read_text().splitlines()
    if page.name in GENERATED_ROWS:
        lines = [line for line in lines if not line.startswith("|")]
    assert [line for line in lines if len(line) > 120] == []


def test_every_page_is_in_the_index() -> None:
    index = (DOCS / "README.md").read_text()
    for path in DOCS.glob("*.md"):
        assert path.name == "README.md" or f"]({path.name}" in index, path.name


def test_the_changelog_has_the_version_of_the_package() -> None:
    version = re.search(r'^version = "(.+)"$', (ROOT / "pyproject.toml").read_text(), re.MULTILINE)
    assert version is not None
    headings = re.findall(r"^## (\S+)(?: - (\S+))?$", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    released = [(name, date) for name, date in headings if name != "Unreleased"]
    assert released[0][0] == version[1]
    assert re.fullmatch(r"\d{4}-\d{2}-\d{2}", released[0][1])
