"""Cost tables over several runs: stored separately, corrected by observations, discarded if they do not apply."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import pytest

from launcher.core.cost.cost_model import SETTLED_BATCHES, Coefficients, CostModel, Work, fit, work_of
from launcher.core.cost.cost_table import CostTable, decode_table
from launcher.core.planning.plan import InstancePlan
from launcher.core.protocol.messages import Ready, Setup
from launcher.engine.costs import Costs, cost_info
from launcher.host.model.resolve import resolve
from launcher.options import ModelOptions
from launcher.prepare.cost_basis import CostKeyBase, basis_of
from tests.core.by_hand import machine

CARD = resolve(ModelOptions(model="random:tiny"))
SUBJECT = CostKeyBase(machine(), CARD, "fp32", "eager", 2048, "auto")
TRUTH = Coefficients(2e-3, 1e-4, 5e-8)
SETUP = Setup(model_info=CARD, dtype="fp32", backend="eager", warmup=((1, 16),))


def shape(tokens: int, factor: float = 1.0) -> tuple[int, int, int, float]:
    work = work_of([tokens], packed=True)
    return (*work, factor * TRUTH.seconds(work.tokens, work.pairs))


def measured(factor: float = 1.0) -> tuple[tuple[int, int, int, float], ...]:
    return tuple(shape(tokens, factor) for tokens in (16, 64, 256, 1024))


MEASURED = measured()


def instance(id_: int = 0, threads: int = 4) -> InstancePlan:
    cores = tuple(range(id_ * threads, id_ * threads + threads))
    return InstancePlan(id_, cores, cores, threads, (0,), "bind", None, "by a test")


def ready(costs: Costs, plan: InstancePlan, packed: bool = True, took: Any = MEASURED) -> tuple[Ready, float]:
    """The ``Ready`` message of a worker that measures ``took`` unless the measurements are known; and the drift."""
    setup = costs.with_measurements(SETUP, plan)
    cached = bool(setup.known) and setup.known_packed == packed
    message = Ready(
        pid=1, threads=plan.threads, dtype="fp32", backend="eager", width=8, labels=(), torch_version="2",
        load_seconds=1.0, warmup_seconds=1.0, accuracy=None, packed=packed, cached=cached,
        measured=setup.known if cached else took,
    )  # fmt: skip
    return message, costs.save_measurements(plan, message)


def model_after_run(ready_: Ready, factor: float, batches: int = SETTLED_BATCHES, drift: float = 1.0) -> CostModel:
    """The cost model at the end of a run in which every batch took ``factor`` times as long as measured."""
    model = CostModel(fit(ready_.measured), drift)
    for _ in range(batches):
        model.observe(Work(1, 200, 40000), factor * model.coefficients.seconds(200, 40000))
    return model


def run(folder: Path, *factors: float, batches: int = SETTLED_BATCHES, fresh: bool = False) -> tuple[Ready, float]:
    """A whole run with one instance per factor; the ``Ready`` message of the first worker, and its initial drift."""
    costs = Costs(SUBJECT, fresh=fresh, folder=folder)
    plans = [instance(number) for number in range(len(factors))]
    begun = [ready(costs, plan) for plan in plans]
    models = [
        model_after_run(said, factor, batches, drift) for (said, drift), factor in zip(begun, factors, strict=True)
    ]
    costs.save_drift(zip(plans, models, strict=True))
    return begun[0]


def measured_separately(costs: Costs, plan: InstancePlan, factor: float) -> Ready:
    """The ``Ready`` message of a worker that was started without known costs and measured ``factor`` times the true
    ones.
    """
    message, _ = ready(Costs(SUBJECT, fresh=True, folder=costs._folder / "elsewhere"), plan, took=measured(factor))
    costs.save_measurements(plan, message)
    return message


def tables(folder: Path) -> list[CostTable]:
    return [decode_table(path.read_bytes()) for path in sorted(folder.glob("*.json"))]


def said(caplog: pytest.LogCaptureFixture, level: int = logging.WARNING) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelno >= level]


# ------------------------------------------------------------------------ kept


def test_measurements_are_reused_by_the_next_start_and_by_instances_of_the_same_size(tmp_path: Path) -> None:
    costs = Costs(SUBJECT, folder=tmp_path)
    assert not ready(costs, instance(0))[0].cached
    assert ready(costs, instance(1))[0].cached
    assert not ready(costs, instance(0, threads=2))[0].cached
    again = Costs(SUBJECT, folder=tmp_path)
    message, drift = ready(again, instance(3))
    assert (message.cached, message.measured, drift) == (True, MEASURED, 1.0)


def test_if_instances_measure_at_the_same_time_the_shorter_times_are_kept(tmp_path: Path) -> None:
    costs = Costs(SUBJECT, folder=tmp_path)
    slow = Ready(1, 4, "fp32", "eager", 8, (), "2", 1.0, 1.0, measured(1.5), None, packed=True)
    costs.save_measurements(instance(0), slow)
    costs.save_measurements(instance(1), msgspec.structs.replace(slow, measured=MEASURED))
    costs.save_measurements(instance(2), slow)
    assert [table.measured for table in tables(tmp_path)] == [MEASURED]


def test_packed_and_padded_tables_are_stored_separately(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    padded = replace(SUBJECT, layout="padded")
    for subject, packed in ((SUBJECT, True), (padded, False)):
        assert not ready(Costs(subject, folder=tmp_path), instance(), packed)[0].cached
    for subject, packed in ((SUBJECT, True), (padded, False)):
        assert ready(Costs(subject, folder=tmp_path), instance(), packed)[0].cached
    assert len(tables(tmp_path)) == 2
    assert said(caplog) == []


def test_a_model_that_can_no_longer_be_packed_is_measured_again_and_this_is_logged(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    ready(Costs(SUBJECT, folder=tmp_path), instance())
    assert not ready(Costs(SUBJECT, folder=tmp_path), instance(), packed=False)[0].cached
    assert [table.packed for table in tables(tmp_path)] == [False]
    assert "items are packed there, padded here" in said(caplog)[0]


def test_a_difference_is_logged_and_costs_are_measured_again(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    ready(Costs(SUBJECT, folder=tmp_path), instance())
    elsewhere = replace(SUBJECT, machine=replace(SUBJECT.machine, model="Another processor"))
    assert not ready(Costs(elsewhere, folder=tmp_path), instance())[0].cached
    (sentence,) = said(caplog)
    assert "'A processor made by hand' there, 'Another processor' here" in sentence


def test_a_damaged_table_is_named_and_costs_are_measured_again(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    ready(Costs(SUBJECT, folder=tmp_path), instance())
    (path,) = tmp_path.iterdir()
    path.write_bytes(path.read_bytes()[:50])
    assert not ready(Costs(SUBJECT, folder=tmp_path), instance())[0].cached
    assert str(path) in said(caplog)[0]
    assert "measuring again" in said(caplog)[0]


def test_an_unwritable_folder_is_logged_once_and_the_run_still_uses_its_measurements(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "costs").write_text("in the way")
    costs = Costs(SUBJECT, folder=tmp_path / "costs" / "inside")
    first, _ = ready(costs, instance(0))
    ready(costs, instance(0, threads=2))
    assert ready(costs, instance(1))[0].cached
    costs.save_drift([(instance(0), model_after_run(first, 1.3))])
    assert len([sentence for sentence in said(caplog) if "cannot be written" in sentence]) == 1


# ------------------------------------------------------------------- corrected


def test_a_table_measured_on_a_loaded_machine_is_corrected_by_the_first_run(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    run(tmp_path, 0.7)
    message, drift = run(tmp_path, 0.7)
    assert message.cached
    assert message.measured == MEASURED, "the measurements do not change"
    assert drift == pytest.approx(0.7)
    assert any("predicted costs are 0.70 times the measured ones" in line for line in said(caplog, logging.INFO))
    before = CostModel(fit(message.measured), drift)
    truth = 0.7 * TRUTH.seconds(200, 40000)
    assert before.seconds(200, 40000) == pytest.approx(truth, rel=0.01)


def test_one_run_on_a_loaded_machine_does_not_change_the_drift_but_two_do(tmp_path: Path) -> None:
    run(tmp_path, 1.6)
    assert run(tmp_path, 1.6)[1] == 1.0
    assert run(tmp_path, 1.0)[1] == pytest.approx(1.6)
    assert run(tmp_path, 1.0)[1] == pytest.approx(1.0), "as many undisturbed runs reverse it"


def test_only_the_last_runs_are_saved(tmp_path: Path) -> None:
    for number in range(8):
        run(tmp_path, 1.0 + number / 100)
    (table,) = tables(tmp_path)
    assert table.runs == pytest.approx((1.03, 1.04, 1.05, 1.06, 1.07))


@pytest.mark.parametrize("batches", [0, SETTLED_BATCHES - 1])
def test_a_run_of_few_batches_is_not_saved(tmp_path: Path, batches: int) -> None:
    run(tmp_path, 0.7, batches=batches)
    assert tables(tmp_path)[0].runs == ()


def test_a_run_whose_batches_slow_down_is_not_saved(tmp_path: Path) -> None:
    costs = Costs(SUBJECT, folder=tmp_path)
    message, _ = ready(costs, instance())
    model = model_after_run(message, 1.0, 1000)
    for _ in range(30):
        model.observe(Work(1, 200, 40000), 2 * model.coefficients.seconds(200, 40000))
    costs.save_drift([(instance(), model)])
    assert tables(tmp_path)[0].runs == ()


def test_a_disturbed_instance_does_not_affect_the_drift_of_its_size(tmp_path: Path) -> None:
    run(tmp_path, 0.8, 1.9, 0.82)
    assert tables(tmp_path)[0].runs == pytest.approx((0.82,))


def test_the_drift_of_an_instance_is_saved_relative_to_the_table(tmp_path: Path) -> None:
    """The first was disturbed while it measured; while serving, both took as long as the second measured."""
    costs = Costs(SUBJECT, fresh=False, folder=tmp_path)
    disturbed, clean = instance(0), instance(1)
    slow, fast = measured_separately(costs, disturbed, 2.4), measured_separately(costs, clean, 1.0)
    costs.save_drift([(disturbed, model_after_run(slow, 1 / 2.4)), (clean, model_after_run(fast, 1.0))])

    (table,) = tables(tmp_path)
    assert table.measured == MEASURED
    assert table.runs == pytest.approx((1.0,), rel=0.02)


@pytest.mark.parametrize(("factor", "runs"), [(0.4, 1), (2.5, 2)])
def test_a_table_contradicted_by_batches_is_measured_again_and_this_is_logged(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, factor: float, runs: int
) -> None:
    for number in range(runs):
        assert run(tmp_path, factor)[0].cached == (number > 0)
    message, drift = run(tmp_path, 1.0)
    assert (message.cached, drift) == (False, 1.0)
    assert f"batches took {factor:.2f} times" in said(caplog)[0]
    assert tables(tmp_path)[0].runs == pytest.approx((1.0,)), "the drift of the other table is discarded"


def test_measuring_again_discards_the_observed_drift(tmp_path: Path) -> None:
    run(tmp_path, 0.7)
    message, drift = run(tmp_path, 0.7, batches=0, fresh=True)
    assert (message.cached, drift) == (False, 1.0)
    assert tables(tmp_path)[0].runs == ()


def test_a_table_that_another_run_has_measured_again_is_not_changed(tmp_path: Path) -> None:
    costs = Costs(SUBJECT, folder=tmp_path)
    message, _ = ready(costs, instance())
    other = Costs(SUBJECT, fresh=True, folder=tmp_path)
    ready(other, instance(), took=measured(1.1))
    costs.save_drift([(instance(), model_after_run(message, 0.7))])
    assert (tables(tmp_path)[0].measured, tables(tmp_path)[0].runs) == (measured(1.1), ())


# ------------------------------------------------------------- shown, and used


def test_info_shows_the_initial_drift_and_the_current_one(tmp_path: Path) -> None:
    run(tmp_path, 0.7)
    message, drift = run(tmp_path, 0.8)
    shown = cost_info(message, model_after_run(message, 0.8, 100, drift))
    assert (shown["source"], shown["drift_at_start"], shown["observed_batches"]) == ("cached", 0.7, 100)
    assert shown["drift"] == pytest.approx(0.8, rel=0.01)
    assert shown["per_token"] == pytest.approx(TRUTH.per_token, rel=0.01)


def factors_of(folder: Path, monkeypatch: pytest.MonkeyPatch, subject: CostKeyBase) -> Sequence[float]:
    monkeypatch.setenv("XDG_CACHE_HOME", str(folder.parents[1]))
    basis = basis_of(subject)
    return [basis.of(4).seconds(200, 40000) / TRUTH.seconds(200, 40000)] if basis.measured else []


def test_reports_predict_from_the_corrected_table_of_their_own_layout(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "launcher" / "costs"
    assert factors_of(folder, monkeypatch, SUBJECT) == []
    run(folder, 0.7)
    assert factors_of(folder, monkeypatch, SUBJECT) == pytest.approx([0.7], rel=0.01)
    assert factors_of(folder, monkeypatch, replace(SUBJECT, layout="padded")) == []
    assert basis_of(None).measured is False
