"""Decides what a changed configuration changes in a running server.

Separate because it only compares values: the server reads the file and carries the decision out. Options that are not
listed here are used once, at the start, so a change needs a new process.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from launcher.options import LogOptions, ServeOptions, SuperviseOptions, WatchOptions
from launcher.options.option import Option, options_of
from launcher.options.values import build, to_flat

# In effect for everything that begins after the reload: connections, restarts, the drain.
_OF_THE_FRONT = ("drain_seconds", "keep_alive_seconds", "request_seconds", "max_header_bytes")
_PARTS = (LogOptions, SuperviseOptions, WatchOptions)
LIVE = frozenset({*_OF_THE_FRONT, *(one.name for part in _PARTS for one in options_of(part))})


@dataclass(frozen=True, slots=True)
class Change:
    """An option whose value has changed; ``live``: the new value is in effect after the reload."""

    option: Option
    old: Any
    new: Any
    live: bool

    def __str__(self) -> str:
        return f"{self.option.key}: {self._shown(self.old)} -> {self._shown(self.new)}"

    def _shown(self, value: Any) -> str:
        return str(self.option.declared.none or "unset") if value is None else str(value)


def changes(old: ServeOptions, new: ServeOptions) -> tuple[Change, ...]:
    """The options that differ, in the order of their definitions."""
    before, after = to_flat(old), to_flat(new)
    return tuple(
        Change(option, before[option.name], after[option.name], option.name in LIVE)
        for option in options_of(ServeOptions)
        if before[option.name] != after[option.name]
    )


def after_reload(old: ServeOptions, new: ServeOptions) -> ServeOptions:
    """The options in effect after the reload: those of ``new`` where they can change, else those of ``old``."""
    live = {change.option.name: change.new for change in changes(old, new) if change.live}
    return build(ServeOptions, {**to_flat(old), **live})
