"""What is kept of the times that workers take to load a model, and what is proven for their successors."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import pytest

from launcher.core.lifecycle.start_limit import FACTOR, MAX_RUNS, MIN_SECONDS, inspect_after
from launcher.core.protocol.load_proof import LoadProof
from launcher.core.protocol.messages import Ready
from launcher.engine.load_proofs import LoadProofs
from launcher.engine.load_times import LoadTimes
from launcher.errors import UsageError
from launcher.host.files.load_times import read_load_times, write_load_times


class Subject:
    """A key base whose keys are those of a test."""

    def __init__(self, key: Any) -> None:
        self._key = key
        self.weights = "first"

    def key_of(self, threads: int, nodes: int, kinds: tuple[str, ...]) -> Any:
        return msgspec.structs.replace(self._key, threads=threads, nodes=nodes, kinds=kinds, weights=self.weights)

    def key(self, threads: int) -> Any:
        return self.key_of(threads, 1, ("core",))


@pytest.fixture
def subject() -> Any:
    from launcher.core.cost.cost_table import CostKey

    return Subject(
        CostKey(
            processor="cpu", arch="x86_64", isa=(), threads=1, nodes=1, kinds=(), model="demo",
            weights="",
            task="embed", max_length=128, dtype="bf16", backend="eager", batch_tokens=2048, layout="auto", torch="2",
            launcher="0",
        )
    )  # fmt: skip


def ready(seconds: float, proof: LoadProof | None = None) -> Ready:
    return Ready(1, 1, "bf16", "eager", 8, (), "2", 0.75 * seconds, 0.25 * seconds, (), None, proof=proof)


def test_a_worker_is_inspected_after_a_multiple_of_the_longest_time() -> None:
    assert inspect_after(()) is None
    assert inspect_after((0.1, 0.2)) == MIN_SECONDS
    assert inspect_after((100.0, 3.0)) == 100.0 * FACTOR


def test_times_of_this_run_and_of_earlier_runs_count(subject: Any, tmp_path: Path) -> None:
    first = LoadTimes(subject, tmp_path)
    assert first.inspect_after() is None, "the first time, only --start-seconds holds"
    first.save(ready(20.0))
    first.save(ready(10.0))
    assert first.inspect_after() == 20.0 * FACTOR
    assert LoadTimes(subject, tmp_path).inspect_after() == 20.0 * FACTOR
    for run in range(MAX_RUNS):
        LoadTimes(subject, tmp_path).save(ready(4.0 + run))
    assert LoadTimes(subject, tmp_path).inspect_after() == (3.0 + MAX_RUNS) * FACTOR


def test_a_damaged_file_is_reported_and_replaced(
    subject: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    LoadTimes(subject, tmp_path).save(ready(20.0))
    (path,) = tmp_path.iterdir()
    for content in (b"[1,", b"[-1.0]", b'"x"'):
        path.write_bytes(content)
        with pytest.raises(UsageError, match="damaged"):
            read_load_times(path)
    times = LoadTimes(subject, tmp_path)
    assert times.inspect_after() is None
    assert "damaged" in caplog.text
    times.save(ready(30.0))
    assert read_load_times(path) == (30.0,)


def test_a_folder_that_cannot_be_written_is_not_an_error(subject: Any, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match="cannot be written"):
        write_load_times(tmp_path / "file" / "times", (1.0,))
    times = LoadTimes(subject, tmp_path / "file")
    times.save(ready(20.0))
    assert times.inspect_after() == 20.0 * FACTOR


def test_a_proof_holds_for_equal_instances_with_the_same_files_until_a_worker_fails(subject: Any, setup: Any) -> None:
    proof = LoadProof(0, ("prepacked",), 0.999, ())
    proofs = LoadProofs(subject)
    assert proofs.with_proof(setup, 2).proof is None
    proofs.save(2, ready(1.0, proof))
    assert proofs.with_proof(setup, 2).proof == proof
    assert proofs.with_proof(setup, 4).proof is None, "another number of threads"
    subject.weights = "changed"
    assert proofs.with_proof(setup, 2).proof is None
    subject.weights = "first"
    proofs.forget(2)
    assert proofs.with_proof(setup, 2).proof is None


@pytest.fixture
def setup() -> Any:
    from launcher.core.protocol.messages import Setup
    from tests.worker.conftest import make_model_info

    return Setup(make_model_info(), "bf16", "eager", ())
