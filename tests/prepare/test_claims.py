"""Claims and plans together: conflicts during a start, a new plan of a running launcher, and reports."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from launcher.core.planning.claims import Claim, refused, without_claimed
from launcher.core.planning.plan import PlanRequest, make_plan
from launcher.errors import MachineError
from launcher.host.registry import Held, Registry
from launcher.options import MachineOptions
from launcher.prepare.claims import ATTEMPTS, Holder, prepare_and_claim, prepare_report
from launcher.prepare.prepared_instances import Prepared
from tests.core.by_hand import machine

FOUR = machine(((4,),), threads=1)
HOLDER = Holder("serve", "org/model:8000")


@pytest.fixture(autouse=True)
def registry(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Registry:
    """The registry of this test."""
    monkeypatch.setenv("LAUNCH_REGISTRY", str(tmp_path / "registry"))
    return Registry([tmp_path / "registry"])


def plan_of(cores: int, claims: Sequence[Claim]) -> Prepared:
    free = without_claimed(FOUR, claims)
    try:
        plan = make_plan(free, PlanRequest(instances=1, cores_per_instance=cores, reserve_cores=0))
    except MachineError as error:
        raise refused(error, FOUR, claims) from error
    return Prepared(free, None, plan, (), free.warnings)


def start(cores: int, held: Held | None = None, **options: object) -> tuple[tuple[int, ...], Held]:
    wanted = replace(MachineOptions(), **options)  # type: ignore[arg-type]
    prepared, claim = prepare_and_claim(wanted, HOLDER, lambda claims: plan_of(cores, claims), held)
    return prepared.plan.instances[0].cpus, claim


def test_each_start_takes_what_is_left(registry: Registry) -> None:
    one, first = start(1)
    three, second = start(3)
    assert sorted(one + three) == [0, 1, 2, 3]
    assert {claim.name for claim in registry.read().claims} == {"org-model-8000"}
    with pytest.raises(MachineError, match="no core of 4 is free"):
        start(1)
    shared, third = start(2, shared_cores=True)
    assert len(shared) == 2
    for claim in (first, second, third):
        claim.release()
    assert start(4)[0] == (0, 1, 2, 3)


def test_a_plan_that_does_not_fit_names_the_claims(registry: Registry) -> None:
    _, held = start(2)
    with pytest.raises(MachineError, match="not counted are the cores claimed by 'org-model-8000'"):
        start(3)
    held.release()


def test_a_new_plan_of_the_same_launcher_may_use_its_own_cores_and_no_others(registry: Registry) -> None:
    _, old = start(2)
    _, rival = start(1)
    cpus, new = start(3, old)
    assert cpus == (0, 1, 3)
    assert len(registry.read().claims) == 3, "the old cores are in use until the change has ended"
    with pytest.raises(MachineError, match="not counted are the cores"):
        start(4, new)
    since = registry.read().claims[0].since
    for claim in (old, rival):
        claim.release()
    assert [(claim.cpus, claim.since) for claim in registry.read().claims] == [((0, 1, 3), since)]
    assert start(4, new)[0] == (0, 1, 2, 3)
    new.release()


def test_cores_that_are_claimed_during_a_start_are_not_used(registry: Registry) -> None:
    rivals: list[Held] = []

    def prepare(claims: Sequence[Claim]) -> Prepared:
        prepared = plan_of(1, claims)
        if not rivals:
            rivals.append(start(1)[1])
        return prepared

    prepared, held = prepare_and_claim(MachineOptions(), HOLDER, prepare)
    assert prepared.plan.instances[0].cpus == (1,)
    for claim in (held, *rivals):
        claim.release()


def test_a_start_that_always_loses_ends(registry: Registry) -> None:
    rivals: list[Held] = []

    def prepare(claims: Sequence[Claim]) -> Prepared:
        for rival in rivals:
            rival.release()
        prepared = plan_of(1, ())
        rivals.append(start(1)[1])
        return prepared

    with pytest.raises(MachineError, match=f"claimed the planned cores {ATTEMPTS} times"):
        prepare_and_claim(MachineOptions(), HOLDER, prepare)
    rivals[-1].release()


def test_a_report_shows_what_would_start_or_why_nothing_would(registry: Registry) -> None:
    _, held = start(2)
    fitting = prepare_report(MachineOptions(), lambda claims: plan_of(2, claims))
    assert fitting.plan.instances[0].cpus == (2, 3)
    assert any("2 of 4 usable cores" in text for text in fitting.warnings)
    whole = prepare_report(MachineOptions(), lambda claims: plan_of(4, claims))
    assert whole.plan.instances[0].cpus == (0, 1, 2, 3)
    assert any(text.startswith("A start would be refused now: ") for text in whole.warnings)
    with pytest.raises(MachineError, match="5"):
        prepare_report(MachineOptions(), lambda claims: plan_of(5, claims))
    elsewhere = replace(MachineOptions(), machine_file=Path("c5.metal"))
    assert prepare_report(elsewhere, lambda claims: plan_of(4, claims)).warnings == FOUR.warnings
    held.release()


def test_what_cannot_be_read_is_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "registry").symlink_to(tmp_path)
    report = prepare_report(MachineOptions(), lambda claims: plan_of(1, claims))
    assert [text for text in report.warnings if "Launchers of other users may be unknown" in text]
    start(1)[1].release()
    assert "Launchers of other users may be unknown" in caplog.text
