"""Prints the figures of a measurement, as tables or as one line of JSON."""

from __future__ import annotations

import io
from collections.abc import Mapping
from typing import Any

import msgspec
from rich.console import Console, RenderableType
from rich.table import Table

from launcher.printable import printable

WIDTH = 120
# Column headings of figures with long names.
SHORT = {
    "texts_per_second": "texts/s",
    "tokens_per_second": "tokens/s",
    "real_over_computed": "real/computed",
    "batch_p50_ms": "p50 ms",
    "batch_p99_ms": "p99 ms",
    "prediction_error": "error",
}


def show_json(figures: Mapping[str, Any]) -> None:
    """Print ``figures`` as one line of JSON."""
    print(msgspec.json.encode(figures).decode())


def show(figures: Mapping[str, Any], title: str = "", rows: Mapping[str, Mapping[str, Any]] | None = None) -> None:
    """Print ``figures``, one per line below the heading ``run``, then ``rows``, which all have the same columns.

    ``title`` is the heading of the row names.
    """
    lines = Table(show_header=False, box=None, pad_edge=False)
    for name, value in figures.items():
        if name != "run":
            lines.add_row(name.replace("_", " "), _text(value))
    print(printable(figures["run"]))
    _print(lines)
    if rows:
        print()
        _print(_table(title, rows))


def show_load(figures: Mapping[str, Any]) -> None:
    """Print the figures of a load, its latencies as a table by length."""
    apart = ("latency_ms", "latency_ms_by_length")
    rows = {"all": figures["latency_ms"], **figures["latency_ms_by_length"]}
    show({name: value for name, value in figures.items() if name not in apart}, "latency in ms, by tokens", rows)


def _table(title: str, rows: Mapping[str, Mapping[str, Any]]) -> Table:
    columns = list(next(iter(rows.values())))
    table = Table(box=None, pad_edge=False)
    table.add_column(title)
    for column in columns:
        table.add_column(SHORT.get(column, column.replace("_", " ")), justify="right", no_wrap=True)
    for name, row in rows.items():
        table.add_row(printable(name), *(_text(row[column]) for column in columns))
    return table


def _text(value: Any) -> str:
    if isinstance(value, Mapping):
        return "  ".join(f"{key} {inner}" for key, inner in value.items()) or "none"
    return "–" if value is None else printable(str(value))


def _print(what: RenderableType) -> None:
    """Print without trailing spaces, with which rich pads lines."""
    drawn = io.StringIO()
    Console(file=drawn, width=WIDTH).print(what)
    print("\n".join(line.rstrip() for line in drawn.getvalue().splitlines()))
