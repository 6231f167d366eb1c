"""How a worker is bound to its instance's cores and memory, and told its threads: commands and environments as text.

Separate because the report prints exactly what is started: both take the words from here. Which level works on a
machine is found out in ``host.process.probe``; nothing is tried or started here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from launcher.core.machine.cpuset import format_cpu_list
from launcher.core.planning.placeholders import values_of
from launcher.core.planning.plan import InstancePlan
from launcher.core.planning.preload import OWN_RUNTIMES, Runtimes, split_preload
from launcher.options.environment import RUN_PREFIX

Level = Literal["bind", "preferred", "cpus", "none"]
Tool = Literal["numactl", "syscalls"]

# What a user may set for the OpenMP and BLAS libraries; kept as it is, and said.
RUNTIME_PREFIXES = ("OMP_", "KMP_", "GOMP_", "MKL_", "OPENBLAS_", "ONEDNN_", "DNNL_", "MALLOC_", "TCMALLOC_")
RUNTIME_NAMES = ("LD_PRELOAD", "GLIBC_TUNABLES", "THP_MEM_ALLOC_ENABLE")

# oneDNN keeps a compiled kernel for each shape that it has met, 1,024 by default, and torch's layer above it as many.
# A single text is a line of one of 80 lengths, with four kinds of products: all of these are kept. Where a kernel
# must be made anew a text takes 1.3 ms longer; they take up to 230 MB in the worker of a packed model
# (docs/decisions/0004-worker-environment.md).
KERNELS_KEPT = "384"
KERNELS_KEPT_ABOVE = "16"

# Freed memory goes back to the system only beyond so much; otherwise its pages are touched anew in each batch. In
# int8, whose states between the products are in fp32, that took 20 % of the time of batches of 2,048 tokens.
TRIM_BYTES = str(256 * 1024**2)
MAP_BYTES = str(32 * 1024**2)  # the most that glibc takes


# What suits a pinned worker, where the user has no wish of his own.
DEFAULTS = {
    "TOKENIZERS_PARALLELISM": "false",  # the front tokenizes
    "OPENBLAS_NUM_THREADS": "1",  # numpy only copies here, and its threads would spin when they are made
    "ONEDNN_PRIMITIVE_CACHE_CAPACITY": KERNELS_KEPT,
    "LRU_CACHE_CAPACITY": KERNELS_KEPT_ABOVE,
    "MALLOC_TRIM_THRESHOLD_": TRIM_BYTES,
    "MALLOC_MMAP_THRESHOLD_": MAP_BYTES,
}


@dataclass(frozen=True, slots=True)
class Binding:
    """How one instance is bound. ``level``: memory only from its nodes, memory preferably from them, cpus alone, or
    nothing; ``tool``: what applies it; ``reason``: why this level, in words."""

    level: Level
    tool: Tool
    reason: str


def command_prefix(instance: InstancePlan, binding: Binding) -> tuple[str, ...]:
    """What goes before a program so that it runs bound: ``numactl -C 0-11 -m 0``; empty where numactl is not used."""
    if binding.tool != "numactl" or binding.level == "none":
        return ()
    return ("numactl", "-C", format_cpu_list(instance.cpus), *_numactl_memory(instance, binding.level))


def _numactl_memory(instance: InstancePlan, level: Level) -> tuple[str, ...]:
    nodes = format_cpu_list(instance.nodes)
    if not nodes or level == "cpus":
        return ()
    if level == "preferred":
        # -p takes one node; -P, several of them, is known to numactl from 2.0.15 and to Linux from 5.15 on.
        return ("-p", nodes) if len(instance.nodes) == 1 else ("-P", nodes)
    return ("-i", nodes) if instance.memory == "interleave" else ("-m", nodes)


def worker_command(instance: InstancePlan, binding: Binding, python: str) -> tuple[str, ...]:
    """The whole command of the instance's worker; without numactl it carries what the worker applies to itself."""
    own = (python, "-m", "launcher.worker", "--instance", str(instance.id), "--threads", str(instance.threads))
    return (*command_prefix(instance, binding), *own, *_self_binding(instance, binding))


