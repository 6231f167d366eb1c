"""What a cost table holds for, and what is said of one that does not fit."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from launcher.core.cost.table import (
    SCHEMA,
    CostKey,
    CostTable,
    decode_table,
    differences,
    encode_table,
    merged,
    name_of,
    stem_of,
)
from launcher.errors import UsageError

KEY = CostKey(
    processor="EPYC 9654", arch="x86_64", isa=("avx512_bf16",), threads=12, nodes=1, kinds=("performance",),
    model="demo", weights="f00d", task="embed", max_length=256, dtype="bf16", backend="eager", batch_tokens=2048,
    layout="auto", torch="2.13.0", launcher="0.1.0",
)  # fmt: skip
TABLE = CostTable(SCHEMA, KEY, True, ((1, 16, 256, 0.004), (8, 2048, 524288, 0.3)))
ELSEWHERE = {
    "processor": "Xeon 8480+", "isa": ("amx_bf16",), "torch": "2.4.0", "launcher": "0.2.0", "weights": "beef",
}  # fmt: skip


@given(
    st.booleans(),
    st.lists(
        st.tuples(st.integers(1, 64), st.integers(1, 4096), st.integers(1, 10**7), st.floats(1e-6, 100.0)), min_size=1
    ),
)
def test_a_table_is_read_as_it_was_written(packed: bool, measured: list[tuple[int, int, int, float]]) -> None:
    table = CostTable(SCHEMA, KEY, packed, tuple(measured))
    assert decode_table(encode_table(table)) == table


@given(st.binary(max_size=400))
def test_any_other_bytes_are_refused_and_nothing_else_is_raised(data: bytes) -> None:
    with pytest.raises(UsageError):
        decode_table(data)


@given(st.integers(0, len(encode_table(TABLE)) - 3))
def test_a_table_that_was_cut_off_is_damaged(length: int) -> None:
    with pytest.raises(UsageError, match="damaged"):
        decode_table(encode_table(TABLE)[:length])


@pytest.mark.parametrize("measured", [(), ((1, 16, 256, 0.0),), ((1, 16, 256, -1.0),), ((1, 0, 0, 1.0),)])
def test_measurements_that_cannot_be_are_damage(measured: tuple[tuple[int, int, int, float], ...]) -> None:
    with pytest.raises(UsageError, match="no measurements, or some that cannot be"):
        decode_table(encode_table(msgspec.structs.replace(TABLE, measured=measured)))


def test_another_schema_is_named() -> None:
    with pytest.raises(UsageError, match="schema 9"):
        decode_table(encode_table(msgspec.structs.replace(TABLE, schema=9)))


@pytest.mark.parametrize(("field", "value"), ELSEWHERE.items())
def test_another_machine_or_version_lies_in_the_same_place_and_the_difference_is_said(
    field: str, value: object
) -> None:
    other = msgspec.structs.replace(KEY, **{field: value})
    assert name_of(other) == name_of(KEY)
    (said,) = differences(other, KEY)
    shown = ", ".join(value) if isinstance(value, tuple) else value
    assert str(shown) in said
    assert said.endswith("here")
    assert differences(KEY, KEY) == ()


def test_instances_of_other_sizes_have_tables_of_their_own_and_the_same_stem() -> None:
    for change in ({"threads": 6}, {"nodes": 2}, {"kinds": ("efficiency",)}):
        other = msgspec.structs.replace(KEY, **change)
        assert name_of(other) != name_of(KEY)
        assert stem_of(other) == stem_of(KEY)


def test_another_model_or_way_of_running_it_has_another_stem() -> None:
    for change in (
        {"model": "other/demo"},
        {"dtype": "fp32"},
        {"backend": "compile"},
        {"batch_tokens": 512},
        {"layout": "padded"},
    ):
        assert stem_of(msgspec.structs.replace(KEY, **change)) != stem_of(KEY)


@pytest.mark.parametrize(
    ("runs", "drift"),
    [((), 1.0), ((0.6,), 0.6), ((1.6,), 1.0), ((1.6, 1.5), 1.5), ((1.6, 0.9), 1.0), ((0.6, 0.9, 1.6, 1.5, 0.5), 0.9)],
)
def test_the_lower_median_of_the_runs_and_of_the_measurement_is_expected(runs: tuple[float, ...], drift: float) -> None:
    assert msgspec.structs.replace(TABLE, runs=runs).drift == drift


@given(st.lists(st.floats(0.1, 10), max_size=12))
def test_no_more_than_the_last_runs_are_remembered_and_what_was_measured_stays(runs: list[float]) -> None:
    table = TABLE
    for run in runs:
        table = table.after(run)
    assert table.runs == tuple(runs[-5:])
    assert (table.measured, table.key) == (TABLE.measured, KEY)
    assert decode_table(encode_table(table)) == table


@pytest.mark.parametrize("run", [0.0, -1.0, float("inf")])
def test_runs_that_cannot_be_are_damage(run: float) -> None:
    with pytest.raises(UsageError, match="damaged"):
        decode_table(encode_table(msgspec.structs.replace(TABLE, runs=(run,))))


def test_of_equal_instances_the_shorter_times_are_kept() -> None:
    slower_first = msgspec.structs.replace(TABLE, measured=((1, 16, 256, 0.009), (8, 2048, 524288, 0.2)))
    assert [m[3] for m in merged(TABLE, slower_first).measured] == [0.004, 0.2]
    assert merged(None, TABLE) == TABLE
    padded = msgspec.structs.replace(TABLE, packed=False)
    assert merged(TABLE, padded) == padded
