"""Defines an option: a dataclass field whose metadata holds everything about it.

The field holds the default and the type; its metadata holds the help text, limits, group and names. Command-line flags,
environment variables, keys of configuration files and keyword arguments are all derived from it. The options themselves
are in ``definitions``, parsing is in ``values``.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator
from dataclasses import MISSING, dataclass, field
from pathlib import Path
from types import NoneType, UnionType
from typing import TYPE_CHECKING, Any, Literal, TypedDict, TypeVar, Union, get_args, get_origin, get_type_hints

from launcher.options.env_prefixes import OPTION_PREFIX

if TYPE_CHECKING:  # from Python 3.11 on
    from typing import Unpack

T = TypeVar("T")
Kind = type[bool] | type[int] | type[float] | type[str] | type[Path]

_KEY = "launch"


class ClassPath(str):
    """The place of a class, ``module:Class``; an alternative to the choices of an option."""

    __slots__ = ()
    PATTERN = re.compile(r"[^\W\d]\w*(\.[^\W\d]\w*)*:[^\W\d]\w*")
    EXPECTED = "a custom class as module:Class"


class Details(TypedDict, total=False):
    """Optional properties of an option.

    ``group`` is the heading under which help lists it. ``name`` is its public name, if it differs from the name of the
    field. ``minimum`` and ``maximum`` are inclusive. ``metavar`` is the placeholder of the value in help. ``none`` is
    the word that means None, such as ``auto``. ``short`` is a one-letter flag.
    """

    group: str
    name: str
    minimum: float
    maximum: float
    metavar: str
    none: str
    short: str


@dataclass(frozen=True, slots=True)
class Declared:
    """The metadata of an option: its help text and ``Details``. ``positional``: an argument rather than a flag."""

    help: str
    group: str | None = None
    name: str | None = None
    minimum: float | None = None
    maximum: float | None = None
    metavar: str | None = None
    none: str | None = None
    short: str | None = None
    positional: bool = False


@dataclass(frozen=True, slots=True)
class _Part:
    without: frozenset[str]
    only: frozenset[str] | None
    flags_only: bool

    def has(self, option: Option) -> bool:
        names = {option.name, option.declared.group}
        return not names & self.without and (self.only is None or bool(names & self.only))


def option(default: T, help: str, **details: Unpack[Details]) -> T:
    """Define a dataclass field that is an option. Typed like ``dataclasses.field``, as if it returned the default."""
    made: T = field(default=default, metadata={_KEY: Declared(help, **details)})
    return made


def argument(default: Any, help: str, metavar: str | None = None) -> Any:
    """Define a dataclass field that takes the positional arguments of the command line.

    It is required if ``default`` is ``dataclasses.MISSING``.
    """
    return field(default=default, metadata={_KEY: Declared(help, metavar=metavar, positional=True)})


def part(
    default: T, *, without: tuple[str, ...] = (), only: tuple[str, ...] | None = None, flags_only: bool = False
) -> T:
    """Define a dataclass field that holds another dataclass of options.

    ``default`` is an instance of that dataclass with the defaults that apply here. ``without`` and ``only`` exclude or
    select options by name or by group. With ``flags_only`` they can only be set on the command line here.
    """
    held = _Part(frozenset(without), None if only is None else frozenset(only), flags_only)
    made: T = field(default=default, metadata={_KEY: held})
    return made


@dataclass(frozen=True, slots=True)
class Option:
    """One option of a tree of dataclasses.

    ``path`` leads from the root to its field. ``many``: it is a tuple of ``kind``. ``choices`` is empty unless the
    type is a ``Literal``; with ``takes_class``, a ``ClassPath`` is valid as well. ``default`` is
    ``dataclasses.MISSING`` for a required argument. A ``command_line_only`` option cannot be set by the environment or
    a configuration file; a dataclass marks its own options so with a class variable of that name.
    """

    path: tuple[str, ...]
    declared: Declared
    kind: Kind
    many: bool
    optional: bool
    choices: tuple[str, ...]
    takes_class: bool
    default: Any
    command_line_only: bool

    @property
    def name(self) -> str:
        """The name as a keyword argument of Python: ``max_body_bytes``."""
        return self.declared.name or self.path[-1]

    @property
    def key(self) -> str:
        """The key in a configuration file: ``max-body-bytes``."""
        return self.name.replace("_", "-")

    @property
    def flag(self) -> str:
        """The flag of the command line: ``--max-body-bytes``."""
        return f"--{self.key}"

    @property
    def variable(self) -> str:
        """The environment variable: ``LAUNCH_MAX_BODY_BYTES``."""
        return OPTION_PREFIX + self.name.upper()

    @property
    def expected(self) -> str:
        """What a value must be, for messages: ``an integer of at least 1, or 'auto'``."""
        if self.choices:
            return f"one of {', '.join(self.choices)}" + (f", or {ClassPath.EXPECTED}" if self.takes_class else "")
        text = " ".join(filter(None, (_NOUNS[self.kind], self.limits)))
        return f"{text}, or {self.declared.none!r}" if self.declared.none else text

    @property
    def limits(self) -> str:
        """The limits of a number: ``from 0 to 65535``, ``of at least 1``; empty without any."""
        low, high = self.declared.minimum, self.declared.maximum
        if low is not None and high is not None:
            return f"from {low:g} to {high:g}"
        if low is not None:
            return f"of at least {low:g}"
        return f"of at most {high:g}" if high is not None else ""


_NOUNS: dict[Kind, str] = {bool: "true or false", int: "an integer", float: "a number", str: "text", Path: "a path"}


_found: dict[type, tuple[Option, ...]] = {}


def options_of(root: type) -> tuple[Option, ...]:
    """All options of ``root`` and of the dataclasses that are parts of it, in the order of declaration."""
    if root not in _found:
        found = tuple(_walk(root, MISSING, ()))
        names = [option.name for option in found]
        assert len(names) == len(set(names)), f"{root.__name__} declares an option twice: {sorted(names)}"
        _found[root] = found
    return _found[root]


def parts_of(cls: type) -> dict[str, type]:
    """The fields of ``cls`` that hold dataclasses of options, with these dataclasses."""
    parts = [each.name for each in dataclasses.fields(cls) if isinstance(each.metadata.get(_KEY), _Part)]
    hints = get_type_hints(cls) if parts else {}
    return {name: hints[name] for name in parts}


def _walk(cls: type, defaults: Any, path: tuple[str, ...]) -> Iterator[Option]:
    hints = get_type_hints(cls)
    command_line_only = bool(getattr(cls, "command_line_only", False))
    for each in dataclasses.fields(cls):
        held = each.metadata.get(_KEY)
        here, hint = (*path, each.name), hints[each.name]
        default = each.default if defaults is MISSING else getattr(defaults, each.name)
        if isinstance(held, _Part):
            for found in filter(held.has, _walk(hint, default, here)):
                yield dataclasses.replace(found, command_line_only=True) if held.flags_only else found
        elif isinstance(held, Declared):
            takes_class = ClassPath in get_args(hint)
            kind, many, optional, choices = _type(here, _without(ClassPath, hint) if takes_class else hint)
            only = command_line_only or held.positional
            yield Option(here, held, kind, many, optional, choices, takes_class, default, only)


def _type(path: tuple[str, ...], hint: Any) -> tuple[Kind, bool, bool, tuple[str, ...]]:
    """The properties of an option's type: its kind, whether it is a tuple, whether it can be None, and its choices."""
    optional = get_origin(hint) in (Union, UnionType) and NoneType in get_args(hint)
    if optional:
        hint = _without(NoneType, hint)
    many = get_origin(hint) is tuple
    if many:
        hint = get_args(hint)[0]
    choices = tuple(get_args(hint)) if get_origin(hint) is Literal else ()
    kind: Kind = str if choices else hint
    assert kind in _NOUNS, f"{'.'.join(path)}: no option can have the type {hint}"
    return kind, many, optional, choices


def _without(alternative: type, hint: Any) -> Any:
    """The other type of a union of two."""
    (other,) = (one for one in get_args(hint) if one is not alternative)
    return other
