"""Several servers side by side: the same load on each in turn, round by round, and the medians of their figures.

A machine that others share is never the same twice, so only runs that alternate can be compared. Between them is a
pause: servers may be busy for a while after their last reply (vLLM keeps a core so for a second), and that would be
taken from the next one's run.
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
    """The figures of each run, in order, by the address of the server, with ``pause`` seconds before each but the
    first. Raises as ``run_load``."""
    runs: dict[str, list[Run]] = {server.url: [] for server in servers}
    for number, server in enumerate(list(servers) * rounds):
        if number:
            await anyio.sleep(pause)
        runs[server.url].append(summary(await run_load(server, workload)))
    return runs


def compared(runs: dict[str, list[Run]]) -> dict[str, Run]:
    """Each server's median figures, lowest and highest rate, and its rate relative to the first server's."""
    first = _middle([run["texts_per_second"] for run in next(iter(runs.values()))])
    return {url: _figures(of_server, first) for url, of_server in runs.items()}


def _figures(runs: Sequence[Run], first: float) -> Run:
    rates = [run["texts_per_second"] for run in runs]
    return {
        "texts/s": _middle(rates),
        "lowest": min(rates),
        "highest": max(rates),
        "ratio": round(_middle(rates) / first, 2),
        **{name: _middle([run["latency_ms"][name] for run in runs]) for name in ("p50", "p90", "p99")},
        "errors": sum(sum(run["errors"].values()) for run in runs),
    }


def _middle(values: Sequence[float]) -> float:
    return round(median(values), 2)
