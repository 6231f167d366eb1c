"""The predictions in the report."""

from __future__ import annotations

import pytest

from launcher.core.cost.length_histogram import Histogram
from launcher.core.planning.plan import PlanRequest
from launcher.core.report.forecast import Forecast, forecast_lines
from launcher.core.tuning.choose_classes import Choice, choose_classes
from launcher.core.tuning.simulation import GUESS, CostBasis, Traffic
from tests.core.by_hand import machine

MIXED = Traffic(Histogram(((16, 900), (40, 60), (400, 40))), "from mine", 2048)
EIGHT = machine(((8,),))


def chosen(*, measured: bool) -> Choice:
    basis = CostBasis({1: GUESS}, packed=True, measured=measured)
    return choose_classes(EIGHT, PlanRequest(length_limit=512), basis, MIXED, items=600)


def words(forecast: Forecast, width: int = 100) -> str:
    return " ".join(" ".join(line.plain for line in forecast_lines(forecast, width)).split())


def test_without_costs_the_report_names_the_command_that_measures_them() -> None:
    forecast = Forecast(None, "`launch`")
    assert "no costs were measured for this plan on this machine; `launch` measures them" in words(forecast)
    assert forecast.to_json() is None


@pytest.mark.parametrize("width", [72, 100, 200])
def test_latencies_of_classes_are_shown_beside_those_of_equal_instances(width: int) -> None:
    choice = chosen(measured=True)
    forecast = Forecast(choice.predicted, "`launch`", choice.equal, choice.why)
    text = words(forecast, width)
    for word in ("Predicted", "p50 equal", "p99 equal", "from mine", "60% of the capacity of equal instances"):
        assert word in text
    assert choice.why.rstrip(".") in text
    assert all(len(line.plain) <= width for line in forecast_lines(forecast, width))


def test_estimated_costs_are_marked() -> None:
    choice = chosen(measured=False)
    text = words(Forecast(choice.predicted, "`launch`", choice.equal, choice.why))
    assert "with estimated costs, because none were measured here" in text
    assert "`launch` measures them" in text
    assert "measured on this machine" not in text


def test_the_json_has_every_class_and_every_instance() -> None:
    choice = chosen(measured=False)
    document = Forecast(choice.predicted, "`launch`", choice.equal, choice.why).to_json()
    assert document is not None
    assert list(document) == [
        "source", "lengths", "texts_per_second", "arrivals_per_second", "classes", "instances", "equal", "why"
    ]  # fmt: skip
    assert document["source"] == "guessed"
    assert list(document["classes"][0]) == ["min_length", "max_length", "share", "p50_seconds", "p99_seconds"]
    assert list(document["instances"][0]) == ["id", "share", "p50_seconds", "p99_seconds"]
    assert len(document["instances"]) == sum(1 for _ in choice.specs)
    assert sum(entry["share"] for entry in document["classes"]) == pytest.approx(1, abs=1e-3)
    assert sum(entry["share"] for entry in document["instances"]) == pytest.approx(1, abs=1e-2)
    assert document["equal"]["arrivals_per_second"] == document["arrivals_per_second"]
