"""Builds the command and the environment that bind a worker to the cores and memory of its instance.

Separate because the report prints exactly what is started; both use these functions. ``host.process.probe`` finds out
which binding level the machine supports; nothing is tried or started here. The environment of the workers (``OMP_*``,
``MKL_*`` and so on) is set in ``worker_env``.
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

# Variables of OpenMP, BLAS and allocators. If the user sets one, it is kept and reported.
LIBRARY_PREFIXES = ("OMP_", "KMP_", "GOMP_", "MKL_", "OPENBLAS_", "ONEDNN_", "DNNL_", "MALLOC_", "TCMALLOC_")
LIBRARY_VARIABLES = ("LD_PRELOAD", "GLIBC_TUNABLES", "THP_MEM_ALLOC_ENABLE")

# oneDNN caches a compiled kernel for each shape, 1,024 by default, and torch's layer above it as many again. A single
# text is a line of one of 80 lengths, with four kinds of matrix products; the cache holds all of these. A kernel that
# must be compiled again adds 1.3 ms to a text; the cache takes up to 230 MB in the worker of a packed model
# (docs/decisions/0004-worker-environment.md).
ONEDNN_CACHED_KERNELS = "384"
TORCH_CACHED_KERNELS = "16"

# glibc returns freed memory to the system only above this size; otherwise each batch would fault its pages in again.
# In int8, whose activations between the products are in fp32, that took 20 % of the time of batches of 2,048 tokens.
TRIM_BYTES = str(256 * 1024**2)
MMAP_BYTES = str(32 * 1024**2)  # the largest value that glibc accepts


# Defaults for a pinned worker; the user's environment takes precedence.
DEFAULT_ENV = {
    "TOKENIZERS_PARALLELISM": "false",  # the front tokenizes
    "OPENBLAS_NUM_THREADS": "1",  # NumPy only copies here, and OpenBLAS threads would spin once they exist
    "ONEDNN_PRIMITIVE_CACHE_CAPACITY": ONEDNN_CACHED_KERNELS,
    "LRU_CACHE_CAPACITY": TORCH_CACHED_KERNELS,
    "MALLOC_TRIM_THRESHOLD_": TRIM_BYTES,
    "MALLOC_MMAP_THRESHOLD_": MMAP_BYTES,
}


@dataclass(frozen=True, slots=True)
class Binding:
    """How one instance is bound. ``level``: memory strictly from its nodes (bind), memory preferably from them
    (preferred), cpus only (cpus), or nothing (none); ``tool``: what applies it; ``reason``: why this level, in
    words."""

    level: Level
    tool: Tool
    reason: str


def command_prefix(instance: InstancePlan, binding: Binding) -> tuple[str, ...]:
    """The command prefix that binds a program: ``numactl -C 0-11 -m 0``; empty if numactl is not used."""
    if binding.tool != "numactl" or binding.level == "none":
        return ()
    return ("numactl", "-C", format_cpu_list(instance.cpus), *_numactl_memory(instance, binding.level))


def _numactl_memory(instance: InstancePlan, level: Level) -> tuple[str, ...]:
    nodes = format_cpu_list(instance.nodes)
    if not nodes or level == "cpus":
        return ()
    if level == "preferred":
        # -p takes one node; -P takes several and needs numactl 2.0.15 and Linux 5.15.
        return ("-p", nodes) if len(instance.nodes) == 1 else ("-P", nodes)
    return ("-i", nodes) if instance.memory == "interleave" else ("-m", nodes)


def worker_command(instance: InstancePlan, binding: Binding, python: str) -> tuple[str, ...]:
    """The complete command of the instance's worker; without numactl it has the options by which the worker binds
    itself."""
    own = (python, "-m", "launcher.worker", "--instance", str(instance.id), "--threads", str(instance.threads))
    return (*command_prefix(instance, binding), *own, *_self_binding(instance, binding))


def program_command(
    instance: InstancePlan, binding: Binding, program: Sequence[str], binder: Sequence[str]
) -> tuple[str, ...]:
    """The complete command of another program; without numactl, ``binder`` precedes it and applies the binding."""
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
    """The variables to set for the instance's worker in addition to the user's environment, and notes about the
    user's own settings.

    The number of threads always follows the plan. Any other variable that the user sets for these libraries is kept.
    """
    threads = str(instance.threads)
    counts = {"OMP_NUM_THREADS": threads, "MKL_NUM_THREADS": threads}
    kept = {name: value for name, value in user_env.items() if _is_library_variable(name) or name in DEFAULT_ENV}
    added = {name: value for name, value in DEFAULT_ENV.items() if name not in kept}
    notes = [
        f"{name}={user_env[name]} in your environment is ignored: each instance has as many threads as cores; "
        "--cores-per-instance sets both."
        for name, value in counts.items()
        if user_env.get(name, value) != value
    ]
    notes += _kept_notes({name: value for name, value in kept.items() if name not in counts}, runtimes)
    return {**counts, **added, **runtimes.env}, tuple(notes)


def program_env(
    instance: InstancePlan, instances: int, user_env: Mapping[str, str], runtimes: Runtimes
) -> tuple[dict[str, str], tuple[str, ...]]:
    """The variables to set for another program in addition to the user's environment, and notes about the user's own
    settings.

    ``LAUNCH_*`` describe its instance. It gets as many threads as cores unless the user sets another number: only the
    user knows what the program computes and how.
    """
    threads = str(instance.threads)
    counts = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), threads)
    kept = {name: value for name, value in user_env.items() if _is_library_variable(name) and counts.get(name) != value}
    place = {RUN_PREFIX + name.upper(): value for name, value in values_of(instance, instances).items()}
    wanted = {name: value for name, value in counts.items() if name not in kept}
    return {**wanted, **place, **runtimes.env}, tuple(_kept_notes(kept, runtimes))


def _is_library_variable(name: str) -> bool:
    """Whether an environment variable is for OpenMP, BLAS or an allocator."""
    return name.startswith(LIBRARY_PREFIXES) or name in LIBRARY_VARIABLES


def _kept_notes(kept: Mapping[str, str], runtimes: Runtimes = OWN_RUNTIMES) -> list[str]:
    """One sentence for each variable that the user has set and that is kept."""
    return [_kept_note(name, kept[name], runtimes) for name in sorted(kept)]


def _kept_note(name: str, value: str, runtimes: Runtimes) -> str:
    note = f"{name}={value} in your environment is kept"
    if name == "GOMP_CPU_AFFINITY":
        return f"{note}, but it moves threads off the planned cores, possibly all of them to one core; unset it."
    if name == "LD_PRELOAD" and name in runtimes.env:
        added = runtimes.env[name].split(":")[len(split_preload(value)) :]
        return f"{note} and precedes {', '.join(added)}."
    return f"{note}."
