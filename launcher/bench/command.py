"""The commands under ``launch bench`` that start no instances; ``forward``, which does, is with ``serve``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

import anyio
import typer

from launcher.bench.load import LoadOptions, run_load
from launcher.bench.plot import check_plot, draw
from launcher.bench.rounds import compared, run_rounds
from launcher.bench.stats import summary
from launcher.bench.tables import show, show_json
from launcher.bench.workload import Workload, builtin_workload, file_workload, fixed_workload, histogram_workload
from launcher.core.planning.length_classes import BUILTIN_LONGEST
from launcher.errors import UsageError
from launcher.host.files.length_histogram import read_histogram
from launcher.options import FrontOptions, ModelOptions

DEFAULT_MODEL, DEFAULT_PORT = ModelOptions().model, FrontOptions().port
DEFAULT_URL = f"http://127.0.0.1:{DEFAULT_PORT}"

app = typer.Typer(
    help="Measure: load over HTTP, the workers alone, a plain script, or a server that does nothing.",
    no_args_is_help=True,
)

Count = Annotated[int, typer.Option("--count", "-n", help="Number of texts.", min=1)]
Texts = Annotated[Path | None, typer.Option(help="A file with one text a line, instead of the built-in mix.")]
TokensEach = Annotated[int | None, typer.Option(help="Texts of this many tokens each, instead of the mix.", min=3)]
Lengths = Annotated[
    Path | None,
    typer.Option(
        help='Draw lengths from this histogram instead: lines of "tokens count", or JSON {"tokens": count}.',
        metavar="FILE",
    ),
]
Seed = Annotated[int, typer.Option(help="Of the random texts.")]
Longest = Annotated[
    int | None,
    typer.Option(help=f"Longest text in tokens; the built-in mix has at most {BUILTIN_LONGEST} without it.", min=3),
]
Json = Annotated[bool, typer.Option("--json", help="Print the figures as JSON.")]


def workload_of(
    count: int, texts: Path | None, lengths: Path | None, tokens: int | None, seed: int, longest: int | None
) -> Workload:
    """The texts that the options ask for. Raises ``UsageError``."""
    given = [name for name, value in (("--texts", texts), ("--lengths", lengths), ("--tokens", tokens)) if value]
    if len(given) > 1:
        raise UsageError(f"{' and '.join(given)} exclude each other; give one of them")
    if longest is not None and (texts or tokens):
        raise UsageError(f"--longest is for random lengths, and {given[0]} says what lengths there are; leave one away")
    if texts is not None:
        return file_workload(texts, count)
    if lengths is not None:
        return histogram_workload(read_histogram(lengths), count, lengths.name, seed=seed, longest=longest)
    if tokens is not None:
        return fixed_workload(count, tokens, seed=seed)
    return builtin_workload(count, seed=seed, longest=longest or BUILTIN_LONGEST)


@app.command()
def load(
    url: Annotated[
        list[str] | None,
        typer.Option(help=f"Address of the server, {DEFAULT_URL} without it; several are loaded in turn."),
    ] = None,
    rounds: Annotated[int, typer.Option(help="Runs on each server; medians are printed.", min=1)] = 1,
    pause: Annotated[float, typer.Option(help="Seconds between runs, in which servers come to rest.", min=0)] = 2.0,
    connections: Annotated[
        int, typer.Option("--connections", "-c", help="Connections of the closed loop.", min=1)
    ] = 64,
    rate: Annotated[float | None, typer.Option(help="Requests per second: an open loop instead.", min=0.001)] = None,
    per_request: Annotated[int, typer.Option(help="Texts in each request.", min=1)] = 1,
    count: Count = 4000,
    texts: Texts = None,
    lengths: Lengths = None,
    tokens: TokensEach = None,
    seed: Seed = 1,
    longest: Longest = None,
    warmup: Annotated[
        int | None,
        typer.Option(help="Requests at the start that are not counted; otherwise a tenth, at most 100.", min=0),
    ] = None,
    api: Annotated[Literal["openai", "tei"], typer.Option(help="Which API the server speaks.")] = "openai",
    model: Annotated[str | None, typer.Option(help="Model name to send; the first that is listed otherwise.")] = None,
    encoding: Annotated[Literal["float", "base64"], typer.Option(help="Form of the vectors.")] = "float",
    json: Json = False,
    plot: Annotated[
        Path | None,
        typer.Option(help="Draw latencies and rate into this file, .png or .svg (needs matplotlib).", metavar="FILE"),
    ] = None,
) -> None:
    """Send texts to a running server, or to several in turn, and print rates and latencies."""
    if plot is not None:
        check_plot(plot)
    workload = workload_of(count, texts, lengths, tokens, seed, longest)
    uncounted = min(100, count // per_request // 10) if warmup is None else warmup
    servers = [
        LoadOptions(each, connections, rate, per_request, uncounted, api, model, encoding)
        for each in dict.fromkeys(url or [DEFAULT_URL])
    ]
    how = f"{rate:g} requests/s, open loop" if rate else f"{connections} connection{'s' * (connections > 1)}"
    what = f"{how}, {per_request} text{'s' * (per_request > 1)} per request, {workload.source}"
    if len(servers) > 1 or rounds > 1:
        _load_in_rounds(servers, rounds, pause, workload, what, json, plot)
        return
    stats = anyio.run(run_load, servers[0], workload, backend_options={"use_uvloop": True})
    heading = f"{servers[0].url}, {what}"
    figures = {"run": heading, **summary(stats)}
    (show_json if json else _show_load)(figures)
    if plot is not None:
        draw(plot, heading, stats, figures)


def _load_in_rounds(
    servers: list[LoadOptions], rounds: int, pause: float, workload: Workload, what: str, json: bool, plot: Path | None
) -> None:
    if plot is not None:
        raise UsageError("--plot draws a single run; leave --rounds and further addresses away")
    runs = anyio.run(run_rounds, servers, workload, rounds, pause, backend_options={"use_uvloop": True})
    heading = f"medians of {rounds} round{'s' * (rounds > 1)}, {what}"
    if json:
        show_json({"run": heading, "servers": compared(runs), "runs": runs})
    else:
        show({"run": heading}, "server", compared(runs))


def _show_load(figures: dict[str, Any]) -> None:
    apart = ("latency_ms", "latency_ms_by_length")
    rows = {"all": figures["latency_ms"], **figures["latency_ms_by_length"]}
    show({name: value for name, value in figures.items() if name not in apart}, "latency in ms, by tokens", rows)


@app.command()
def baseline(
    model: Annotated[str, typer.Option(help="As for serve.")] = DEFAULT_MODEL,
    batch: Annotated[int, typer.Option(help="Texts in each call.", min=1)] = 32,
    count: Count = 1000,
    texts: Texts = None,
    lengths: Lengths = None,
    tokens: TokensEach = None,
    seed: Seed = 1,
    longest: Longest = None,
    json: Json = False,
) -> None:
    """Run the same texts through one plain transformers process on all cores, in fp32, without a server."""
    from launcher.bench.baseline import run_baseline
    from launcher.host.model.resolve import resolve

    workload = workload_of(count, texts, lengths, tokens, seed, longest)
    figures = {
        "run": f"one plain transformers process, batches of {batch}, {workload.source}",
        **run_baseline(resolve(ModelOptions(model=model)), workload, batch),
    }
    (show_json if json else show)(figures)


@app.command()
def echo(
    port: Annotated[int, typer.Option(help="On 127.0.0.1.", min=1, max=65535)] = 8090,
    width: Annotated[int, typer.Option(help="Values of a vector.", min=1)] = 384,
    worker_cpu: Annotated[
        int | None, typer.Option(help="Ask a second process on this cpu before each reply, as a worker is.", min=0)
    ] = None,
) -> None:
    """Serve a fixed reply until it is ended: what any server costs here at least, for bench load to measure."""
    from launcher.bench.echo import EchoOptions, run_echo

    run_echo(EchoOptions(port, width, worker_cpu))
