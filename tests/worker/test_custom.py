"""Custom classes in a worker: what is checked, and what their failures look like."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from launcher.core.protocol.messages import Run, Setup
from launcher.custom_task import load_custom_task
from launcher.errors import UsageError
from launcher.host.model.resolve import resolve
from launcher.options import ModelOptions
from launcher.options.option import ClassPath
from launcher.worker.backends.custom import CustomBackend
from launcher.worker.interfaces import ItemBatch, ModelError
from launcher.worker.loop import BatchError, check_output, checked_batch

COUNTER = """
class Counter:
    max_size = 40
    def size(self, item): return len(item["words"])
    def load(self, model, dtype): self.loaded = (model, dtype)
    def sample(self, size): return {"words": ["x"] * size}
    def run(self, items): return [{"words": len(item["words"]), "loaded": self.loaded} for item in items]
"""


@pytest.fixture
def write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> Any:
    """Write a module of a name that no other test uses; returns the name."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))

    def write_(code: str) -> str:
        name = f"custom_{abs(hash((request.node.name, code))) % 10**9}"
        (tmp_path / f"{name}.py").write_text(code)
        return name

    return write_


def backend_of(place: str, **options: Any) -> CustomBackend:
    model_info = resolve(ModelOptions(task=ClassPath(place), model="weights.pt", **options))
    return CustomBackend(Setup(model_info, "fp32", "eager", ()), 1)


def test_items_go_in_and_results_come_out_as_json(write: Any) -> None:
    backend = backend_of(f"{write(COUNTER)}:Counter")
    loaded = backend.load(lambda *_: None)
    assert loaded.packed

    batch = ItemBatch(
        backend.sample_batch([3]).ids, (3, 1), payloads=[b'{"words":["a","b","c"]}', b'{"words":["\xc3\xa4"]}']
    )
    output = backend.run(batch)

    ends = output.rows[0]
    values = output.values.tobytes()
    assert values[:ends] == b'{"words":3,"loaded":["weights.pt","fp32"]}'
    assert values[ends:] == b'{"words":1,"loaded":["weights.pt","fp32"]}'
    assert output.computed_tokens == 4


def test_the_metadata_is_that_of_the_class(write: Any) -> None:
    module = write(COUNTER.replace("max_size = 40", "max_size = 40; name = 'words'; weight_bytes = 1000"))
    found = resolve(ModelOptions(task=ClassPath(f"{module}:Counter")))
    assert (found.task, found.name, found.max_length, found.weight_bytes) == ("custom", "words", 40, 1000)
    assert (found.rows, found.result_width, found.notes) == ("bytes", 1, ())
    lowered = resolve(ModelOptions(task=ClassPath(f"{module}:Counter"), max_length=8))
    assert lowered.max_length == 8
    with pytest.raises(UsageError, match="--backend fake: a custom class runs only with --backend eager"):
        resolve(ModelOptions(task=ClassPath(f"{module}:Counter"), backend="fake"))


@pytest.mark.parametrize(
    ("code", "place", "message"),
    [
        (COUNTER, "no_such_module_here:Counter", "there is no module 'no_such_module_here'; it must be installed"),
        (COUNTER, "{}:Other", "has no class 'Other'"),
        ("import no_such_package", "{}:Counter", "there is no module 'no_such_package'"),
        ("1 / 0", "{}:Counter", "importing .* failed: ZeroDivisionError"),
        (COUNTER.replace("def run", "def walk"), "{}:Counter", "the class lacks run; see CustomTask"),
        (
            COUNTER.replace("max_size = 40", "max_size = 0"),
            "{}:Counter",
            "max_size is 0; it must be a positive integer",
        ),
        (COUNTER.replace("max_size = 40", "max_size = True"), "{}:Counter", "max_size is True"),
        (COUNTER + "    def __init__(self, x): pass", "{}:Counter", r"creating Counter\(\) failed: TypeError"),
        (
            COUNTER.replace("max_size = 40", "max_size = 40; weight_bytes = 'big'"),
            "{}:Counter",
            "weight_bytes is 'big'",
        ),
    ],
)
def test_a_class_that_cannot_be_served_is_refused(write: Any, code: str, place: str, message: str) -> None:
    place = place.format(write(code))
    with pytest.raises(UsageError, match=message) as error:
        resolve(ModelOptions(task=ClassPath(place)))
    assert str(error.value).startswith(f"--task {place}: ")


@pytest.mark.parametrize(
    ("run", "message"),
    [
        ("items[:1]", "run must return a list of 2 results, found 1 results"),
        ("dict()", "run must return a list of 1 results, found dict"),
        ("[{1, 2} for item in items] and [object() for item in items]", "run returned what JSON cannot express"),
    ],
)
def test_results_that_do_not_belong_to_the_items_are_refused_at_start(write: Any, run: str, message: str) -> None:
    code = COUNTER[: COUNTER.index("    def run")] + f"    def run(self, items): return {run}\n"
    backend = backend_of(f"{write(code)}:Counter")
    with pytest.raises(ModelError, match=message):
        backend.load(lambda *_: None)


def test_samples_may_have_the_nearest_size_but_none_out_of_range(write: Any) -> None:
    even = COUNTER.replace('["x"] * size', '["x"] * (2 * ((size + 1) // 2))')
    backend = backend_of(f"{write(even)}:Counter")
    assert list(backend.sample_batch((9, 8, 3)).lengths) == [10, 8, 4]
    empty = backend_of(f"{write(COUNTER.replace('* size', '* 0'))}:Counter")
    with pytest.raises(ModelError, match=r"sample\(3\) returned an item of size 0"):
        empty.sample_batch((3,))


def test_the_loop_checks_payloads_and_results(write: Any) -> None:
    backend = backend_of(f"{write(COUNTER)}:Counter")
    backend.load(lambda *_: None)
    info = resolve(ModelOptions(task=ClassPath(backend._place)))
    payloads = (b'{"words":["a"]}', b'{"words":["b"]}')
    run = Run(1, (1, 1), payload_bytes=tuple(map(len, payloads)))
    batch = checked_batch(run, b"".join(payloads), info)
    assert list(batch.payloads) == list(payloads)
    output = backend.run(batch)
    check_output(output, run, info)
    with pytest.raises(BatchError, match="expected 2 items in 3 bytes"):
        checked_batch(run, b"abc", info)
    with pytest.raises(BatchError, match="expected 2 items in 15 bytes"):
        checked_batch(Run(1, (1, 1), payload_bytes=(15,)), payloads[0], info)


def test_a_module_in_the_current_folder_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.path", [path for path in __import__("sys").path if path != str(tmp_path)])
    (tmp_path / "only_in_this_folder.py").write_text(COUNTER)
    assert load_custom_task("only_in_this_folder:Counter").size({"words": [1, 2]}) == 2
