"""The part of the topology report that says what a plan is predicted to do, as text and JSON."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from rich.text import Text

from launcher.core.report.ascii_map import table
from launcher.core.tuning.simulation import LOAD, Latency, Prediction, Source

MOST_INSTANCES = 16  # that are listed one by one

_SOURCES: dict[Source, str] = {
    "measured": "by costs that were measured on this machine",
    "scaled": "by costs that were measured on this machine for instances of another size, and scaled",
    "guessed": "by a guess, as no costs were measured here: it tells what is faster, not how fast it is",
}


@dataclass(frozen=True, slots=True)
class Forecast:
    """``prediction`` is None where no costs are known; ``measure`` is the command that measures them. ``equal`` and
    ``why`` are what `--classes auto` compared with, and what it chose."""

    prediction: Prediction | None
    measure: str
    equal: Prediction | None = None
    why: str | None = None

    def to_json(self) -> dict[str, Any] | None:
        """``plan.predicted`` of the topology report; None where nothing is predicted."""
        if self.prediction is None:
            return None
        return {
            **self.prediction.to_json(),
            "equal": self.equal.to_json() if self.equal else None,
            "why": self.why,
        }


def forecast_lines(forecast: Forecast, width: int) -> list[Text]:
    """For people, in lines of at most ``width`` columns."""
    found = forecast.prediction
    if found is None:
        text = f"Not yet: no costs were measured for this plan on this machine; {forecast.measure} measures them."
        return [Text("Predicted", "bold"), *_wrapped(text, width)]
    lines = [Text("Predicted", "bold")]
    if forecast.why:
        lines += _wrapped(forecast.why, width)
    lines += _wrapped(_about(found, forecast), width)
    lines += [*_class_lines(found, forecast.equal), Text("")]
    return [*lines, *_instance_lines(found)]


def grounds(found: Prediction) -> str:
    """What a prediction was made from, in a sentence."""
    return f"Lengths: {found.traffic}, {_SOURCES[found.source]}."


def _wrapped(text: str, width: int) -> Iterator[Text]:
    for line in textwrap.wrap(text, width, initial_indent="  ", subsequent_indent="  ", break_on_hyphens=False):
        yield Text(line)


def _about(found: Prediction, forecast: Forecast) -> str:
    equal = f", equal instances {forecast.equal.capacity:,.0f}" if forecast.equal else ""
    load = (
        f"latencies are for {found.rate:,.0f} texts/s, {LOAD:.0%} of what "
        f"{'equal instances can do' if forecast.equal else 'it can do'}, coming at random"
    )
    text = f"At most {found.capacity:,.0f} texts/s{equal}; {load}. {grounds(found)}"
    return text if found.source == "measured" else f"{text[:-1]}; {forecast.measure} measures them."


def _class_lines(found: Prediction, equal: Prediction | None) -> list[Text]:
    heads = ["tokens", "texts", "p50", "p99", *(["p50 equal", "p99 equal"] if equal else [])]
    rows = []
    for index, (span, latency) in enumerate(found.classes):
        cells = [span.name, f"{latency.share:.0%}", *_cells(latency)]
        rows.append([Text(cell) for cell in [*cells, *(_cells(equal.classes[index][1]) if equal else [])]])
    return table(heads, rows, "  ")


def _instance_lines(found: Prediction) -> list[Text]:
    shown = found.instances[:MOST_INSTANCES]
    rows = [
        [Text(str(id_)), Text(f"{latency.share * found.rate:,.0f}"), *map(Text, _cells(latency))]
        for id_, latency in shown
    ]
    lines = table(["instance", "texts/s", "p50", "p99"], rows, "  ")
    if len(shown) < len(found.instances):
        lines.append(Text(f"  … and {len(found.instances) - len(shown)} more; --json has them all", "dim"))
    return lines


def _cells(latency: Latency) -> list[str]:
    return [_milliseconds(latency.p50), _milliseconds(latency.p99)]


def _milliseconds(seconds: float | None) -> str:
    if seconds is None:
        return "none"
    return f"{seconds * 1e3:,.0f} ms" if seconds >= 0.1 else f"{seconds * 1e3:.1f} ms"
