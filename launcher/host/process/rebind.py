"""Binds the threads of a process again that something has moved: ``taskset -p``, or the kernel.

The kernel gives a thread the whole cpuset when no cpu of its mask is left in it; in cgroup v1 it does so with every
change of the cpuset. Separate from ``verify_binding``, which changes nothing.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Moved:
    """Threads that did not have their mask: how many there were, the cpus they could run on, and why they could not be
    bound again (None: they were)."""

    threads: int
    found: tuple[int, ...]
    bound_to: tuple[int, ...]
    problem: str | None = None


def bind_again(pid: int, cpus: Sequence[int], allowed: Sequence[int]) -> Moved | None:
    """Bind the threads of a process that may run on other cpus than ``cpus``, or all if none may use one of them.

    Threads with narrower masks, which OpenMP or a program sets, stay as they are. Returns None if nothing was to be
    done: also if none of ``cpus`` is ``allowed`` now, or the process has exited.
    """
    target = set(cpus) & set(allowed)
    masks = _masks(pid)
    if not target or not masks:
        return None
    moved = {thread: mask for thread, mask in masks.items() if not mask <= target}
    if not moved and set().union(*masks.values()) != target:
        moved = masks
    if not moved:
        return None
    problem = None
    for thread in moved:
        try:
            os.sched_setaffinity(thread, target)
        except ProcessLookupError:
            continue  # it has just ended
        except OSError as error:
            problem = error.strerror
    found = set().union(*moved.values())
    return Moved(len(moved), tuple(sorted(found)), tuple(sorted(target)), problem)


def _masks(pid: int) -> dict[int, set[int]]:
    masks: dict[int, set[int]] = {}
    try:
        for name in os.listdir(f"/proc/{pid}/task"):  # noqa: PTH208  # names are enough
            try:
                masks[int(name)] = os.sched_getaffinity(int(name))
            except ProcessLookupError:
                continue
    except OSError:  # the process has exited, or a sandbox refuses the call
        return {}
    return masks
