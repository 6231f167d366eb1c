"""The guests that the tests need: the steps and the output of each.

A guest boots once for all tests of its shape; the tests compare its output with its configuration.
"""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

REPOSITORY = Path(__file__).parents[2]
DRIVER = Path(__file__).with_name("driver.py")
EXIT_CANNOT = 3
EXIT_NO_ANSWER = 125
BOOT_SECONDS = 1200
READY_SECONDS = 480.0
# The small shapes of a warm-up are sufficient here; the large ones take long on an emulated machine.
MODEL = ("--model", "random:tiny", "--dtype", "fp32", "--max-length", "64", "--batch-tokens", "128")
TEXTS = (
    "a",
    "Which cpu runs this thread?",
    "The memory of a node is nearest to the cores of that node, and far from all others.",
    "Zwölf Boxkämpfer jagen Viktor quer über den großen Sylter Deich.",
    " ".join(["one two three four five six seven"] * 7),
)
TWO = ("--instances", "2")
# The second cpu of a core, both cpus of a core, and the first cpu of a core on the other node.
OFF = (0, 5, 6, 7, 8)

Step = dict[str, Any]


def topology(name: str, *arguments: str, inside: str | None = None) -> Step:
    """A step that runs the report of the machine and the plan."""
    return {"name": name, "do": "topology", "arguments": [*arguments, *MODEL[:-2]], "inside": inside}


def serve(name: str, *arguments: str, inside: str | None = None, port: int = 8000) -> Step:
    """A step that serves the model and inspects the workers."""
    options = {"texts": TEXTS, "port": port, "seconds": READY_SECONDS, "inside": inside}
    return {"name": name, "do": "serve", "arguments": [*arguments, *MODEL], **options}


# Changes under a running process: quota and memory limit, the cpuset, a cpu that goes offline, and back to more.
CHANGES: list[Step] = [
    {"files": {"cpu.max": "150000 100000", "memory.max": str(1 << 30)}},
    {"files": {"cpuset.cpus": "9-10"}},
    {"offline": [10]},
    {"files": {"cpuset.cpus": "2-11", "cpu.max": "max", "memory.max": "max"}},
]


OUTER = {"cpuset.cpus": "1-13", "cpuset.mems": "0-1", "cpu.max": "450000 100000"}
# The inner group requests cpus that the outer one does not have, and its quota is lower.
INNER = {"cpuset.cpus": "2-11,15", "cpu.max": "320000 100000"}
STEPS: dict[str, list[Step]] = {
    "two-sockets": [
        topology("plan", *TWO),
        serve("served", *TWO),
        {"name": "switched", "do": "offline", "cpus": OFF},
        topology("plan-offline", *TWO),
        {"name": "outer", "do": "cgroup", "path": "outer", "files": OUTER},
        {"name": "inner", "do": "cgroup", "path": "outer/inner", "files": INNER},
        topology("plan-limited", *TWO, inside="outer/inner"),
        serve("served-limited", *TWO, inside="outer/inner"),
        {"name": "resized", "do": "resize", "inside": "outer/inner", "bound": [2, 3], "changes": CHANGES},
    ],
    "four-unequal-nodes": [
        topology("plan", "--instances", "4"),
        topology("plan-spanning", *TWO),
        serve("served-spanning", *TWO),
    ],
    "odd-nodes": [topology("plan", *TWO), serve("served", *TWO)],
    "two-dies": [topology("plan", *TWO)],
    "one-cpu": [topology("plan", "--instances", "1")],
}


@dataclass(frozen=True)
class Guest:
    """A guest that has ended: its QEMU configuration, the folder with its output, and the messages while it ran."""

    asked: dict[str, Any]
    results: Path
    said: str

    def failure(self, name: str) -> str | None:
        """Why a step has no result."""
        path = self.results / f"{name}.json"
        if not path.exists():
            return f"the guest did not get to {name}: {self.said}"
        error: str | None = json.loads(path.read_text()).get("error")
        return error

    def step(self, name: str) -> dict[str, Any]:
        """The output of the guest for a step; fails the test if the step failed."""
        failure = self.failure(name)
        if failure is not None:
            pytest.fail(failure, pytrace=False)
        found: dict[str, Any] = json.loads((self.results / f"{name}.json").read_text())
        return found


class Guests:
    """Boots the guest of a shape when it is first requested."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.booted: dict[str, Guest] = {}
        self._refused: str | None = None

    def __getitem__(self, shape: str) -> Guest:
        if self._refused:
            pytest.skip(self._refused)
        if shape not in self.booted:
            self.booted[shape] = self._boot(shape)
        return self.booted[shape]

    def _boot(self, shape: str) -> Guest:
        results = self._folder / shape
        results.mkdir(parents=True, exist_ok=True)
        (results / "steps.json").write_text(json.dumps(STEPS[shape]))
        vm = [REPOSITORY / "scripts/vm", "run", shape, "--timeout", str(BOOT_SECONDS), "--results", results]
        command = [*map(str, vm), "--", sys.executable, str(DRIVER)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode == EXIT_NO_ANSWER:  # the emulator hung, which says nothing about the guest
            done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode == EXIT_CANNOT:
            self._refused = f"no guest can run here: {done.stderr.strip()}"
            pytest.skip(self._refused)
        if not (results / "asked.json").exists():
            pytest.fail(f"scripts/vm failed with {done.returncode}: {done.stderr}")
        return Guest(json.loads((results / "asked.json").read_text()), results, done.stdout + done.stderr)
