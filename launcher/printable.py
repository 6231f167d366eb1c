"""Escapes what a terminal or a log must not receive as it is: control characters in names, paths, options and output.

The single home of this rule, below all layers, because messages, tables and logs of every layer show texts of others.
A name with a line break could forge a line of the log, an escape sequence could rewrite the screen, and a bidirectional
control could reorder what is displayed. Only the standard library may be imported here.
"""

from __future__ import annotations


def printable(text: str, keep: str = "") -> str:
    """``text`` with each character that is not printable written as in a Python string: ``\\n``, ``\\x1b``,
    ``\\u202e``, ``\\udcff``.

    Not printable are control and format characters (bidirectional controls among them), separators other than the
    space, lone surrogates, and unassigned characters; see ``str.isprintable``. Characters in ``keep`` stay.
    """
    if text.isprintable():
        return text
    return "".join(char if char.isprintable() or char in keep else escaped(char) for char in text)


def escaped(char: str) -> str:
    """One character as in a Python string."""
    return char.encode("unicode_escape").decode("ascii")
