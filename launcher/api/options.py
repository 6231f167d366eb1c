"""The options of an engine in Python: those of ``launch serve`` without HTTP, the log and recorded machines."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
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
    """Everything that an engine in Python needs. ``drain_seconds`` is for ``close``."""

    machine: MachineOptions = part(MachineOptions(), without=("sysroot", "machine"))
    runtime: RuntimeOptions = part(RuntimeOptions())
    model: ModelOptions = part(ModelOptions(), without=("model",))
    front: FrontOptions = part(
        FrontOptions(),
        only=("drain_seconds", "max_text_characters", "tokenizer_threads"),
    )
    scheduling: SchedulingOptions = part(SchedulingOptions())
    supervise: SuperviseOptions = part(SuperviseOptions())


def serve_options(model: str, keywords: Mapping[str, Any]) -> ServeOptions:
    """The options for ``model`` with these keywords. Raises ``UsageError`` for an unknown name or a bad value."""
    known = {option.name for option in options_of(EngineOptions)}
    of_server = {option.name for option in options_of(ServeOptions)} - known - {"model"}
    for name in keywords:
        if name in of_server:
            raise UsageError(f"{name} is an option of `launch serve` that an engine in Python does not have; omit it")
    chosen = from_flat(EngineOptions, keywords)
    return from_flat(ServeOptions, {**to_flat(chosen), "model": model})
