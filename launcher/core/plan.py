"""The plan: which instance gets which cores and which memory, with the reason for each decision.

A pure function of machine and request. Frozen values, JSON in and out.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from launcher.core.lengths import ClassSpec, LengthClass

MemoryPolicy = Literal["bind", "interleave", "local"]


@dataclass(frozen=True, slots=True)
class PlanRequest:
    """What the user wants. ``None`` means: decide for me.

    ``classes`` and ``instances``/``cores_per_instance`` exclude each other. ``length_limit`` is the longest
    sequence the model takes, ``instance_bytes`` the memory one instance is expected to need.
    """

    instances: int | None = None
    cores_per_instance: int | None = None
    classes: tuple[ClassSpec, ...] = ()
    reserve_cores: int | None = None
    oversubscribe: bool = False
    mix_kinds: bool = False
    length_limit: int | None = None
    instance_bytes: int | None = None


@dataclass(frozen=True, slots=True)
class InstancePlan:
    """One instance: ``cpus`` are the first allowed cpu of each of its ``cores``; one thread each.

    ``memory`` is ``bind`` or, over several nodes, ``interleave``; ``local`` where the machine has no nodes.
    """

    id: int
    cores: tuple[int, ...]
    cpus: tuple[int, ...]
    threads: int
    nodes: tuple[int, ...]
    memory: MemoryPolicy
    length_class: LengthClass | None
    why: str


@dataclass(frozen=True, slots=True)
class Plan:
    """All instances, and what is left. Every usable core is in an instance, reserved or unused."""

    instances: tuple[InstancePlan, ...]
    reserved_cpus: tuple[int, ...]
    unused_cpus: tuple[int, ...]
    warnings: tuple[str, ...] = ()
