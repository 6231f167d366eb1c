"""Several servers side by side: the same load on each in turn, round by round, and the medians of their figures.

A machine that others share is never the same twice, so only runs that alternate can be compared.
"""

from __future__ import annotations

from collections.abc import Sequence
from statistics import median
from typing import Any

from launcher.bench.figures import summary
from launcher.bench.load import LoadOptions, run_load
from launcher.bench.mix import Mix

Run = dict[str, Any]


async def run_rounds(servers: Sequence[LoadOptions], mix: Mix, rounds: int) -> dict[str, list[Run]]:
    """The figures of each run, in order, by the address of the server. Raises as ``run_load``."""
    runs: dict[str, list[Run]] = {server.url: [] for server in servers}
    for _ in range(rounds):
        for server in servers:
            runs[server.url].append(summary(await run_load(server, mix)))
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
