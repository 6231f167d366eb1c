"""The commands under ``launch bench``. What they measure is in ``launcher.bench``."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from launcher.errors import UsageError
from launcher.options import FormatOptions
from launcher.options.bench import (
    BaselineOptions,
    EchoOptions,
    LoadCommandOptions,
    LoadOptions,
    ThroughputCommandOptions,
)

if TYPE_CHECKING:
    from launcher.bench.workload import Workload


def load(options: LoadCommandOptions) -> None:
    """Send texts to one or more running servers, and print rates and latencies."""
    from launcher.bench.plot import check_plot
    from launcher.bench.workload import make_workload

    servers = [replace(options.load, url=url) for url in dict.fromkeys(options.url or (options.load.url,))]
    several = len(servers) > 1 or options.rounds > 1
    if options.plot is not None:
        if several:
            raise UsageError("--plot draws a single run; omit --rounds and give one --url")
        check_plot(options.plot)
    workload = make_workload(options.workload)
    if several:
        _load_in_rounds(options, servers, workload)
    else:
        _load_once(options, servers[0], workload)


def _load_once(options: LoadCommandOptions, server: LoadOptions, workload: Workload) -> None:
    import anyio

    from launcher.bench.load import described, run_load
    from launcher.bench.plot import draw
    from launcher.bench.stats import summary
    from launcher.bench.tables import show_json, show_load

    stats = anyio.run(run_load, server, workload, backend_options={"use_uvloop": True})
    heading = f"{server.url}, {described(server, workload)}"
    figures = {"run": heading, **summary(stats)}
    (show_json if options.format.json else show_load)(figures)
    if options.plot is not None:
        draw(options.plot, heading, stats, figures)


def _load_in_rounds(options: LoadCommandOptions, servers: list[LoadOptions], workload: Workload) -> None:
    import anyio

    from launcher.bench.load import described
    from launcher.bench.rounds import compared, run_rounds
    from launcher.bench.tables import show, show_json

    rounds = options.rounds
    runs = anyio.run(run_rounds, servers, workload, rounds, options.pause, backend_options={"use_uvloop": True})
    heading = f"medians of {rounds} round{'s' * (rounds > 1)}, {described(servers[0], workload)}"
    if options.format.json:
        show_json({"run": heading, "servers": compared(runs), "runs": runs})
    else:
        show({"run": heading}, "server", compared(runs))


def baseline(options: BaselineOptions, output: FormatOptions) -> None:
    """Run the same texts through one plain transformers process on all cores, in fp32, without a server."""
    from launcher.bench.baseline import run_baseline
    from launcher.bench.tables import show, show_json
    from launcher.bench.workload import make_workload
    from launcher.host.model.resolve import resolve

    workload = make_workload(options.workload)
    figures = {
        "run": f"one plain transformers process, batches of {options.batch}, {workload.source}",
        **run_baseline(resolve(options.model), workload, options.batch),
    }
    (show_json if output.json else show)(figures)


def echo(options: EchoOptions) -> None:
    """Serve a fixed response until stopped, to measure the lower bound of latency on this machine with bench load."""
    from launcher.bench.echo import run_echo

    run_echo(options)


def throughput(options: ThroughputCommandOptions, output: FormatOptions) -> None:
    """Start instances as serve does, and print the throughput of their workers on a workload, without HTTP."""
    from launcher.bench.tables import show_json
    from launcher.bench.throughput import run_throughput, show_throughput
    from launcher.bench.workload import make_workload

    figures = run_throughput(options.serve, options.throughput, make_workload(options.workload))
    (show_json if output.json else show_throughput)(figures)
