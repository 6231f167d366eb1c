"""What the workers of an engine are started with. A change replaces it as a whole, instance by instance."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass

from launcher.core.protocol.messages import Setup
from launcher.core.protocol.model_info import ModelInfo
from launcher.core.scheduling.scheduler import InstanceSpec
from launcher.engine.costs import Costs
from launcher.engine.load_proofs import LoadProofs
from launcher.engine.load_times import LoadTimes
from launcher.host.process.spawn_worker import Launch
from launcher.options import ServeOptions
from launcher.prepare.cost_basis import cost_key_base
from launcher.prepare.model import setup_of
from launcher.prepare.prepared_instances import Prepared, PreparedInstance


@dataclass(frozen=True, slots=True)
class Configuration:
    """Options and the preparation that follows from them, with the messages and cost tables for workers.

    ``environment`` is that of workers, in addition to the variables of their commands.
    """

    options: ServeOptions
    prepared: Prepared
    model_info: ModelInfo
    setup: Setup
    costs: Costs
    proofs: LoadProofs
    load_times: LoadTimes
    environment: Mapping[str, str]

    def launch(self, one: PreparedInstance, mask: tuple[int, ...] | None) -> Launch:
        """How to start the worker of an instance; ``mask`` as in ``Launch``."""
        return Launch(one.plan.id, one.command.command, {**self.environment, **one.command.env}, mask=mask)


def configure(options: ServeOptions, prepared: Prepared) -> Configuration:
    """The configuration for a preparation with a model, with the environment of this process."""
    model_info = prepared.model_info
    assert model_info is not None, "an engine is prepared with its model"
    key_base = cost_key_base(options, prepared.machine, model_info)
    costs = Costs(key_base, fresh=options.model.measure)
    setup = setup_of(options, prepared.machine, model_info)
    proofs, load_times = LoadProofs(key_base), LoadTimes(key_base)
    return Configuration(options, prepared, model_info, setup, costs, proofs, load_times, dict(os.environ))


def spec_of(one: PreparedInstance) -> InstanceSpec:
    """The instance as the scheduler sees it."""
    return InstanceSpec(one.plan.id, one.plan.threads, one.plan.length_class)


def class_name_of(one: PreparedInstance) -> str:
    """The name of the instance's class in metrics."""
    return one.plan.length_class.name if one.plan.length_class else "all"
