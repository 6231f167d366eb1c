"""Plans that administrators and the watch of the machine ask for."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import anyio
import pytest

from launcher.core.planning.claims import Claim
from launcher.engine.inference_engine import InferenceEngine
from launcher.options import MachineOptions, ModelOptions, ServeOptions
from launcher.options.env_prefixes import API_KEY_VARIABLE
from launcher.prepare.workers import prepare_workers
from launcher.serve.administration import EngineActions


@pytest.mark.parametrize("key", ["", "secret"])
def test_another_plan_warns_of_a_missing_key_only_if_none_is_required(
    key: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv(API_KEY_VARIABLE, key)
    options = ServeOptions(
        machine=MachineOptions(instances=2, oversubscribe=True, reserve_cores=0),
        model=ModelOptions(model="random:tiny", backend="fake"),
    )
    options = replace(options, front=replace(options.front, host="0.0.0.0"))
    prepared = prepare_workers(options, model_needed=True)
    monkeypatch.delenv(API_KEY_VARIABLE)  # as the server does before it starts workers
    engine = InferenceEngine(options, prepared)
    actions = EngineActions(engine)
    configuration, held = anyio.run(actions.configuration, {"instances": 1})
    actions.discard(held)
    engine.close()
    assert len(configuration.prepared.instances) == 1
    warned = [one for one in configuration.prepared.warnings if "no API key is required" in one]
    assert len(warned) == (0 if key else 1)


def test_another_plan_uses_the_cores_that_others_no_longer_claim() -> None:
    options = ServeOptions(
        machine=MachineOptions(machine_file=Path("c5.metal"), cores_per_instance=8, reserve_cores=0),
        model=ModelOptions(model="random:tiny", backend="fake"),
    )
    other = Claim("other", 1, "", "serve", None, None, tuple(range(24)), 0.0)
    prepared = prepare_workers(options, model_needed=True, claims=[other])
    engine: Any = SimpleNamespace(prepared=prepared, configuration=SimpleNamespace(options=options, prepared=prepared))
    configuration, _ = anyio.run(EngineActions(engine).configuration, {})
    assert (len(prepared.instances), len(configuration.prepared.instances)) == (3, 6)
    assert not [one for one in configuration.prepared.warnings if "claimed by" in one]
