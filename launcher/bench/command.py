"""The commands under ``launch bench``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

import anyio
import msgspec
import typer
from rich.console import Console
from rich.table import Table

from launcher.bench.load import LoadOptions, run_load, summary
from launcher.bench.mix import Mix, builtin_mix, file_mix, fixed_mix
from launcher.errors import UsageError
from launcher.options import DEFAULT_MODEL, DEFAULT_PORT, ModelOptions

app = typer.Typer(help="Measure: load over HTTP, or a plain script on the same texts.", no_args_is_help=True)

Count = Annotated[int, typer.Option("--count", "-n", help="Number of texts.", min=1)]
Texts = Annotated[Path | None, typer.Option(help="A file with one text a line, instead of the built-in mix.")]
Tokens = Annotated[int | None, typer.Option(help="Texts of this many tokens each, instead of the mix.", min=3)]
Seed = Annotated[int, typer.Option(help="Of the built-in mix.")]
Longest = Annotated[int, typer.Option(help="Longest text of the built-in mix, in tokens.", min=3)]
Json = Annotated[bool, typer.Option("--json", help="Print the figures as JSON.")]


def _mix(count: int, texts: Path | None, tokens: int | None, seed: int, longest: int) -> Mix:
    if texts is not None and tokens is not None:
        raise UsageError("--texts and --tokens exclude each other; give one of them")
    if texts is not None:
        return file_mix(texts, count)
    return builtin_mix(count, seed=seed, longest=longest) if tokens is None else fixed_mix(count, tokens, seed=seed)


@app.command()
def load(
    url: Annotated[str, typer.Option(help="Address of the server.")] = f"http://127.0.0.1:{DEFAULT_PORT}",
    connections: Annotated[
        int, typer.Option("--connections", "-c", help="Connections of the closed loop.", min=1)
    ] = 64,
    rate: Annotated[float | None, typer.Option(help="Requests per second: an open loop instead.", min=0.001)] = None,
    per_request: Annotated[int, typer.Option(help="Texts in each request.", min=1)] = 1,
    count: Count = 4000,
    texts: Texts = None,
    tokens: Tokens = None,
    seed: Seed = 1,
    longest: Longest = 256,
    warmup: Annotated[
        int | None,
        typer.Option(help="Requests at the start that are not counted; otherwise a tenth, at most 100.", min=0),
    ] = None,
    api: Annotated[Literal["openai", "tei"], typer.Option(help="Which API the server speaks.")] = "openai",
    model: Annotated[str | None, typer.Option(help="Model name to send; the first that is listed otherwise.")] = None,
    encoding: Annotated[Literal["float", "base64"], typer.Option(help="Form of the vectors.")] = "float",
    json: Json = False,
) -> None:
    """Send texts to a running server and print rates and latencies."""
    mix = _mix(count, texts, tokens, seed, longest)
    uncounted = min(100, count // per_request // 10) if warmup is None else warmup
    options = LoadOptions(url, connections, rate, per_request, uncounted, api, model, encoding)
    tally = anyio.run(run_load, options, mix, backend_options={"use_uvloop": True})
    how = f"{rate} requests/s, open loop" if rate else f"{connections} connections"
    heading = f"{url}, {how}, {per_request} text(s) per request, {mix.source}"
    _show({"run": heading, **summary(tally)}, json)


@app.command()
def plain(
    model: Annotated[str, typer.Option(help="As for serve.")] = DEFAULT_MODEL,
    batch: Annotated[int, typer.Option(help="Texts in each call.", min=1)] = 32,
    count: Count = 1000,
    texts: Texts = None,
    tokens: Tokens = None,
    seed: Seed = 1,
    longest: Longest = 256,
    json: Json = False,
) -> None:
    """Run the same texts through one plain transformers process on all cores, in fp32, without a server."""
    from launcher.bench.plain import run_plain
    from launcher.host.models import resolve

    mix = _mix(count, texts, tokens, seed, longest)
    figures = run_plain(resolve(ModelOptions(model=model)), mix, batch)
    _show({"run": f"one plain transformers process, batches of {batch}, {mix.source}", **figures}, json)


def _show(figures: dict[str, Any], as_json: bool) -> None:
    if as_json:
        print(msgspec.json.encode(figures).decode())
        return
    console = Console(highlight=False)
    console.print(figures.pop("run"), style="bold")
    table = Table(show_header=False, box=None, pad_edge=False)
    for name, value in figures.items():
        for line_name, text in _lines(name, value):
            table.add_row(line_name, text)
    console.print(table)


def _lines(name: str, value: Any) -> list[tuple[str, str]]:
    if not isinstance(value, dict):
        return [(name.replace("_", " "), str(value))]
    if any(isinstance(inner, dict) for inner in value.values()):
        return [line for key, inner in value.items() for line in _lines(f"{name} {key}", inner)]
    return [(name.replace("_", " "), "  ".join(f"{key} {inner}" for key, inner in value.items()) or "none")]
