"""A class of the user's own in a Python program: the image classifier of docs/custom-tasks.md."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from launcher import AsyncEngine, Engine
from launcher.errors import RequestError, UsageError
from tests.custom_task_example import png, save_vit, write_example

pytestmark = pytest.mark.slow

OPTIONS = {"task": "images:ImageClassifier", "dtype": "fp32", "instances": 1, "batch_tokens": 800}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("images")
    write_example(folder)
    save_vit(folder / "vit")
    return folder


def test_an_engine_runs_a_class_of_the_users_own(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(folder))
    monkeypatch.setenv("PYTHONPATH", str(folder))
    images = [png("red"), png("blue"), png("red")]
    with Engine(folder / "vit", **OPTIONS) as engine:
        first, second, third = engine.predict(images)
        assert first == third
        assert first != second
        assert {entry["label"] for entry in first} == {"cat", "dog", "bird"}
        assert list(engine.predict_stream(iter(images))) == [first, second, third]
        with pytest.raises(RequestError, match=r"'items\[1\]' is invalid: not an image in base64"):
            engine.predict([images[0], "bm8="])
        with pytest.raises(UsageError, match=r"'items\[0\]' cannot be expressed in JSON"):
            engine.predict([object()])
        with pytest.raises(UsageError, match=r"not 'embed'; use predict\(\)"):
            engine.embed(["a text"])

    async def run() -> object:
        async with AsyncEngine(folder / "vit", **OPTIONS) as engine:
            return await engine.predict(images)

    assert asyncio.run(run()) == [first, second, third]


def test_predict_needs_a_class_of_the_users_own() -> None:
    with Engine("random:tiny", instances=1, backend="fake") as engine, pytest.raises(UsageError, match="not 'custom'"):
        engine.predict(["a text"])
