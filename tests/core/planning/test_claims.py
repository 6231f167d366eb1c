"""Which cores are free when other launchers have claimed some."""

from __future__ import annotations

from typing import Any

import pytest

from launcher.core.machine.topology import Machine
from launcher.core.planning.claims import Claim, chosen, claimed_cpus, overlapping, refused, without_claimed
from launcher.core.planning.plan import PlanRequest, make_plan
from launcher.errors import MachineError, UsageError
from tests.core.by_hand import machine


def claim(cpus: tuple[int, ...], name: str = "demo-8000", pid: int = 7) -> Claim:
    return Claim(name, pid, "ann", "serve", "http://127.0.0.1:8000", "demo", cpus, 0.0)


@pytest.fixture
def smt() -> Machine:
    """Four cores with two hardware threads each: cpus 0 and 4, 1 and 5, …"""
    return machine(((4,),))


def test_a_core_is_taken_if_any_of_its_cpus_is_claimed(smt: Machine) -> None:
    free = without_claimed(smt, [claim((5,)), claim((2, 6))])
    assert [core.cpus for core in free.cores] == [(0, 4), (3, 7)]
    (warning,) = set(free.warnings) - set(smt.warnings)
    assert "2 of 4 usable cores" in warning
    assert "'demo-8000' (pid 7, user ann, http://127.0.0.1:8000, cpus 2,6)" in warning


def test_claims_on_other_cpus_change_nothing(smt: Machine) -> None:
    assert without_claimed(smt, [claim((8, 9))]) is smt
    assert without_claimed(smt, []) is smt


def test_no_free_core_is_refused_and_the_message_names_all_claims(smt: Machine) -> None:
    with pytest.raises(MachineError) as error:
        without_claimed(smt, [claim((0, 1, 2)), claim((3,), "other", 9)])
    assert "no core of 4 is free" in str(error.value)
    for expected in ("'demo-8000' (pid 7", "'other' (pid 9", "launch stop", "--shared-cores"):
        assert expected in str(error.value)


def test_the_error_of_a_plan_mentions_claims_only_if_there_are_some(smt: Machine) -> None:
    error = MachineError("too few")
    assert refused(error, smt, [claim((9,))]) is error
    assert "cores claimed by 'demo-8000'" in str(refused(error, smt, [claim((1,))]))


@pytest.mark.parametrize("reserve", [0, 1])
def test_a_plan_claims_all_cpus_of_its_cores_and_of_the_front(smt: Machine, reserve: int) -> None:
    plan = make_plan(smt, PlanRequest(instances=1, cores_per_instance=2, reserve_cores=reserve))
    cpus = claimed_cpus(smt, plan)
    assert len(cpus) == 2 * (2 + reserve)
    assert set(plan.instances[0].cpus) | set(plan.reserved_cpus) <= set(cpus)
    assert not set(plan.unused_cpus) & set(cpus)
    rest = without_claimed(smt, [claim(cpus)])
    assert not set(claimed_cpus(rest, make_plan(rest, PlanRequest(instances=1)))) & set(cpus)


def test_overlapping_claims_share_a_cpu() -> None:
    one, two = claim((0, 1)), claim((2,), "two")
    assert overlapping([one, two], [1, 5]) == (one,)
    assert overlapping([one, two], []) == ()


def test_launchers_are_chosen_by_name_or_process_id() -> None:
    claims = [claim((0,), "one", 11), claim((1,), "two", 12), claim((2,), "two", 13)]
    assert chosen(claims, ["one", "13", "11"]) == (claims[0], claims[2])
    for words, reason in ((["absent"], "running: one, two, two"), (["two"], "use a process ID: 12, 13")):
        with pytest.raises(UsageError, match=reason):
            chosen(claims, words)


def test_a_title_has_no_address_without_http() -> None:
    values: dict[str, Any] = {"name": "sh", "pid": 1, "user": "ann", "kind": "run", "cpus": (0, 1), "since": 0.0}
    assert Claim(address=None, model=None, **values).title == "'sh' (pid 1, user ann, cpus 0-1)"
