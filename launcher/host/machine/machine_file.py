"""Finds the machine that ``--machine`` names: in a file, or in the catalogue; and writes such a file.

Separate from the reading of `/sys`: it is another machine, and a file may contain anything. Its format is defined in
``core.machine.topology``, ``core.machine.catalogue`` and ``host.machine.lscpu_machine``.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

import msgspec

from launcher.core.machine.topology import Machine, machine_from_json, machine_to_json
from launcher.errors import UsageError
from launcher.host.machine.lscpu_machine import machine_from_lscpu, machine_from_lscpu_json
from launcher.host.machine.pasted_text import clean, decode

STANDARD_INPUT = Path("-")
LIST = Path("list")  # not a machine: with it, `launch topology` lists the catalogue
LIST_COMMAND = "`launch topology --machine list`"
_BARE_HYPHEN = re.compile(r'("[^"\n]*":\s*)-(?=\s*[,}\n])')
MAX_BYTES = 64 * 1024 * 1024  # a report of 65,536 cpus has about 10 MB

FORMATS = (
    "expected a file written by `launch topology --save FILE`, a report of `launch topology --json`, the output of "
    f"lscpu (`lscpu -p` tells most; `lscpu`, -e and -J are accepted), or a name from {LIST_COMMAND}"
)


def read_machine_file(path: Path) -> Machine:
    """The machine that a file describes, or the known machine of that name; ``-`` is standard input.

    A file is what `launch topology --save` or `--json` wrote, or what `lscpu` prints, with or without `-p`, `-e` and
    `-J`, also with the prompts, code fences or quotation marks that a copied text has. A file is preferred to a known
    machine of the same name. Raises ``UsageError`` when there is neither.
    """
    if path != STANDARD_INPUT and not path.exists() and path.name == str(path):
        return _known_machine(path.name)
    name = "--machine -" if path == STANDARD_INPUT else f"--machine {path}"
    try:
        return _machine(_text(path))
    except UsageError as error:
        raise UsageError(f"{name}: {error}; {FORMATS}") from error


def lists_catalogue(path: Path | None) -> bool:
    """Whether ``--machine list`` asks for the names of the known machines. A file named ``list`` takes precedence."""
    return path == LIST and not LIST.exists()


def _known_machine(name: str) -> Machine:
    # Only here: the entries are built when the module is loaded, and most runs need none.
    from launcher.core.machine.catalogue import find, machine_of, nearest_names

    known = find(name)
    if known is not None:
        return machine_of(known)
    if Path(name) == LIST:
        raise UsageError(f"--machine list: names no machine; {LIST_COMMAND} lists the known machines")
    nearest = nearest_names(name)
    hint = f"; similar names: {', '.join(nearest)}" if nearest else ""
    raise UsageError(
        f"--machine {name}: No such file or directory, and no known machine has this name{hint}; {LIST_COMMAND} lists "
        "the known machines"
    )


def write_machine_file(path: Path, machine: Machine) -> None:
    """Write the machine as JSON that ``read_machine_file`` reads, replacing an existing file.

    Raises ``UsageError`` when it cannot be written.
    """
    if path == STANDARD_INPUT:
        raise UsageError(
            "--save - would mix the machine with the report on standard output; name a file, or use --json, which "
            "prints both as one document"
        )
    text = msgspec.json.format(msgspec.json.encode(machine_to_json(machine)), indent=2)
    try:
        path.write_bytes(text + b"\n")
    except OSError as error:
        raise UsageError(
            f"--save {path}: cannot write the machine: {error.strerror}; name a file in a directory you can write to"
        ) from error


def _text(path: Path) -> str:
    data = _read(path)
    if not data.strip():
        raise UsageError("it is empty")
    if len(data) > MAX_BYTES:
        raise UsageError(f"it has more than {MAX_BYTES} bytes, too many for a machine file")
    return decode(data)


def _read(path: Path) -> bytes:
    try:
        if path == STANDARD_INPUT:
            return sys.stdin.buffer.read(MAX_BYTES + 1)
        with path.open("rb") as file:
            return file.read(MAX_BYTES + 1)
    except IsADirectoryError as error:
        raise UsageError("it is a directory; for a directory with a copy of /sys and /proc, use --sysroot") from error
    except OSError as error:
        raise UsageError(f"it cannot be read: {error.strerror}") from error


def _machine(text: str) -> Machine:
    text = clean(text)
    if not text.strip() or text.lstrip()[0] not in "{[":
        return machine_from_lscpu(text)
    try:
        # `lscpu -e -J` prints a bare hyphen for an unknown number, which is not JSON.
        data = msgspec.json.decode(_BARE_HYPHEN.sub(r"\1null", text))
    except (msgspec.DecodeError, RecursionError) as error:
        raise UsageError(f"it starts like JSON but is not valid JSON: {error}") from error
    found = machine_from_lscpu_json(data) if isinstance(data, dict) else None
    return machine_from_json(data) if found is None else found
