"""What a process does to itself before it becomes what it is for: die with its parent, bind to cpus and memory.

Separate, and below ``host`` and ``worker``, because three kinds of process begin with it: a worker, a probe and a
copy of a foreign program. It must run first: threads and pages take over the mask and the policy of the moment in
which they are made, and OpenMP sizes its pool from the mask. Only the standard library may enter here.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import platform
import signal
from collections.abc import Sequence
from pathlib import Path

from launcher.core.machine.cpuset import format_cpu_list
from launcher.errors import MachineError

PR_SET_PDEATHSIG, PR_SET_CHILD_SUBREAPER = 1, 36  # linux/prctl.h

# linux/mempolicy.h
MEMORY_POLICIES = {"preferred": 1, "bind": 2, "interleave": 3}

# arch/*/entry/syscalls/*.tbl; the last three machines share asm-generic/unistd.h
SET_MEMPOLICY = {
    "x86_64": 238,
    "i386": 276,
    "i686": 276,
    "armv7l": 321,
    "ppc64": 261,
    "ppc64le": 261,
    "s390x": 270,
    "aarch64": 237,
    "riscv64": 237,
    "loongarch64": 237,
}


def die_with_parent() -> None:
    """Have the kernel kill this process when the thread that started it ends. Raises ``MachineError``."""
    _prctl("PR_SET_PDEATHSIG", PR_SET_PDEATHSIG, int(signal.SIGKILL))


def adopt_orphans() -> None:
    """Become the parent of every process below this one whose own parent ends. Raises ``MachineError``."""
    _prctl("PR_SET_CHILD_SUBREAPER", PR_SET_CHILD_SUBREAPER, 1)


def _prctl(name: str, option: int, value: int) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(option, value, 0, 0, 0) != 0:
        raise MachineError(f"prctl({name}) was refused: {os.strerror(ctypes.get_errno())}")


def bind_cpus(cpus: Sequence[int]) -> None:
    """Restrict this thread, and all that it starts, to exactly ``cpus``. Raises ``MachineError``.

    The kernel drops cpus that are offline or outside the cpuset without a word, so the mask is read back.
    """
    asked = format_cpu_list(cpus)
    try:
        os.sched_setaffinity(0, cpus)
    except OSError as error:
        raise MachineError(f"cpus {asked} were refused by sched_setaffinity: {error.strerror}") from error
    missing = set(cpus) - os.sched_getaffinity(0)
    if missing:
        raise MachineError(
            f"cpus {asked} were asked for, but {format_cpu_list(missing)} are offline or outside the cpuset"
        )


def bind_process(cpus: Sequence[int]) -> tuple[int, ...]:
    """Restrict all threads of this process to ``cpus``, and return the mask of before.

    Raises ``MachineError`` when that cannot be, with the mask as it was. Libraries that were imported may have
    started threads, each of which has a mask of its own.
    """
    before = tuple(sorted(os.sched_getaffinity(0)))
    try:
        bind_cpus(cpus)
    except MachineError:
        os.sched_setaffinity(0, before)
        raise
    for thread in Path("/proc/self/task").iterdir():
        # It may have ended meanwhile.
        with contextlib.suppress(ProcessLookupError):
            os.sched_setaffinity(int(thread.name), cpus)
    return before


def bind_memory(policy: str, nodes: Sequence[int]) -> None:
    """Have pages that are touched from now on come from ``nodes``: only (``bind``), in turn (``interleave``) or from
    the first one as long as it has some (``preferred``). Raises ``MachineError`` when the kernel refuses.
    """
    asked = f"memory {policy} on node {format_cpu_list(nodes)}"
    machine = platform.machine()
    if machine not in SET_MEMPOLICY:
        raise MachineError(f"{asked}: the number of set_mempolicy on {machine} is not known here; install numactl")
    mask, bits = _node_mask(nodes[:1] if policy == "preferred" else nodes)
    libc = ctypes.CDLL(None, use_errno=True)
    # The kernel takes one bit less than maxnode says (mm/mempolicy.c, get_nodes), hence the + 1.
    status = libc.syscall(
        ctypes.c_long(SET_MEMPOLICY[machine]),
        ctypes.c_long(MEMORY_POLICIES[policy]),
        mask,
        ctypes.c_ulong(bits + 1),
    )
    if status != 0:
        reason = os.strerror(ctypes.get_errno())
        raise MachineError(f"{asked} was refused by set_mempolicy: {reason} (containers often filter this call)")


def _node_mask(nodes: Sequence[int]) -> tuple[ctypes.Array[ctypes.c_ulong], int]:
    """The bit mask of ``nodes`` in the machine's words, and its size in bits."""
    word = ctypes.sizeof(ctypes.c_ulong) * 8
    words = [0] * (max(nodes) // word + 1)
    for node in nodes:
        words[node // word] |= 1 << node % word
    return (ctypes.c_ulong * len(words))(*words), word * len(words)
