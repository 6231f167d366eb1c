"""The engine's view of each instance: its preparation, and the reports of its worker since."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from launcher.core.cost.cost_model import CostModel
from launcher.core.protocol.messages import Ready
from launcher.engine.configuration import Configuration
from launcher.engine.costs import cost_info
from launcher.host.process.supervisor import InstanceState
from launcher.host.process.verify_binding import Verification
from launcher.options import Layout
from launcher.prepare.prepared_instances import PreparedInstance

Role = Literal["serving", "standby", "retiring"]


@dataclass(slots=True)
class InstanceView:
    """One instance. ``ready`` is the message of a ready worker, ``stage`` the progress of one that is starting.

    ``role``: in a change, ``standby`` until it gets batches, ``retiring`` when it gets no more. ``outcome``, in a
    change, is set when it is ready or has failed; ``failures`` are those so far. ``drift`` is the initial one of its
    cost model.
    """

    prepared: PreparedInstance
    configuration: Configuration
    role: Role = "serving"
    outcome: asyncio.Future[str | None] | None = None
    failures: int = 0
    drift: float = 1.0
    pid: int | None = None
    ready: Ready | None = None
    stage: str | None = None
    verification: Verification | None = None

    def settle(self, reason: str | None) -> None:
        """Tell a change how the start has ended: with a ready worker (None), or why not."""
        if self.outcome is not None and not self.outcome.done():
            self.outcome.set_result(reason)

    def info(self, state: InstanceState, cost: CostModel | None) -> dict[str, Any]:
        """The entry of this instance in ``/info``; ``cost`` is None if the scheduler does not know it."""
        plan, binding, command, ready = self.prepared.plan, self.prepared.binding, self.prepared.command, self.ready
        length_class = plan.length_class
        return {
            "id": plan.id,
            **state,
            "cpus": list(plan.cpus),
            "threads": plan.threads,
            "nodes": list(plan.nodes),
            "memory": plan.memory,
            "class": None if length_class is None else {
                "min_length": length_class.min_length, "max_length": length_class.max_length
            },
            "command": list(command.command),
            "env": dict(command.env),
            "why": plan.why,
            "binding": {"level": binding.level, "tool": binding.tool, "reason": binding.reason},
            "verification": self.verification.to_json() if self.verification else None,
            "cost": cost_info(ready, cost) if ready and cost else None,
            "worker": None if ready is None else _worker_info(ready),
        }  # fmt: skip


def _worker_info(ready: Ready) -> dict[str, Any]:
    return {
        "torch": ready.torch_version,
        "dtype": ready.dtype,
        "load_seconds": round(ready.load_seconds, 3),
        "warmup_seconds": round(ready.warmup_seconds, 3),
        "accuracy": ready.accuracy,
        "packed": ready.packed,
        "measured": [list(m) for m in ready.measured],
        "notes": list(ready.notes),
    }


def packing_info(ready: Sequence[Ready], layout: Layout) -> str | None:
    """A description of the batch layout; None while no instance is ready."""
    if not ready:
        return None
    if all(message.packed for message in ready):
        return "on: inputs are concatenated, without padding"
    if layout == "fifo":
        return "off: inputs are batched in order of arrival and padded"
    return "off: inputs of similar length are batched and padded"
