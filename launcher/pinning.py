"""The first steps of a process: requesting a parent-death signal, binding itself to cpus and memory nodes.

Separate, and below ``host`` and ``worker``, because three kinds of process use it: workers, probes and the programs of
``launch run``. It must run first: threads inherit the affinity mask, pages follow the memory policy at the time they
are touched, and OpenMP sizes its thread pool from the mask. Only the standard library may be imported here.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import platform
import signal
from collections.abc import Sequence
from pathlib import Path

from launcher.core.machine.cpuset import format_cpu_list, parse_cpu_list
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
    """Become the parent of every descendant whose own parent exits. Raises ``MachineError``."""
    _prctl("PR_SET_CHILD_SUBREAPER", PR_SET_CHILD_SUBREAPER, 1)


def _prctl(name: str, option: int, value: int) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(option, value, 0, 0, 0) != 0:
        raise MachineError(f"prctl({name}) was refused: {os.strerror(ctypes.get_errno())}")


def allowed_cpus() -> tuple[int, ...]:
    """The cpus that this thread may use; from ``/proc`` in a sandbox that refuses ``sched_getaffinity``."""
    try:
        return tuple(sorted(os.sched_getaffinity(0)))
    except OSError:
        pass
    with contextlib.suppress(OSError, ValueError):
        for line in Path("/proc/thread-self/status").read_text().splitlines():
            name, _, value = line.partition(":")
            if name == "Cpus_allowed_list":
                return parse_cpu_list(value.strip())
    return tuple(range(os.cpu_count() or 1))


def bind_cpus(cpus: Sequence[int]) -> None:
    """Restrict this thread, and everything it starts, to exactly ``cpus``. Raises ``MachineError``.

    The kernel silently drops cpus that are offline or outside the cpuset, so the mask is read back.
    """
    wanted = format_cpu_list(cpus)
    try:
        os.sched_setaffinity(0, cpus)
    except OSError as error:
        raise MachineError(f"cpus {wanted} were refused by sched_setaffinity: {error.strerror}") from error
    missing = set(cpus) - set(allowed_cpus())
    if missing:
        raise MachineError(
            f"cpus {wanted} were requested, but {format_cpu_list(missing)} are offline or outside the cpuset"
        )


def bind_process(cpus: Sequence[int]) -> tuple[int, ...]:
    """Restrict all threads of this process to ``cpus``, and return the previous mask.

    Raises ``MachineError`` if that is not possible; the mask is then unchanged. Imported libraries may have started
    threads, and each thread has its own mask.
    """
    before = allowed_cpus()
    try:
        bind_cpus(cpus)
    except MachineError:
        with contextlib.suppress(OSError):
            os.sched_setaffinity(0, before)
        raise
    for thread in Path("/proc/self/task").iterdir():
        # The thread may have ended meanwhile.
        with contextlib.suppress(ProcessLookupError):
            os.sched_setaffinity(int(thread.name), cpus)
    return before


def bind_memory(policy: str, nodes: Sequence[int]) -> None:
    """Set the memory policy for pages touched from now on: only from ``nodes`` (``bind``), from them in turn
    (``interleave``), or from the first one while it has free memory (``preferred``). Raises ``MachineError`` when the
    kernel refuses.
    """
    wanted = f"memory {policy} on node {format_cpu_list(nodes)}"
    machine = platform.machine()
    if machine not in SET_MEMPOLICY:
        raise MachineError(
            f"{wanted}: the system call number of set_mempolicy on {machine} is unknown; install numactl"
        )
    mask, bits = _node_mask(nodes[:1] if policy == "preferred" else nodes)
    libc = ctypes.CDLL(None, use_errno=True)
    # The kernel uses one bit less than maxnode says (mm/mempolicy.c, get_nodes), hence the + 1.
    status = libc.syscall(
        ctypes.c_long(SET_MEMPOLICY[machine]),
        ctypes.c_long(MEMORY_POLICIES[policy]),
        mask,
        ctypes.c_ulong(bits + 1),
    )
    if status != 0:
        reason = os.strerror(ctypes.get_errno())
        raise MachineError(f"{wanted} was refused by set_mempolicy: {reason} (containers often filter this call)")


def _node_mask(nodes: Sequence[int]) -> tuple[ctypes.Array[ctypes.c_ulong], int]:
    """The bit mask of ``nodes`` as an array of machine words, and its size in bits."""
    word = ctypes.sizeof(ctypes.c_ulong) * 8
    words = [0] * (max(nodes) // word + 1)
    for node in nodes:
        words[node // word] |= 1 << node % word
    return (ctypes.c_ulong * len(words))(*words), word * len(words)
