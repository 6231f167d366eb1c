"""Prints the figures of a measurement, as tables for people or as one line of JSON."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import msgspec
from rich.console import Console
from rich.table import Table


def show(figures: Mapping[str, Any], *, as_json: bool) -> None:
    """Print ``figures``: ``run`` is the heading, what holds rows of equal keys becomes a table, the rest lines."""
    if as_json:
        print(msgspec.json.encode(figures).decode())
        return
    console = Console(highlight=False, soft_wrap=True)
    console.print(figures["run"], style="bold", markup=False)
    lines = Table(show_header=False, box=None, pad_edge=False)
    tables = []
    for name, value in figures.items():
        rows = _rows(value)
        if rows:
            tables.append(_table(name.replace("_", " "), rows))
        elif name != "run":
            lines.add_row(name.replace("_", " "), _text(value))
    console.print(lines)
    for table in tables:
        console.print()
        console.print(table)


def _rows(value: Any) -> Mapping[str, Mapping[str, Any]] | None:
    """A value that is a table: a mapping from the name of each row to its columns."""
    if isinstance(value, Mapping) and value and all(isinstance(row, Mapping) for row in value.values()):
        return value
    return None


def _table(title: str, rows: Mapping[str, Mapping[str, Any]]) -> Table:
    columns: Sequence[str] = list(next(iter(rows.values())))
    table = Table(box=None, pad_edge=False)
    table.add_column(title, style="bold")
    for column in columns:
        table.add_column(column.replace("_", " "), justify="right")
    for name, row in rows.items():
        table.add_row(name, *(_text(row[column]) for column in columns))
    return table


def _text(value: Any) -> str:
    if isinstance(value, Mapping):
        return "  ".join(f"{key} {inner}" for key, inner in value.items()) or "none"
    return "–" if value is None else str(value)
