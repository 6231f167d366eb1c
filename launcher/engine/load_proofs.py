"""What the workers of this run have proven of their model: passed to the workers that are started after them.

A restarted worker is the twin of the lost one, so it repeats neither the comparison of layouts and data types nor the
timing of optimizations. A proof holds for the cost key of an instance, which has everything that results and times
depend on, including a fingerprint of the model's files: if these change while the server runs, the next worker checks
everything. Proofs are not kept beyond the run, so each start of the server checks the model.
"""

from __future__ import annotations

import msgspec

from launcher.core.cost.cost_table import CostKey
from launcher.core.planning.plan import InstancePlan
from launcher.core.protocol.load_proof import LoadProof
from launcher.core.protocol.messages import Ready, Setup
from launcher.prepare.cost_basis import CostKeyBase


class LoadProofs:
    """The proofs of one engine."""

    def __init__(self, subject: CostKeyBase) -> None:
        self._subject = subject
        self._proofs: dict[CostKey, LoadProof] = {}

    def save(self, instance: InstancePlan, ready: Ready) -> None:
        """Keep what a worker has proven."""
        if ready.proof is not None:
            self._proofs[self._subject.key(instance)] = ready.proof

    def with_proof(self, setup: Setup, instance: InstancePlan) -> Setup:
        """The setup for a worker, with what is proven for it."""
        if not self._proofs:
            return setup
        return msgspec.structs.replace(setup, proof=self._proofs.get(self._subject.key(instance)))

    def forget(self, instance: InstancePlan) -> None:
        """A worker did not become ready: the next one checks everything."""
        if self._proofs:
            self._proofs.pop(self._subject.key(instance), None)
