"""Reads what this process may use now: cheaply, while it runs, and whatever mask it has given itself.

Separate from ``sysfs``, which reads the whole machine and takes a hundred times longer. What a difference means is
decided in ``core.machine.changes``.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from launcher.core.machine.topology import Limits, Machine
from launcher.host.machine.cgroup import read_bounds
from launcher.host.machine.file_tree import Tree
from launcher.host.machine.sysfs import CPU
from launcher.pinning import allowed_cpus


@dataclass(frozen=True, slots=True)
class Reading:
    """One reading. ``allowed`` are the cpus of the cpuset that are online, ``front`` is the affinity mask of the main
    thread; the affinity in ``limits`` is not used."""

    online: tuple[int, ...]
    allowed: tuple[int, ...]
    front: tuple[int, ...]
    limits: Limits


class CapacityReader:
    """Reads in the thread that calls ``read``, whose affinity mask it widens for a moment.

    ``machine``: the one that was planned for; only its nodes with memory count.
    """

    def __init__(self, machine: Machine) -> None:
        self.possible = Tree(Path("/")).cpu_list(f"{CPU}/possible") or machine.present
        self._with_memory = frozenset(node.id for node in machine.nodes if node.memory_bytes != 0)

    def read(self) -> Reading:
        """The values now. About 1 ms."""
        tree = Tree(Path("/"))
        bounds = read_bounds(tree)
        front = _front_mask()
        allowed = self._allowed(front)
        online = tree.cpu_list(f"{CPU}/online") or allowed
        if allowed is None:  # a sandbox refuses affinity masks
            allowed = tuple(cpu for cpu in online or front if bounds.cpuset is None or cpu in bounds.cpuset)
        return Reading(online or allowed, allowed, front, self._with_memory_only(bounds.limits))

    def _allowed(self, front: Sequence[int]) -> tuple[int, ...] | None:
        """All cpus that the kernel lets this thread use: it reduces a mask of all cpus to the cpuset and to what is
        online. The file of a cpuset is not visible everywhere."""
        try:
            os.sched_setaffinity(0, self.possible)
            return tuple(sorted(os.sched_getaffinity(0)))
        except OSError:
            return None
        finally:
            with contextlib.suppress(OSError):
                os.sched_setaffinity(0, front)

    def _with_memory_only(self, limits: Limits) -> Limits:
        nodes = limits.memory_nodes
        if nodes is None or not self._with_memory:
            return Limits(limits.cpu_quota, None, limits.memory_bytes)
        return Limits(limits.cpu_quota, tuple(sorted(self._with_memory & set(nodes))), limits.memory_bytes)


def _front_mask() -> tuple[int, ...]:
    """The mask of the main thread, which ``taskset -p`` sets."""
    try:
        return tuple(sorted(os.sched_getaffinity(os.getpid())))
    except OSError:
        return allowed_cpus()
