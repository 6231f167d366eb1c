"""Conversion between option dataclasses and flat values by name: parsing, validation, error messages.

Shared by all sources, so that flags, environment variables, configuration files and keyword arguments follow the same
rules. The precedence of sources is in ``sources``.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from launcher.errors import UsageError
from launcher.options.option import ClassPath, Option, options_of, parts_of

Options = TypeVar("Options")

TRUE, FALSE = frozenset({"true", "1", "yes", "on"}), frozenset({"false", "0", "no", "off"})


def from_flat(root: type[Options], values: Mapping[str, object], **others: object) -> Options:
    """An instance of ``root`` with these values by option name (``max_body_bytes=1024``) and defaults for the others.

    ``others`` are fields of ``root`` that are set as they are. Values must have the type of the option; the word for
    None, such as ``auto``, and a string for a path are accepted. Raises ``UsageError`` for an unknown name, a
    wrong type, and a value out of range.
    """
    known = {option.name: option for option in options_of(root)}
    for name in values:
        if name not in known:
            raise UsageError(f"unknown option {name!r}{nearest(name, known)}")
    checked = {name: convert(known[name], value, name) for name, value in values.items()}
    return build(root, checked, **others)


def to_flat(options: Any) -> dict[str, Any]:
    """All values of a dataclass of options, by option name."""
    found = {}
    for option in options_of(type(options)):
        value = options
        for field in option.path:
            value = getattr(value, field)
        found[option.name] = value
    return found


def build(root: type[Options], checked: Mapping[str, Any], **others: object) -> Options:
    """An instance of ``root`` with values that have been converted."""
    by_path = {option.path: checked[option.name] for option in options_of(root) if option.name in checked}
    return root(**others, **_fields(root, dataclasses.MISSING, by_path, ()))


def _fields(cls: type, base: Any, by_path: Mapping[tuple[str, ...], Any], path: tuple[str, ...]) -> dict[str, Any]:
    parts = parts_of(cls)
    made: dict[str, Any] = {}
    for field in dataclasses.fields(cls):
        here = (*path, field.name)
        default = field.default if base is dataclasses.MISSING else getattr(base, field.name)
        if field.name in parts:
            part = parts[field.name]
            made[field.name] = part(**_fields(part, default, by_path, here))
        elif here in by_path:
            made[field.name] = by_path[here]
        elif base is not dataclasses.MISSING:
            made[field.name] = default
    return made


def nearest(name: str, known: Iterable[str]) -> str:
    """The suffix of a message about an unknown name: a suggestion, or nothing."""
    from difflib import get_close_matches  # only needed for the message

    found = get_close_matches(name, list(known), 1, 0.5)
    return f"; did you mean {found[0]!r}?" if found else ""


def convert(option: Option, value: object, where: str) -> Any:
    """The value as stored in the dataclass. Raises ``UsageError``, which identifies the value by ``where``."""
    declared = option.declared
    if value is None or (declared.none is not None and value == declared.none):
        if option.optional:
            return None
        raise refusal(option, value, where)
    if option.many:
        if isinstance(value, str) or not isinstance(value, Iterable):
            raise refusal(option, value, where)
        return tuple(_single(option, one, where) for one in value)
    return _single(option, value, where)


def parse(option: Option, text: str, where: str) -> Any:
    """As ``convert``, for a value given as text: a flag or an environment variable. Commas and spaces separate the
    values of an option with several."""
    if option.many:
        return convert(option, [_read(option, one) for one in text.replace(",", " ").split()], where)
    return convert(option, _read(option, text), where)


def _read(option: Option, text: str) -> object:
    """The value that the text denotes for this option; the text itself if it is none."""
    if option.kind is bool:
        return True if text.lower() in TRUE else False if text.lower() in FALSE else text
    if option.kind in (int, float) and text != option.declared.none:
        return _number(option.kind, text)
    return text


def _number(kind: type, text: str) -> object:
    """The number that the text denotes, without Python's underscores; the text itself if it is not a number."""
    try:
        return text if "_" in text else kind(text)
    except ValueError:
        return text


def _single(option: Option, value: object, where: str) -> Any:
    kind = option.kind
    if kind is Path and isinstance(value, str):
        value = Path(value)
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        value = float(value)
    if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
        raise refusal(option, value, where)
    if option.takes_class and isinstance(value, str) and ClassPath.PATTERN.fullmatch(value):
        return ClassPath(value)
    if option.choices and value not in option.choices:
        raise refusal(option, value, where)
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        low, high = option.declared.minimum, option.declared.maximum
        too_low, too_high = low is not None and value < low, high is not None and value > high
        if too_low or too_high or not math.isfinite(value):
            raise refusal(option, value, where)
    return value


def refusal(option: Option, value: object, where: str) -> UsageError:
    """The error for an invalid value: what was given, and what it must be."""
    shown = str(value).lower() if isinstance(value, bool) else str(value)
    if isinstance(value, str) and _read(option, value) is not value:
        shown = repr(value)  # from a file or a program: without quotes the message would contradict itself
    return UsageError(f"{where} {shown}: must be {option.expected}")
