"""The load generator against a recording server: each text once, correct counts, no coordinated omission."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest

from launcher.bench.load import run_load
from launcher.bench.stats import summary
from launcher.bench.workload import builtin_workload, file_workload, histogram_workload
from launcher.core.cost.length_histogram import parse_histogram
from launcher.errors import LauncherError, UsageError
from launcher.options.bench import LoadOptions

pytestmark = pytest.mark.anyio


def reply(texts: list[str]) -> tuple[int, dict[str, Any]]:
    return 200, {"data": [], "usage": {"prompt_tokens": 0, "total_tokens": sum(len(t.split()) + 2 for t in texts)}}


@pytest.mark.parametrize("rate", [None, 2000.0])
async def test_each_text_is_sent_once_and_counted_after_the_warmup(serving, rate: float | None) -> None:
    seen: list[str] = []

    def answer(path: str, body: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        assert path == "/v1/embeddings"
        texts = body["input"]
        seen.extend(texts)
        return reply(texts)

    workload = builtin_workload(200)
    async with serving(answer) as url:
        options = LoadOptions(url, connections=8, rate=rate, per_request=4, warmup=10, model="m")
        figures = summary(await run_load(options, workload))
    assert sorted(seen) == sorted(workload.texts)
    assert (figures["requests"], figures["texts"]) == (40, 160)
    # Requests count as warm-up by the order in which they are sent, not in which they are answered.
    assert figures["tokens"] == sum(len(text.split()) + 2 for text in workload.texts[40:])
    assert figures["latency_ms"]["count"] == sum(c["count"] for c in figures["latency_ms_by_length"].values()) == 40
    assert ("generator_late_ms" in figures) == (rate is not None)


async def test_the_other_api_has_its_own_path_and_body(serving) -> None:
    bodies: list[tuple[str, dict[str, Any]]] = []

    def answer(path: str, body: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        bodies.append((path, body))
        return 200, {}

    async with serving(answer) as url:
        stats = await run_load(LoadOptions(url, 1, per_request=1, warmup=0, api="tei"), builtin_workload(1))
    assert bodies == [("/embed", {"inputs": builtin_workload(1).texts[0]})]
    assert summary(stats)["tokens"] == 0


async def test_errors_are_counted_separately_and_a_server_without_successes_is_an_error(serving) -> None:
    asked = 0

    def answer(path: str, body: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        nonlocal asked
        asked += 1
        return (429, {}) if asked % 4 == 0 else reply([body["input"]])

    async with serving(answer) as url:
        options = LoadOptions(url, 1, warmup=0, model="m")
        figures = summary(await run_load(options, builtin_workload(20)))
        assert (figures["requests"], figures["errors"]) == (15, {"HTTP 429": 5})
    async with serving(lambda path, body: (503, {})) as url:
        with pytest.raises(LauncherError, match=r"HTTP 503': 3}; the first response: {}"):
            await run_load(LoadOptions(url, 1, warmup=0, model="m"), builtin_workload(3))


async def test_a_model_without_embeddings_is_refused_before_any_request(serving) -> None:
    paths: list[str] = []

    def answer(path: str, body: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        paths.append(path)
        if path == "/info":
            return 200, {"model": {"name": "m", "requested": "folder/m", "task": "rerank"}}
        return 200, {"data": [{"id": "m", "owned_by": "launcher"}]}

    async with serving(answer) as url:
        with pytest.raises(UsageError, match=r"for the task 'rerank'.*throughput --model folder/m --task rerank"):
            await run_load(LoadOptions(url, 1, warmup=0), builtin_workload(3))
    assert paths == ["/v1/models", "/info"]


async def test_open_loop_latencies_include_waiting_for_a_stalled_server(serving) -> None:
    stalled = False

    def answer(path: str, body: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        nonlocal stalled
        if not stalled:
            stalled = True
            time.sleep(0.2)  # the server runs in this loop, so the generator cannot send while it stalls
        return reply([body["input"]])

    async with serving(answer) as url:
        options = LoadOptions(url, 4, rate=500.0, warmup=1, model="m")
        figures = summary(await run_load(options, builtin_workload(100)))
    # The stalled request is not counted, but those scheduled to arrive in the meantime waited.
    assert figures["latency_ms"]["max"] > 100
    assert figures["generator_late_ms"]["p99"] > 100


async def test_too_few_texts_for_the_warmup_are_refused(serving) -> None:
    async with serving(lambda path, body: (200, {})) as url:
        with pytest.raises(UsageError, match="warm-up"):
            await run_load(LoadOptions(url, warmup=5, model="m"), builtin_workload(5))


def test_lengths_are_drawn_with_the_frequencies_of_the_histogram() -> None:
    histogram = parse_histogram("1 1\n10 2\n100 1\n")
    workload = histogram_workload(histogram, 4000, "mine", longest=50)
    lengths = [len(text.split()) + 2 for text in workload.texts]
    assert set(lengths) == {3, 10, 50}
    assert 1800 < lengths.count(10) < 2200
    assert workload == histogram_workload(histogram, 4000, "mine", longest=50)
    assert "mine" in workload.source
    assert "at most 50" in workload.source


def test_a_file_of_texts_is_repeated_or_truncated(tmp_path: Path) -> None:
    file = tmp_path / "texts"
    file.write_text("one\n\n two \n", encoding="utf-8")
    assert file_workload(file, 3).texts == ("one", "two", "one")
    assert file_workload(file, 1).texts == ("one",)
    file.write_text("\n")
    with pytest.raises(UsageError, match="no text"):
        file_workload(file)
