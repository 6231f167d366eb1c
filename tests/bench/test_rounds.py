"""Comparing servers: they take turns in each round, and medians are over all rounds."""

from __future__ import annotations

from typing import Any

import pytest

from launcher.bench.load import LoadOptions
from launcher.bench.rounds import compared, run_rounds
from launcher.bench.workload import builtin_workload

pytestmark = pytest.mark.anyio


async def test_servers_take_turns_and_every_run_is_kept(serving) -> None:
    asked: list[str] = []

    def answer(name: str) -> Any:
        def one(path: str, body: dict[str, Any]) -> tuple[int, dict[str, Any]]:
            asked.append(name)
            return 200, {"data": [], "usage": {"prompt_tokens": 5, "total_tokens": 5}}

        return one

    async with serving(answer("a")) as first, serving(answer("b")) as second:
        servers = [LoadOptions(url, 1, per_request=2, warmup=0, model="m") for url in (first, second)]
        runs = await run_rounds(servers, builtin_workload(4), 3, 0)
    assert "".join(asked) == "aabb" * 3
    assert {url: len(of_server) for url, of_server in runs.items()} == {first: 3, second: 3}
    assert all(run["texts"] == 4 for of_server in runs.values() for run in of_server)


async def test_there_is_a_pause_between_runs_but_not_before_the_first(serving, monkeypatch) -> None:
    happened: list[Any] = []

    async def sleep(seconds: float) -> None:
        happened.append(seconds)

    def answer(path: str, body: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        happened.append("asked")
        return 200, {"data": []}

    monkeypatch.setattr("launcher.bench.rounds.anyio.sleep", sleep)
    async with serving(answer) as url:
        await run_rounds([LoadOptions(url, 1, warmup=0, model="m")], builtin_workload(1), 3, 1.5)
    assert happened == ["asked", 1.5, "asked", 1.5, "asked"]


def run(rate: float, p50: float, errors: int = 0) -> dict[str, Any]:
    latency = {"p50": p50, "p90": 2 * p50, "p99": 3 * p50}
    return {"texts_per_second": rate, "latency_ms": latency, "errors": {"HTTP 500": errors} if errors else {}}


def test_results_are_medians_with_ratios_to_the_first_server() -> None:
    shown = compared({"a": [run(100, 5), run(10, 50), run(120, 4)], "b": [run(300, 2, 1), run(250, 3), run(200, 4, 2)]})
    assert shown["a"] == {
        "texts/s": 100, "lowest": 10, "highest": 120, "ratio": 1.0, "p50": 5, "p90": 10, "p99": 15, "errors": 0
    }  # fmt: skip
    assert (shown["b"]["texts/s"], shown["b"]["ratio"], shown["b"]["errors"]) == (250, 2.5, 3)
