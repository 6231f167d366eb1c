"""Reads and writes configuration files (TOML). The meaning of their keys is defined in ``launcher.options``."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator
from itertools import groupby
from pathlib import Path
from typing import Any

from launcher.errors import UsageError
from launcher.options.sources import ConfigFile, Resolved, Value

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

# A key at the start of a line. A line in a multi-line string may look the same; the first match is used.
_KEY = re.compile(r"""\s*["']?([A-Za-z0-9_-]+)["']?\s*=""")


def read_config(path: Path) -> ConfigFile:
    """The contents of a file. Raises ``UsageError`` if it cannot be read or is not valid TOML."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8"
        raise UsageError(f"the configuration file {path} cannot be read: {reason}") from error
    try:
        values = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise UsageError(f"the configuration file {path} is not valid TOML: {error}") from error
    lines: dict[str, int] = {}
    for number, line in enumerate(text.splitlines(), 1):
        if match := _KEY.match(line):
            lines.setdefault(match[1], number)
    return ConfigFile(str(path), values, lines)


def config_text(resolved: Resolved) -> str:
    """The values as a configuration file, grouped as in help, each with its source in a comment."""
    settings = [_setting(each) for each in resolved.values if not each.option.command_line_only]
    width = max(len(text) for _, text, _ in settings)
    lines: list[str] = []
    for group, members in groupby(settings, key=lambda setting: setting[0]):
        lines += ["", f"# {group}"]
        lines += [f"{text:<{width}}  # {place}" for _, text, place in members]
    return "\n".join(lines[1:])


def _setting(each: Value) -> tuple[str | None, str, str]:
    option = each.option
    value = _shown(each)
    text = f"# {option.key} =" if value is None else f"{option.key} = {_toml(value)}"
    return option.declared.group, text, each.place


def _toml(value: Any) -> str:
    """A value in TOML, whose numbers, booleans and basic strings are written as in JSON. Characters that are not
    printable are escaped; TOML has no surrogate pairs."""
    text = json.dumps(value, ensure_ascii=False)
    return "".join(char if char.isprintable() else f"\\U{ord(char):08x}" for char in text)


def config_entries(resolved: Resolved) -> Iterator[dict[str, Any]]:
    """The values and their sources, for JSON."""
    for each in resolved.values:
        if not each.option.command_line_only:
            place = None if each.source == "default" else each.place
            yield {"option": each.option.key, "value": _shown(each), "source": each.source, "place": place}


def _shown(each: Value) -> Any:
    """The value in types of TOML and JSON; the option's word for None, such as ``auto``, if it has one."""
    value = each.option.declared.none if each.value is None else each.value
    return str(value) if isinstance(value, Path) else value
