"""Reads a machine from a file and writes one, so that a plan can be made on another machine.

Separate from the reading of `/sys`: a file comes from somewhere else, may be anything, and says nothing of the
machine this runs on. What a machine is made of is decided in ``core.machine.topology`` and ``host.machine.lscpu``.
"""

from __future__ import annotations

import sys
from pathlib import Path

import msgspec

from launcher.core.machine.topology import Machine, machine_from_json, machine_to_json
from launcher.errors import UsageError
from launcher.host.machine.lscpu import machine_from_lscpu_p

STANDARD_INPUT = Path("-")
MAX_BYTES = 64 * 1024 * 1024  # a report of 65,536 cpus has about 10 MB

WHAT_WORKS = (
    "what works is a file of `launch topology --save FILE`, a report of `launch topology --json`, "
    "or the output of `lscpu -p`"
)


def read_machine_file(path: Path) -> Machine:
    """The machine that a file describes; ``-`` is standard input. Raises ``UsageError`` when it describes none.

    A file is what `launch topology --save` or `--json` wrote, or what `lscpu -p` prints, with any columns.
    """
    name = "--machine -" if path == STANDARD_INPUT else f"--machine {path}"
    try:
        return _machine(_text(path))
    except UsageError as error:
        raise UsageError(f"{name}: {error}; {WHAT_WORKS}") from error


def write_machine_file(path: Path, machine: Machine) -> None:
    """Write the machine as JSON that ``read_machine_file`` takes, over a file that is there.

    Raises ``UsageError`` when it cannot be written.
    """
    if path == STANDARD_INPUT:
        raise UsageError(
            "--save - would mix the machine with the report; a name of a file works, and --json prints both as one"
        )
    text = msgspec.json.format(msgspec.json.encode(machine_to_json(machine)), indent=2)
    try:
        path.write_bytes(text + b"\n")
    except OSError as error:
        raise UsageError(
            f"--save {path}: the machine cannot be written there: {error.strerror}; "
            "a file in a folder of your own works"
        ) from error


def _text(path: Path) -> str:
    data = _read(path)
    if not data.strip():
        raise UsageError("there is nothing in it")
    if len(data) > MAX_BYTES:
        raise UsageError(f"it has more than {MAX_BYTES} bytes, which no machine takes")
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UsageError(f"it is no text, byte {error.start} is no UTF-8") from error
    if "\0" in text:
        raise UsageError("it is no text, it has NUL bytes")
    return text


def _read(path: Path) -> bytes:
    try:
        if path == STANDARD_INPUT:
            return sys.stdin.buffer.read(MAX_BYTES + 1)
        with path.open("rb") as file:
            return file.read(MAX_BYTES + 1)
    except IsADirectoryError as error:
        raise UsageError(
            "this is a folder; --sysroot is what takes one, with a copy of /sys and /proc in it"
        ) from error
    except OSError as error:
        raise UsageError(f"it cannot be read: {error.strerror}") from error


def _machine(text: str) -> Machine:
    if text.lstrip()[0] not in "{[":
        return machine_from_lscpu_p(text)
    try:
        data = msgspec.json.decode(text)
    except (msgspec.DecodeError, RecursionError) as error:
        raise UsageError(f"it begins as JSON and is none: {error}") from error
    return machine_from_json(data)
