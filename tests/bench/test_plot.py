"""Problems with a plot are reported before the run; a plot shows the figures of the table."""

from __future__ import annotations

import random
from pathlib import Path
from xml.etree import ElementTree

import pytest

from launcher.bench.plot import REQUIREMENT, check_plot, draw
from launcher.bench.stats import Answer, LoadStats, summary
from launcher.errors import UsageError


def stats(requests: int) -> LoadStats:
    rng = random.Random(3)
    answers = [
        Answer(rng.choice((8, 60, 200)), rng.lognormvariate(-4, 0.5), 10 + place / 100, 2, 40)
        for place in range(1, requests + 1)
    ]
    return LoadStats(answers, started=10.0, wall_seconds=1.0)


@pytest.mark.parametrize("name", ["a.pdf", "a", "no/folder/a.png", "."])
def test_a_file_that_cannot_be_written_as_a_plot_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(UsageError, match="--plot"):
        check_plot(tmp_path / name)


def test_the_named_requirement_is_the_one_of_the_package() -> None:
    project = (Path(__file__).parents[2] / "pyproject.toml").read_text()
    assert f'plot = ["{REQUIREMENT}"]' in project


@pytest.mark.parametrize("requests", [1, 300])
def test_the_plot_shows_the_figures_and_the_classes(tmp_path: Path, requests: int) -> None:
    pytest.importorskip("matplotlib")
    import matplotlib as mpl

    file, seen = tmp_path / "load.svg", stats(requests)
    figures = summary(seen)
    check_plot(file)
    with mpl.rc_context({"svg.fonttype": "none"}):  # keep text as text
        draw(file, "a heading", seen, figures)
    root = ElementTree.parse(file).getroot()
    words = "\n".join("".join(element.itertext()) for element in root.iter() if element.tag.endswith("text"))
    assert "a heading" in words
    assert f"{figures['texts_per_second']:g} texts/s" in words
    assert f"p99 {figures['latency_ms']['p99']:g} ms" in words
    for name, part in figures["latency_ms_by_length"].items():
        assert f"{name} tokens: {part['count']} requests" in words


def test_the_image_is_written_and_a_file_that_cannot_be_written_is_an_error(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    seen = stats(50)
    draw(tmp_path / "load.png", "a heading", seen, summary(seen))
    assert (tmp_path / "load.png").read_bytes().startswith(b"\x89PNG")
    with pytest.raises(UsageError, match="cannot be written"):
        draw(tmp_path / "gone" / "load.png", "a heading", seen, summary(seen))
