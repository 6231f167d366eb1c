"""Compares several servers: the same load on each in turn, in several rounds, and the median of each figure.

The state of a shared machine changes over time, so only alternating runs are comparable. There is a pause between runs,
because a server may stay busy for a while after its last response (vLLM keeps a core busy for a second), which would
slow down the next run.
"""

from __future__ import annotations

from collections.abc import Sequence
from statistics import median
from typing import Any

import anyio

from launcher.bench.load import run_load
from launcher.bench.stats import summary
from launcher.bench.workload import Workload
from launcher.options.bench import LoadOptions

Run = dict[str, Any]


async def run_rounds(
    servers: Sequence[LoadOptions], workload: Workload, rounds: int, pause: float
) -> dict[str, list[Run]]:
    """The figures of each run, in order, by the URL of the server, with a pause of ``pause`` seconds between runs.
    Raises as ``run_load``."""
    runs: dict[str, list[Run]] = {server.url: [] for server in servers}
    for number, server in enumerate(list(servers) * rounds):
        if number:
            await anyio.sleep(pause)
        runs[server.url].append(summary(await run_load(server, workload)))
    return runs


def compared(runs: dict[str, list[Run]]) -> dict[str, Run]:
    """The median figures of each server, its lowest and highest rate, and its rate relative to the first server."""
    first = _median([run["texts_per_second"] for run in next(iter(runs.values()))])
    return {url: _figures(of_server, first) for url, of_server in runs.items()}


def _figures(runs: Sequence[Run], first: float) -> Run:
    rates = [run["texts_per_second"] for run in runs]
    return {
        "texts/s": _median(rates),
        "lowest": min(rates),
        "highest": max(rates),
        "ratio": round(_median(rates) / first, 2),
        **{name: _median([run["latency_ms"][name] for run in runs]) for name in ("p50", "p90", "p99")},
        "errors": sum(sum(run["errors"].values()) for run in runs),
    }


def _median(values: Sequence[float]) -> float:
    return round(median(values), 2)