def program_command(
    instance: InstancePlan, binding: Binding, program: Sequence[str], binder: Sequence[str]
) -> tuple[str, ...]:
    """The whole command of a foreign program; without numactl, ``binder`` goes before it and applies the binding."""
    own = _self_binding(instance, binding)
    before = (*binder, *own, "--") if own else command_prefix(instance, binding)
    return (*before, *program)


def _self_binding(instance: InstancePlan, binding: Binding) -> tuple[str, ...]:
    if binding.tool != "syscalls" or binding.level == "none":
        return ()
    cpus = ("--cpus", format_cpu_list(instance.cpus))
    if binding.level == "cpus" or not instance.nodes:
        return cpus
    policy = "preferred" if binding.level == "preferred" else instance.memory
    return (*cpus, "--memory", policy, "--nodes", format_cpu_list(instance.nodes))


def worker_env(
    instance: InstancePlan, user_env: Mapping[str, str], runtimes: Runtimes = OWN_RUNTIMES
) -> tuple[dict[str, str], tuple[str, ...]]:
    """What is set for the instance's worker beside the user's own environment, and notes on what the user has set.

    The number of threads is the plan's. Everything else that a user sets for these libraries is kept.
    """
    threads = str(instance.threads)
    counts = {"OMP_NUM_THREADS": threads, "MKL_NUM_THREADS": threads}
    kept = {name: value for name, value in user_env.items() if is_for_runtimes(name) or name in DEFAULTS}
    added = {name: value for name, value in DEFAULTS.items() if name not in kept}
    notes = [
        f"{name}={user_env[name]} of your environment is not used: every instance has as many threads as cores; "
        "--cores-per-instance changes both."
        for name, value in counts.items()
        if user_env.get(name, value) != value
    ]
    notes += kept_notes({name: value for name, value in kept.items() if name not in counts}, runtimes)
    return {**counts, **added, **runtimes.env}, tuple(notes)


def program_env(
    instance: InstancePlan, instances: int, user_env: Mapping[str, str], runtimes: Runtimes
) -> tuple[dict[str, str], tuple[str, ...]]:
    """What is set for a foreign program beside the user's own environment, and notes on what the user has set.

    It is told its place, and as many threads as it has cores unless the user says otherwise: what computes in it, and
    how, only the user knows.
    """
    threads = str(instance.threads)
    counts = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), threads)
    kept = {name: value for name, value in user_env.items() if is_for_runtimes(name) and counts.get(name) != value}
    place = {RUN_PREFIX + name.upper(): value for name, value in values_of(instance, instances).items()}
    wanted = {name: value for name, value in counts.items() if name not in kept}
    return {**wanted, **place, **runtimes.env}, tuple(kept_notes(kept, runtimes))


def is_for_runtimes(name: str) -> bool:
    """Whether an environment variable is for OpenMP, BLAS or an allocator."""
    return name.startswith(RUNTIME_PREFIXES) or name in RUNTIME_NAMES


def kept_notes(kept: Mapping[str, str], runtimes: Runtimes = OWN_RUNTIMES) -> list[str]:
    """What is said of variables that a user has set and that stay as they are, a sentence for each."""
    return [_kept_note(name, kept[name], runtimes) for name in sorted(kept)]


def _kept_note(name: str, value: str, runtimes: Runtimes) -> str:
    note = f"{name}={value} of your environment is kept"
    if name == "GOMP_CPU_AFFINITY":
        return f"{note}, but it moves threads off the planned cores: all of them may end up on one; unset it."
    if name == "LD_PRELOAD" and name in runtimes.env:
        added = runtimes.env[name].split(":")[len(split_preload(value)) :]
        return f"{note}, and comes before {', '.join(added)}."
    return f"{note}."
