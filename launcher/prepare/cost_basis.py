"""Provides the costs to predict from before a worker has measured any: tables of earlier runs, or an estimate.

``host.files.cost_tables`` reads the files, ``core.cost.cost_table`` defines what a table is valid for; this module
selects the tables that are valid for these options. Measuring and writing belong to the engine (``engine.costs``).
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from launcher.core.cost.cost_model import fit
from launcher.core.cost.cost_table import CostKey, differences
from launcher.core.machine.isa_limits import limits_in
from launcher.core.machine.topology import Machine
from launcher.core.planning.plan import InstancePlan
from launcher.core.protocol.model_info import ModelInfo
from launcher.core.tuning.simulation import CostBasis
from launcher.host.files import cost_tables
from launcher.options import ServeOptions
from launcher.prepare.machine import environment_of
from launcher.prepare.model import dtype_of


@dataclass(frozen=True, slots=True)
class CostKeyBase:
    """The part of a cost key that all instances of a run share.

    The instruction sets of ``machine`` are followed by the variables that keep libraries from using some of them.
    """

    machine: Machine
    model_info: ModelInfo
    dtype: str
    backend: str
    batch_tokens: int
    layout: str

    def key(self, instance: InstancePlan) -> CostKey:
        """The cost key of an instance."""
        kinds = {core.kind for core in self.machine.cores if core.id in set(instance.cores)}
        return self.key_of(instance.threads, len(instance.nodes), tuple(sorted(str(kind) for kind in kinds)))

    def key_of(self, threads: int, nodes: int, kinds: tuple[str, ...]) -> CostKey:
        """The cost key of instances of a given size."""
        return CostKey(
            processor=self.machine.model or self.machine.vendor or "unknown",
            arch=self.machine.arch,
            isa=tuple(sorted(self.machine.isa)),
            threads=threads,
            nodes=nodes,
            kinds=kinds,
            model=self.model_info.requested,
            weights=cost_tables.weights_fingerprint(self.model_info),
            task=self.model_info.task,
            max_length=self.model_info.max_length,
            dtype=self.dtype,
            backend=self.backend,
            batch_tokens=self.batch_tokens,
            layout=self.layout,
            torch=cost_tables.package_version("torch"),
            launcher=cost_tables.package_version("launcher"),
            microarchitecture=self.machine.microarchitecture,
        )


def basis_of(subject: CostKeyBase | None) -> CostBasis:
    """The costs to predict from: the tables that are valid for this machine and model, or an estimate."""
    if subject is None:
        return CostBasis.guessed(None)
    folder = cost_tables.cost_folder()
    if not folder.is_dir():  # before the keys, which need the versions of packages
        return CostBasis.guessed(subject.model_info.weight_bytes)
    relatives = cost_tables.read_related_tables(folder, subject.key_of(1, 1, ()))
    fitting = [t for t in relatives if not differences(t.key, subject.key_of(t.key.threads, t.key.nodes, t.key.kinds))]
    if not fitting:
        return CostBasis.guessed(subject.model_info.weight_bytes)
    by_threads = {table.key.threads: fit(table.measured).scaled(table.drift) for table in fitting}
    return CostBasis(by_threads, packed=fitting[0].packed, measured=True)


def cost_key_base(options: ServeOptions, machine: Machine, model_info: ModelInfo) -> CostKeyBase:
    """The part of the cost key that all instances share."""
    backend: str = options.model.backend
    if backend == "fake":
        backend = f"fake, {options.model.fake_seconds_per_token or 0.0:g} s a token"
    # FIFO and sorted batches are both padded and cost the same; whether items are packed is known only when the model
    # is loaded.
    layout = "auto" if options.model.layout == "auto" else "padded"
    limits = limits_in(environment_of(options.machine), machine.isa)
    limited = replace(machine, isa=(*machine.isa, *limits))
    dtype = dtype_of(options, machine, model_info)
    return CostKeyBase(limited, model_info, dtype, backend, options.scheduling.batch_tokens, layout)
