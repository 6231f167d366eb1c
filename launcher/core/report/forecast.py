"""The section of the topology report with the predicted throughput and latencies of the plan, as text and JSON."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from rich.text import Text

from launcher.core.report.text_format import table, wrap
from launcher.core.tuning.simulation import LOAD, Latency, Prediction, Source

MAX_INSTANCES = 16  # listed one by one
INDENT = "  "

_SOURCES: dict[Source, str] = {
    "measured": "with costs measured on this machine",
    "scaled": "with costs scaled from instances of another size on this machine",
    "guessed": "with estimated costs, because none were measured here: they show which plan is faster, not how fast "
    "it is",
}


@dataclass(frozen=True, slots=True)
class Forecast:
    """The prediction for a plan, None if no costs are known; ``measure`` names the command that measures them.
    ``equal`` and ``why`` are the prediction for equal instances and the reason of the choice of ``--classes auto``."""

    prediction: Prediction | None
    measure: str
    equal: Prediction | None = None
    why: str | None = None

    def to_json(self) -> dict[str, Any] | None:
        """``plan.predicted`` of the topology report; None without a prediction."""
        if self.prediction is None:
            return None
        return {
            **self.prediction.to_json(),
            "equal": self.equal.to_json() if self.equal else None,
            "why": self.why,
        }


def forecast_lines(forecast: Forecast, width: int) -> list[Text]:
    """The section as text, in lines of at most ``width`` columns."""
    found = forecast.prediction
    if found is None:
        text = f"No prediction: no costs were measured for this plan on this machine; {forecast.measure} measures them."
        return [Text("Predicted", "bold"), *wrap(text, width, INDENT)]
    lines = [Text("Predicted", "bold")]
    if forecast.why:
        lines += wrap(forecast.why, width, INDENT)
    lines += wrap(_about(found, forecast), width, INDENT)
    lines += [*_class_lines(found, forecast.equal), Text("")]
    return [*lines, *_instance_lines(found)]


def describe_basis(found: Prediction) -> str:
    """The basis of a prediction, in a sentence."""
    return f"Lengths: {found.traffic}, {_SOURCES[found.source]}."


def _about(found: Prediction, forecast: Forecast) -> str:
    equal = f", equal instances {forecast.equal.capacity:,.0f}" if forecast.equal else ""
    load = (
        f"latencies are for random arrivals at {found.rate:,.0f} texts/s, {LOAD:.0%} of "
        f"{'the capacity of equal instances' if forecast.equal else 'the capacity'}"
    )
    text = f"At most {found.capacity:,.0f} texts/s{equal}; {load}. {describe_basis(found)}"
    return text if found.source == "measured" else f"{text[:-1]}; {forecast.measure} measures them."


def _class_lines(found: Prediction, equal: Prediction | None) -> list[Text]:
    heads = ["tokens", "texts", "p50", "p99", *(["p50 equal", "p99 equal"] if equal else [])]
    rows = []
    for index, (span, latency) in enumerate(found.classes):
        cells = [span.name, f"{latency.share:.0%}", *_cells(latency)]
        rows.append([Text(cell) for cell in [*cells, *(_cells(equal.classes[index][1]) if equal else [])]])
    return table(heads, rows, "  ")


def _instance_lines(found: Prediction) -> list[Text]:
    shown = found.instances[:MAX_INSTANCES]
    rows = [
        [Text(str(id_)), Text(f"{latency.share * found.rate:,.0f}"), *map(Text, _cells(latency))]
        for id_, latency in shown
    ]
    lines = table(["instance", "texts/s", "p50", "p99"], rows, "  ")
    if len(shown) < len(found.instances):
        lines.append(Text(f"  … and {len(found.instances) - len(shown)} more; --json lists them all", "dim"))
    return lines


def _cells(latency: Latency) -> list[str]:
    return [_milliseconds(latency.p50), _milliseconds(latency.p99)]


def _milliseconds(seconds: float | None) -> str:
    if seconds is None:
        return "none"
    return f"{seconds * 1e3:,.0f} ms" if seconds >= 0.1 else f"{seconds * 1e3:.1f} ms"
