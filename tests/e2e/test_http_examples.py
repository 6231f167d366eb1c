"""The examples of docs/http.md, sent to real servers: every response has the documented structure and token counts."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from launcher.front.http.api.predict import TASK_ROUTES
from tests.e2e.running import Running, running

pytestmark = pytest.mark.slow

PAGE = (Path(__file__).parents[2] / "docs" / "http.md").read_text()
SECTIONS = dict(re.findall(r"^#### (\S+)\n(.*?)(?=^##)", PAGE, re.MULTILINE | re.DOTALL))


def examples(section: str) -> Iterator[tuple[Any, Any]]:
    """(request, response); the page abbreviates vectors by an ellipsis."""
    blocks = re.findall(r"^```json\n(.*?)^```$", section, re.MULTILINE | re.DOTALL)
    bodies = [json.loads(block.replace(", …", "")) for block in blocks]
    return zip(bodies[::2], bodies[1::2], strict=True)


def structure(value: Any) -> Any:
    """The names and types in a JSON value; of a list, those of its entries, whose number depends on the model."""
    if isinstance(value, dict):
        return {key: structure(entry) for key, entry in value.items()}
    if isinstance(value, list):
        entries = [structure(entry) for entry in value]
        return [entry for index, entry in enumerate(entries) if entry not in entries[:index]]
    return type(value)


def test_every_task_has_an_example() -> None:
    assert set(SECTIONS) == set(TASK_ROUTES) - {"custom"}
    assert all(list(examples(section)) for section in SECTIONS.values())


@pytest.fixture(scope="module", params=SECTIONS)
def served(request: pytest.FixtureRequest) -> Iterator[tuple[Running, str]]:
    options = ("--model", "random:tiny", "--backend", "fake", "--instances", "1", "--reserve-cores", "0")
    with running(*options, "--task", request.param) as server:
        yield server.wait_serving(), SECTIONS[request.param]


def test_responses_have_the_documented_structure(served: tuple[Running, str]) -> None:
    server, section = served
    for body, documented in examples(section):
        response = server.post("/predict", json=body)
        assert response.status_code == 200, response.text
        found = response.json()
        assert found["usage"] == documented["usage"]
        assert found["task"] == documented["task"]
        assert len(found["predictions"]) == len(documented["predictions"])
        assert structure(found) == structure(documented)
