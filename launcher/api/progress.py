"""A progress bar on standard error, for calls with many texts."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sized
from typing import Any


@contextlib.contextmanager
def progress_bar(texts: Any, *, shown: bool) -> Iterator[Callable[[int], None]]:
    """A function to call with the number of texts just finished. The total is shown if ``texts`` has a length."""
    if not shown:
        yield lambda done: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn()
    with Progress(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task("texts", total=len(texts) if isinstance(texts, Sized) else None)
        yield lambda done: bar.advance(task, done)
