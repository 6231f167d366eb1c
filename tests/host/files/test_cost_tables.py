"""Cost tables as files: read back, damaged, not writable; and fingerprints of the model's files."""

from __future__ import annotations

import os
from pathlib import Path

import msgspec
import pytest

from launcher.core.cost.cost_table import SCHEMA, CostKey, CostTable, file_name
from launcher.errors import UsageError
from launcher.host.files.cost_tables import (
    cost_folder,
    read_related_tables,
    read_table,
    weights_fingerprint,
    write_table,
)
from launcher.host.model.resolve import resolve
from launcher.options import ModelOptions

KEY = CostKey(
    processor="EPYC 9654", arch="x86_64", isa=(), threads=12, nodes=1, kinds=(), model="a/b", weights="f00d",
    task="embed", max_length=256, dtype="bf16", backend="eager", batch_tokens=2048, layout="auto",
    torch="2.13", launcher="0.1",
)  # fmt: skip
TABLE = CostTable(SCHEMA, KEY, True, ((1, 16, 256, 0.004),))


def test_a_written_table_is_read_back_and_no_other_file_remains(tmp_path: Path) -> None:
    folder = tmp_path / "launcher" / "costs"
    assert read_table(folder, KEY) is None
    path = write_table(folder, TABLE)
    assert write_table(folder, TABLE) == path
    assert read_table(folder, KEY) == TABLE
    assert list(folder.iterdir()) == [path]


def test_tables_of_other_sizes_are_relatives_and_damaged_ones_are_skipped(tmp_path: Path) -> None:
    for threads in (1, 4):
        write_table(tmp_path, msgspec.structs.replace(TABLE, key=msgspec.structs.replace(KEY, threads=threads)))
    (tmp_path / file_name(msgspec.structs.replace(KEY, threads=2))).write_text("{")
    write_table(tmp_path, msgspec.structs.replace(TABLE, key=msgspec.structs.replace(KEY, model="c/d")))
    assert sorted(table.key.threads for table in read_related_tables(tmp_path, KEY)) == [1, 4]


def test_the_error_names_a_damaged_file(tmp_path: Path) -> None:
    path = tmp_path / file_name(KEY)
    path.write_bytes(b"\x00\xff" * 100)
    with pytest.raises(UsageError, match=f"{path}.*damaged"):
        read_table(tmp_path, KEY)
    path.write_bytes(b" " * (2 << 20))
    with pytest.raises(UsageError, match="more than 1048576 bytes"):
        read_table(tmp_path, KEY)


def test_a_folder_that_cannot_be_created_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match="cannot be written"):
        write_table(tmp_path / "file" / "costs", TABLE)


def test_the_folder_is_in_the_users_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cost_folder() == tmp_path / "launcher" / "costs"
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cost_folder() == tmp_path / ".cache" / "launcher" / "costs"


def test_the_fingerprint_of_a_model_changes_with_its_files(tmp_path: Path) -> None:
    model_info = msgspec.structs.replace(resolve(ModelOptions(model="random:tiny")), shape=None, folder=str(tmp_path))
    (tmp_path / "config.json").write_text("{}")
    weights = tmp_path / "model.safetensors"
    weights.write_bytes(b"1234")
    first = weights_fingerprint(model_info)
    assert weights_fingerprint(model_info) == first
    os.utime(weights, (1, 1))
    touched = weights_fingerprint(model_info)
    (tmp_path / "config.json").write_text("{ }")
    assert len({first, touched, weights_fingerprint(model_info)}) == 3
    (tmp_path / "README.md").write_text("words")
    assert weights_fingerprint(model_info) == weights_fingerprint(model_info)


def test_the_fingerprint_of_a_model_whose_folder_is_gone_is_another_one(tmp_path: Path) -> None:
    model_info = msgspec.structs.replace(resolve(ModelOptions(model="random:tiny")), shape=None, folder=str(tmp_path))
    (tmp_path / "config.json").write_text("{}")
    gone = msgspec.structs.replace(model_info, folder=str(tmp_path / "gone"))
    assert weights_fingerprint(gone) not in ("", weights_fingerprint(model_info))
    (tmp_path / "config.json").unlink()
    assert weights_fingerprint(gone) != weights_fingerprint(model_info), "the folder counts as well"
