"""Plots a load test: the distribution of latencies by length class, and the rate over time.

matplotlib is optional and slow to import, so it is imported only when a plot is drawn. ``check_plot`` verifies the
requirements before the run, so that no time is lost on a run that cannot be plotted.
"""

from __future__ import annotations

import importlib.util
import math
import sys
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

from launcher.bench.stats import Answer, LoadStats, by_class
from launcher.core.percentile import percentile
from launcher.errors import UsageError

if TYPE_CHECKING:
    from matplotlib.axes import Axes

SUFFIXES = (".png", ".svg")
REQUIREMENT = "matplotlib>=3.8"  # as in pyproject.toml
SLICES = 40  # of the time axis
# The Okabe-Ito palette, distinguishable with any colour vision; black is for all requests.
COLOURS = ("#0072b2", "#e69f00", "#d55e00")
GRID = "#d9d9d9"


def check_plot(file: Path) -> None:
    """Raise ``UsageError`` unless a plot can be written to ``file``: suffix, folder, matplotlib."""
    if file.suffix.lower() not in SUFFIXES:
        raise UsageError(f"--plot {file}: the file name must end in {' or '.join(SUFFIXES)}")
    if not file.parent.is_dir() or file.is_dir():
        raise UsageError(f"--plot {file}: must be a file in an existing folder")
    if importlib.util.find_spec("matplotlib") is None:
        raise UsageError(
            f"--plot needs matplotlib, which is not installed; run {sys.executable} -m pip install '{REQUIREMENT}'"
        )


def draw(file: Path, heading: str, stats: LoadStats, figures: dict[str, Any]) -> None:
    """Write the plot of a run with at least one successful request. ``figures`` come from ``summary``, for the title.

    Raises ``UsageError`` if the file cannot be written.
    """
    try:
        from matplotlib.figure import Figure
    except OSError as error:  # it needs a folder for its cache
        raise UsageError(
            f"--plot {file}: {error}; set MPLCONFIGDIR or TMPDIR to a folder that can be written"
        ) from error

    figure = Figure(figsize=(11, 5.6), dpi=120, layout="constrained")
    figure.suptitle(f"{heading}\n{_title(figures)}", fontsize=10, x=0.01, ha="left")
    left, right = figure.subplots(1, 2, width_ratios=(3, 2))
    _draw_latencies(left, stats.answers)
    _draw_rate(right, stats)
    for axes in (left, right):
        axes.grid(True, color=GRID, linewidth=0.6)
        axes.set_axisbelow(True)
        axes.spines[["top", "right"]].set_visible(False)
    try:
        figure.savefig(file)
    except OSError as error:
        raise UsageError(f"--plot {file}: cannot be written: {error.strerror or error}") from error


def _title(figures: dict[str, Any]) -> str:
    latency = figures["latency_ms"]
    parts = [
        f"{figures['texts_per_second']:g} texts/s",
        f"{figures['tokens_per_second']:g} tokens/s",
        *(f"{name} {latency[name]:g} ms" for name in ("p50", "p90", "p95", "p99")),
        f"{sum(figures['errors'].values())} errors",
    ]
    return " · ".join(parts)


def _draw_latencies(axes: Axes, answers: Sequence[Answer]) -> None:
    """The cumulative distribution of latencies, one line for each length class."""
    parts = by_class(answers)
    if len(parts) > 1:
        _draw_shares(axes, "all", answers, "black")
    for colour, (name, part) in zip(COLOURS, parts.items(), strict=False):
        _draw_shares(axes, f"{name} tokens", part, colour)
    for share in (50, 99):
        axes.axhline(share, color="#888888", linewidth=0.8, linestyle=":")
    lowest, highest = (pick(a.seconds for a in answers) * 1e3 for pick in (min, max))
    axes.set(xlabel="latency in ms", ylabel="requests answered within it, %", ylim=(0, 101), xscale="log")
    axes.set_xlim(lowest / 1.1, highest * 1.1)
    _label_decades(axes, lowest, highest)
    # Below the axes, because the lines may cross any part of them.
    axes.legend(loc="upper left", bbox_to_anchor=(0, -0.13), fontsize=8, frameon=False)


def _draw_shares(axes: Axes, name: str, answers: Sequence[Answer], colour: str) -> None:
    ordered = sorted(answer.seconds * 1e3 for answer in answers)
    shares = [100 * (place + 1) / len(ordered) for place in range(len(ordered))]
    p50, p99 = percentile(ordered, 50), percentile(ordered, 99)
    label = f"{name}: {len(ordered)} requests, p50 {p50:.3g}, p99 {p99:.3g} ms"
    axes.step(ordered, shares, where="post", color=colour, linewidth=1.6, label=label)
    axes.plot([p50, p99], [50, 99], "o", color=colour, markersize=4)


def _label_decades(axes: Axes, lowest: float, highest: float) -> None:
    """Plain numbers at 1, 2 and 5 of each decade: powers of ten alone would give most axes one label or none."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    decades = math.log10(highest / lowest) if lowest > 0 else 1.0
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if decades < 3 else (1,)))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.xaxis.set_minor_formatter(NullFormatter())


def _draw_rate(axes: Axes, stats: LoadStats) -> None:
    """The rate of texts in each time slice, with the mean of the whole run."""
    width = stats.seconds / SLICES
    texts = [0] * SLICES
    for answer in stats.answers:
        texts[min(int((answer.ended - stats.started) / width), SLICES - 1)] += answer.texts
    edges = [place * width for place in range(SLICES + 1)]
    rates = [count / (after - before) for count, (before, after) in zip(texts, pairwise(edges), strict=True)]
    mean = sum(texts) / stats.seconds
    axes.stairs(rates, edges, fill=True, color=COLOURS[0], alpha=0.35)
    axes.stairs(rates, edges, color=COLOURS[0], linewidth=1.2)
    axes.axhline(mean, color="black", linewidth=1.2, linestyle="--", label=f"mean {mean:.4g}")
    axes.set(xlabel="seconds since the first request", ylabel="texts/s", xlim=(0, stats.seconds))
    axes.set_ylim(0, max(*rates, mean) * 1.15)
    axes.legend(loc="upper left", bbox_to_anchor=(0, -0.13), fontsize=8, frameon=False)
