"""A custom class behind a real server: the image classifier of docs/custom-tasks.md."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.custom_task_example import png, save_vit, write_example
from tests.e2e.running import Launch, Running, running

pytestmark = pytest.mark.slow

COLORS = ["red", "green", "blue", "white", "orange", "purple", "gray", "pink"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("images")
    write_example(folder)
    save_vit(folder / "vit")
    return folder


@pytest.fixture(scope="module")
def server(folder: Path, launch: Launch) -> Iterator[Running]:
    arguments = ("--task", "images:ImageClassifier", "--model", str(folder / "vit"), "--dtype", "fp32")
    with running(*arguments, "--batch-tokens", "800", env={"PYTHONPATH": str(folder)}) as server:
        yield server.wait_serving()


def expected(folder: Path, images: list[str]) -> list[dict[str, float]]:
    """The scores by label that transformers gives each image, one at a time."""
    import torch
    from PIL import Image
    from transformers import AutoImageProcessor, AutoModelForImageClassification

    processor = AutoImageProcessor.from_pretrained(folder / "vit")
    model = AutoModelForImageClassification.from_pretrained(folder / "vit").eval()
    found = []
    for image in images:
        pixels = processor(Image.open(io.BytesIO(base64.b64decode(image))).convert("RGB"), return_tensors="pt")
        with torch.inference_mode():
            scores = model(**pixels).logits[0].softmax(0)
        found.append({model.config.id2label[index]: score for index, score in enumerate(scores.tolist())})
    return found


def test_images_are_classified_as_by_transformers(server: Running, folder: Path) -> None:
    images = [png(color) for color in COLORS] * 3
    answer = server.post("/predict", json={"inputs": images}).json()

    assert (answer["task"], answer["model"]) == ("custom", "image-classifier")
    assert answer["usage"]["total_tokens"] == 197 * len(images)
    for result, scores in zip(answer["predictions"], expected(folder, images), strict=True):
        assert [entry["label"] for entry in result] == sorted(scores, key=scores.__getitem__, reverse=True)
        assert {entry["label"]: entry["score"] for entry in result} == pytest.approx(scores, rel=1e-4)
    assert len({str(result) for result in answer["predictions"]}) == len(COLORS)


def test_a_large_body_is_answered_too(server: Running, folder: Path) -> None:
    noise = [png(color, side=900) for color in COLORS]
    answer = server.post("/predict", json={"inputs": noise * 40})
    assert len(answer.request.content) > 64 * 1024
    (first,) = expected(folder, noise[:1])
    assert {entry["label"]: entry["score"] for entry in answer.json()["predictions"][0]} == pytest.approx(
        first, rel=1e-4
    )


def test_an_item_that_the_class_refuses_gets_its_message(server: Running) -> None:
    answer = server.post("/predict", json={"inputs": [png("red"), "bm8="]})
    assert answer.status_code == 400
    assert answer.json()["error"]["message"] == "'inputs[1]' is invalid: not an image in base64"
    assert server.post("/predict", json={"inputs": [5]}).json()["error"]["message"] == (
        "'inputs' is invalid: an image must be a base64 string, not int"
    )


def test_text_routes_are_refused(server: Running) -> None:
    answer = server.embed("a text")
    assert answer.status_code == 400
    assert "for the task 'custom' and has no embeddings" in answer.json()["error"]["message"]


def test_the_instance_is_bound_as_planned(server: Running) -> None:
    (instance, *_) = server.info()["instances"]
    assert instance["verification"]["ok"], instance["verification"]["misses"]


REPEATER = """
class Repeater:
    max_size = 40
    def size(self, item): return 1
    def load(self, model, dtype): pass
    def sample(self, size): return ["x", 1]
    def run(self, items): return [item[0] * item[1] for item in items]
"""


def test_results_and_items_that_are_too_large_are_refused(tmp_path: Path) -> None:
    (tmp_path / "repeaters.py").write_text(REPEATER)
    arguments = ("--task", "repeaters:Repeater", "--model", "none", "--dtype", "fp32", "--max-result-bytes", "1000")
    with running(*arguments, "--instances", "1", env={"PYTHONPATH": str(tmp_path)}) as server:
        server.wait_serving()
        fits = server.post("/predict", json={"inputs": [["a", 498], ["b", 498]]})
        result = server.post("/predict", json={"inputs": [["a", 498], ["b", 499]]})
        item = server.post("/predict", json={"inputs": [["a", 1, *[0] * 200_000]]})
        lone = server.post("/predict", json={"inputs": [["a", 2, "," * 150_000]]})
    assert fits.json()["predictions"] == ["a" * 498, "b" * 498]
    assert [response.status_code for response in (result, item, lone)] == [413, 413, 200]
    assert [response.json()["error"]["code"] for response in (result, item)] == ["too_many_results", "too_many_values"]
    assert "the results have 1001 bytes together, the limit is 1000" in result.text
