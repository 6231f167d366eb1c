"""The precedence of sources of option values: flags, environment variables, the configuration file, defaults.

Determines the value and the source of every option and rejects unknown keys and invalid values. The sources are passed
in; nothing is read here.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

from launcher.errors import UsageError
from launcher.options.env_prefixes import (
    ADMIN_KEY_VARIABLE,
    API_KEY_VARIABLE,
    OPTION_PREFIX,
    REGISTRY_VARIABLE,
    RUN_PREFIX,
)
from launcher.options.option import Option, options_of
from launcher.options.values import build, convert, nearest, parse

Root = TypeVar("Root")
Source = Literal["flag", "environment", "file", "default"]

CONFIG_VARIABLE = OPTION_PREFIX + "CONFIG"
_OTHER_VARIABLES = frozenset({CONFIG_VARIABLE, ADMIN_KEY_VARIABLE, API_KEY_VARIABLE, REGISTRY_VARIABLE})

# Variables that Kubernetes sets in every container for a Service whose name begins with "launch".
_SERVICE_VARIABLE = re.compile(r"_SERVICE_(HOST|PORT(_\w+)?)$|_PORT_\d+_(TCP|UDP|SCTP)(_(PROTO|PORT|ADDR))?$")
_SERVICE_ADDRESS = re.compile(r"(tcp|udp|sctp)://")


@dataclass(frozen=True, slots=True)
class ConfigFile:
    """The contents of a configuration file: the value and the line of each key."""

    path: str
    values: Mapping[str, object]
    lines: Mapping[str, int]

    def place(self, key: str) -> str:
        """Where a key is, for messages: ``launch.toml:3``."""
        return f"{self.path}:{self.lines[key]}" if key in self.lines else self.path


@dataclass(frozen=True, slots=True)
class Value:
    """The value of an option and where it comes from; ``place`` is a flag, a variable, or a file with a line."""

    option: Option
    value: Any
    source: Source
    place: str


@dataclass(frozen=True, slots=True)
class Resolved:
    """The values of all options of a command, and warnings about unknown environment variables."""

    values: tuple[Value, ...]
    warnings: tuple[str, ...]

    def given(self, root: type) -> dict[str, Any]:
        """The values of the options of ``root`` that are not left at their defaults, by name."""
        own = {option.name for option in options_of(root)}
        return {v.option.name: v.value for v in self.values if v.source != "default" and v.option.name in own}


@dataclass(frozen=True, slots=True)
class Sources:
    """Flags by option name, the environment, and the configuration file.

    ``known`` are the option dataclasses of all commands. Variables and keys of other commands are ignored, so that one
    file can serve all commands; keys are still checked.
    """

    flags: Mapping[str, Any]
    environment: Mapping[str, str]
    file: ConfigFile | None
    known: Sequence[type]


@dataclass(frozen=True, slots=True)
class ConfigurationSources:
    """The sources of the options of this process, which can be read again.

    ``resolve`` reads the configuration file again and raises ``UsageError`` if it cannot be used; flags and environment
    variables are those of the start. ``path`` is that of the file, None without one.
    """

    resolve: Callable[[], Resolved]
    path: str | None

    def read(self, root: type[Root]) -> Root:
        """The options of ``root`` as they are configured now. Raises ``UsageError``."""
        return build(root, self.resolve().given(root))


def resolve(options: Sequence[Option], sources: Sources) -> Resolved:
    """The values of ``options``. Raises ``UsageError`` for a bad value and for an unknown key of the file."""
    declared = [option for root in sources.known for option in options_of(root)]
    known = {option.name: option for option in (*declared, *options) if not option.command_line_only}
    from_file = {} if sources.file is None else dict(_from_file(sources.file, known))
    values = tuple(_value(option, sources, from_file) for option in options)
    return Resolved(values, tuple(_warnings(sources.environment, known)))


def _value(option: Option, sources: Sources, from_file: Mapping[str, Value]) -> Value:
    if option.name in sources.flags:
        given = sources.flags[option.name]
        read = parse if isinstance(given, str) else convert
        return Value(option, read(option, given, option.flag), "flag", option.flag)
    if not option.command_line_only:
        # Shell scripts and compose files often set a variable to the empty string to unset it.
        if text := sources.environment.get(option.variable):
            return Value(option, _from_variable(option, text), "environment", option.variable)
        if option.name in from_file:
            return from_file[option.name]
    return Value(option, option.default, "default", "default")


def _from_variable(option: Option, text: str) -> Any:
    if _SERVICE_ADDRESS.match(text) and option.variable.endswith("_PORT"):
        raise UsageError(
            f"{option.variable} {text}: must be {option.expected}; Kubernetes sets this variable in every Pod for a "
            f"Service of that name: set enableServiceLinks: false in the Pod, rename the Service, or use {option.flag}"
        )
    return parse(option, text, option.variable)


def _from_file(file: ConfigFile, known: Mapping[str, Option]) -> Iterator[tuple[str, Value]]:
    seen: dict[str, str] = {}
    for key, value in file.values.items():
        place, name = file.place(key), key.replace("-", "_")
        if isinstance(value, dict):
            raise UsageError(f"{place}: [{key}] is a table; options must be keys at the top level of the file")
        if name not in known:
            raise UsageError(f"{place}: unknown key {key!r}{nearest(key, [option.key for option in known.values()])}")
        if name in seen:
            raise UsageError(f"{place}: {key!r} and {seen[name]!r} are the same option; keep one of them")
        seen[name] = key
        yield name, Value(known[name], convert(known[name], value, f"{place}: {key}"), "file", place)


def _warnings(environment: Mapping[str, str], known: Mapping[str, Option]) -> Iterator[str]:
    variables = {option.variable for option in known.values()} | _OTHER_VARIABLES
    for name, value in sorted(environment.items()):
        if not name.startswith(OPTION_PREFIX) or name in variables or name.startswith(RUN_PREFIX):
            continue
        if _SERVICE_VARIABLE.search(name) or _SERVICE_ADDRESS.match(value):
            continue  # set by Kubernetes for a Service
        yield f"the environment variable {name} is not an option and is ignored{nearest(name, variables)}"


def without_options(environment: Mapping[str, str], root: type) -> dict[str, str]:
    """The environment without the options of ``root`` and without ``LAUNCH_CONFIG``.

    ``launch run`` passes it to its programs, so that a ``launch`` among them does not read its options.
    """
    own = {option.variable for option in options_of(root)} | {CONFIG_VARIABLE}
    return {name: value for name, value in environment.items() if name not in own}
