"""Prepares an engine: from its arguments to everything that can be known before it starts."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from launcher.api.options import serve_options
from launcher.core.protocol.model_info import ModelInfo
from launcher.engine.session import Session
from launcher.host.registry import Held
from launcher.options import ServeOptions
from launcher.prepare.claims import Holder, prepare_and_claim
from launcher.prepare.prepared_instances import Prepared
from launcher.prepare.workers import prepare_workers

# For ``pickle`` and ``copy``; ``multiprocessing`` pickles the arguments of a process.
NO_COPY = "an engine cannot be pickled or copied; create one in the process that uses it"


@dataclass(frozen=True, slots=True)
class EngineSetup:
    """What an engine is started with."""

    options: ServeOptions
    prepared: Prepared
    claim: Held

    @property
    def model_info(self) -> ModelInfo:
        """The metadata of the model."""
        assert self.prepared.model_info is not None, "prepared with its model"
        return self.prepared.model_info

    def session(self) -> Session:
        """A new session. Call it in the thread of the session's loop."""
        return Session(self.options, self.prepared, self.claim)


def prepare_engine(model: str | Path, keywords: Mapping[str, Any]) -> EngineSetup:
    """Read the machine, resolve the model, plan and claim the cores. Raises any ``LauncherError``."""
    options = serve_options(model, keywords)
    holder = Holder("engine", f"engine-{os.getpid()}", model=options.model.model)
    prepared, claim = prepare_and_claim(
        options.machine, holder, lambda claims: prepare_workers(options, model_needed=True, claims=claims)
    )
    return EngineSetup(options, prepared, claim)
