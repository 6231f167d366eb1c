"""Cost tables: what they apply to, and the messages about those that do not apply."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from launcher.core.cost.cost_table import (
    SCHEMA,
    CostKey,
    CostTable,
    decode_table,
    differences,
    encode_table,
    file_name,
    file_stem,
    merged,
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
def test_a_table_survives_encoding_and_decoding(packed: bool, measured: list[tuple[int, int, int, float]]) -> None:
    table = CostTable(SCHEMA, KEY, packed, tuple(measured))
    assert decode_table(encode_table(table)) == table


@given(st.binary(max_size=400))
def test_any_other_bytes_raise_a_usage_error(data: bytes) -> None:
    with pytest.raises(UsageError):
        decode_table(data)


@given(st.integers(0, len(encode_table(TABLE)) - 3))
def test_a_truncated_table_is_damaged(length: int) -> None:
    with pytest.raises(UsageError, match="damaged"):
        decode_table(encode_table(TABLE)[:length])


@pytest.mark.parametrize("measured", [(), ((1, 16, 256, 0.0),), ((1, 16, 256, -1.0),), ((1, 0, 0, 1.0),)])
def test_a_table_with_impossible_measurements_is_damaged(measured: tuple[tuple[int, int, int, float], ...]) -> None:
    with pytest.raises(UsageError, match="no measurements, or impossible ones"):
        decode_table(encode_table(msgspec.structs.replace(TABLE, measured=measured)))


def test_another_schema_is_named() -> None:
    with pytest.raises(UsageError, match="schema 9"):
        decode_table(encode_table(msgspec.structs.replace(TABLE, schema=9)))


@pytest.mark.parametrize(("field", "value"), ELSEWHERE.items())
def test_another_machine_or_version_has_the_same_file_and_the_difference_is_named(field: str, value: object) -> None:
    other = msgspec.structs.replace(KEY, **{field: value})
    assert file_name(other) == file_name(KEY)
    (said,) = differences(other, KEY)
    shown = ", ".join(value) if isinstance(value, tuple) else value
    assert str(shown) in said
    assert said.endswith("here")
    assert differences(KEY, KEY) == ()


def test_instances_of_other_sizes_have_their_own_files_with_the_same_stem() -> None:
    for change in ({"threads": 6}, {"nodes": 2}, {"kinds": ("efficiency",)}):
        other = msgspec.structs.replace(KEY, **change)
        assert file_name(other) != file_name(KEY)
        assert file_stem(other) == file_stem(KEY)


def test_another_model_or_other_settings_have_another_stem() -> None:
    for change in (
        {"model": "other/demo"},
        {"dtype": "fp32"},
        {"backend": "compile"},
        {"batch_tokens": 512},
        {"layout": "padded"},
    ):
        assert file_stem(msgspec.structs.replace(KEY, **change)) != file_stem(KEY)


@pytest.mark.parametrize(
    ("runs", "drift"),
    [((), 1.0), ((0.6,), 0.6), ((1.6,), 1.0), ((1.6, 1.5), 1.5), ((1.6, 0.9), 1.0), ((0.6, 0.9, 1.6, 1.5, 0.5), 0.9)],
)
def test_the_drift_is_the_lower_median_of_the_runs_and_the_measurement(runs: tuple[float, ...], drift: float) -> None:
    assert msgspec.structs.replace(TABLE, runs=runs).drift == drift


@given(st.lists(st.floats(0.1, 10), max_size=12))
def test_only_the_last_runs_are_kept_and_the_measurements_do_not_change(runs: list[float]) -> None:
    table = TABLE
    for run in runs:
        table = table.with_run(run)
    assert table.runs == tuple(runs[-5:])
    assert (table.measured, table.key) == (TABLE.measured, KEY)
    assert decode_table(encode_table(table)) == table


@pytest.mark.parametrize("run", [0.0, -1.0, float("inf")])
def test_a_table_with_impossible_runs_is_damaged(run: float) -> None:
    with pytest.raises(UsageError, match="damaged"):
        decode_table(encode_table(msgspec.structs.replace(TABLE, runs=(run,))))


def test_merging_tables_of_equal_instances_keeps_the_shorter_times() -> None:
    slower_first = msgspec.structs.replace(TABLE, measured=((1, 16, 256, 0.009), (8, 2048, 524288, 0.2)))
    assert [m[3] for m in merged(TABLE, slower_first).measured] == [0.004, 0.2]
    assert merged(None, TABLE) == TABLE
    padded = msgspec.structs.replace(TABLE, packed=False)
    assert merged(TABLE, padded) == padded
