"""Text layout that the reports share: wrapped paragraphs, tables, shortened lists.

Separate so that all reports look alike. The contents of reports do not belong here.
"""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Sequence

from rich.text import Text

from launcher.printable import printable


def without_controls(line: Text) -> Text:
    """The line with characters escaped that are not printable; it then has no styles."""
    return line if line.plain.isprintable() else Text(printable(line.plain))


def wrap(text: str, width: int, indent: str = "", style: str = "", first: str | None = None) -> Iterator[Text]:
    """``text`` as ``wrap_lines`` breaks it, in one style."""
    for line in wrap_lines(text, width, indent, first):
        yield Text(line, style)


def wrap_lines(text: str, width: int, indent: str = "", first: str | None = None) -> list[str]:
    """``text`` in lines of at most ``width`` columns, except for longer words: paths and commands stay intact.

    ``first`` is the indent of the first line, if it differs.
    """
    start = indent if first is None else first
    return textwrap.wrap(
        text, width, initial_indent=start, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False
    )


def table(heads: Sequence[str], rows: Sequence[Sequence[Text]], indent: str) -> list[Text]:
    """A table with columns as wide as their longest cell, separated by two spaces."""
    widths = [max([len(head), *(len(row[index]) for row in rows)]) for index, head in enumerate(heads)]
    lines = []
    for row in [[Text(head, "dim") for head in heads], *rows]:
        line = Text(indent)
        for cell, size in zip(row, widths, strict=True):
            line.append_text(cell).append(" " * (size - len(cell) + 2))
        lines.append(line)
    return lines


def shorten(cpus: str, max_length: int) -> str:
    """A cpu list of at most ``max_length`` characters, cut after a comma if it is longer."""
    return cpus if len(cpus) <= max_length else cpus[: max_length - 1].rsplit(",", 1)[0] + ",…"
