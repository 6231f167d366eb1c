"""The options of the Python API: those of ``launch serve`` except HTTP, the log and recorded machines."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from launcher.errors import UsageError
from launcher.options import (
    FrontOptions,
    MachineOptions,
    ModelOptions,
    RuntimeOptions,
    SchedulingOptions,
    ServeOptions,
    SuperviseOptions,
    from_flat,
    to_flat,
)
from launcher.options.option import options_of, part

DEFAULT_MODEL: Final = ModelOptions().model


@dataclass(frozen=True, slots=True)
class EngineOptions:
    """All options of an engine. ``drain_seconds`` applies to ``close``."""

    machine: MachineOptions = part(MachineOptions(), without=("sysroot", "machine"))
    runtime: RuntimeOptions = part(RuntimeOptions())
    model: ModelOptions = part(ModelOptions(), without=("model",))
    front: FrontOptions = part(
        FrontOptions(),
        only=("drain_seconds", "max_text_characters", "tokenizer_threads"),
    )
    scheduling: SchedulingOptions = part(SchedulingOptions())
    supervise: SuperviseOptions = part(SuperviseOptions())


def serve_options(model: str | Path, keywords: Mapping[str, Any]) -> ServeOptions:
    """The options for ``model`` with these keywords. Raises ``UsageError`` for an unknown name or a bad value."""
    known = {option.name for option in options_of(EngineOptions)}
    of_server = {option.name for option in options_of(ServeOptions)} - known - {"model"}
    for name in keywords:
        if name in of_server:
            raise UsageError(f"{name} is an option of `launch serve` that the Python API does not support; omit it")
    chosen = from_flat(EngineOptions, keywords)
    return from_flat(ServeOptions, {**to_flat(chosen), "model": str(model) if isinstance(model, Path) else model})
