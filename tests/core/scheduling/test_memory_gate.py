"""Admission by the memory that is left."""

from __future__ import annotations

from launcher.core.scheduling.memory_gate import MIB, MemoryGate


def test_it_closes_below_the_reserve_and_opens_with_more() -> None:
    gate = MemoryGate(100 * MIB)
    assert not gate.update(1000 * MIB, 900 * MIB)
    assert gate.update(1000 * MIB, 901 * MIB)
    assert gate.reason is not None
    assert "901 MiB of 1000 MiB are used, and 100 MiB are kept free" in gate.reason
    assert not gate.update(1000 * MIB, 851 * MIB), "not as much is free as is needed to open"
    assert gate.reason is not None
    assert gate.update(1000 * MIB, 850 * MIB)
    assert gate.reason is None


def test_without_a_limit_it_is_open() -> None:
    gate = MemoryGate(100 * MIB)
    gate.update(1000 * MIB, 950 * MIB)
    assert gate.update(None, 0)
    assert gate.reason is None
    assert not gate.update(None, 0)


def test_a_reserve_of_zero_never_closes_it() -> None:
    gate = MemoryGate(0)
    gate.became_ready(1000 * MIB, 500 * MIB)
    assert not gate.update(1000 * MIB, 1000 * MIB)


def test_a_derived_reserve_is_5_percent_of_the_limit_within_bounds() -> None:
    for limit, reserve in ((400, 32), (2000, 100), (100_000, 512)):
        gate = MemoryGate()
        gate.became_ready(limit * MIB, 0)
        assert not gate.update(limit * MIB, (limit - reserve) * MIB)
        assert gate.update(limit * MIB, (limit - reserve) * MIB + 1)


def test_a_derived_reserve_does_not_close_a_server_that_fits_its_limit_barely() -> None:
    gate = MemoryGate()
    assert not gate.update(1000 * MIB, 999 * MIB), "not ready yet"
    gate.became_ready(1000 * MIB, 980 * MIB)
    gate.became_ready(1000 * MIB, 100 * MIB)  # only the first counts
    assert not gate.update(1000 * MIB, 990 * MIB)
    assert gate.update(1000 * MIB, 991 * MIB)
    assert gate.update(1000 * MIB, 985 * MIB)


def test_a_limit_that_changes_later_counts_with_what_the_server_needs() -> None:
    gate = MemoryGate()
    gate.became_ready(10_000 * MIB, 1000 * MIB)
    assert not gate.update(1020 * MIB, 1010 * MIB), "a lower limit, which the server fits barely"
    assert gate.update(1020 * MIB, 1011 * MIB)

    gate = MemoryGate()
    gate.became_ready(None, 0)
    assert not gate.update(None, 0)
    assert not gate.update(1000 * MIB, 500 * MIB)
    assert gate.update(1000 * MIB, 951 * MIB), "a limit that was set later"


def test_more_instances_that_fit_their_limit_barely_do_not_close_it() -> None:
    gate = MemoryGate()
    gate.became_ready(1000 * MIB, 200 * MIB)
    gate.instances_changed(1000 * MIB, 980 * MIB)
    assert not gate.update(1000 * MIB, 990 * MIB)
    assert gate.update(1000 * MIB, 991 * MIB)
