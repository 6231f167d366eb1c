"""Builds the environment of workers and of the programs of ``launch run``: ``OMP_*``, ``MKL_*``, allocator, caches.

Separate from ``core.planning.binding``, which builds the command. A variable that the user has set is kept and
reported, except for what sets or limits the number of threads of a worker, which follows from the plan.
"""

from __future__ import annotations

from collections.abc import Mapping

from launcher.core.planning.plan import InstancePlan
from launcher.core.planning.preload import NO_PRELOAD, Preload, split_preload
from launcher.core.planning.program_placeholders import values_of
from launcher.options.env_prefixes import RUN_PREFIX

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


def takes_threads(name: str, value: str, threads: int) -> bool:
    """Whether this variable makes OpenMP start fewer than ``threads`` threads, always or when the machine is busy.

    An invalid value counts as taking none: OpenMP runtimes ignore it.
    """
    text = value.strip().lower()
    if name == "OMP_THREAD_LIMIT":
        return text.isdecimal() and 0 < int(text) < threads
    return name == "OMP_DYNAMIC" and text in ("true", "1", "yes", "on", "t", "y", ".true.")


def worker_env(
    instance: InstancePlan, user_env: Mapping[str, str], preload: Preload = NO_PRELOAD
) -> tuple[dict[str, str], tuple[str, ...]]:
    """The variables to set for the instance's worker in addition to the user's environment, and notes about the
    user's own settings.

    The number of threads always follows the plan, so limits below it are overridden. Any other variable that the user
    sets for these libraries is kept.
    """
    threads = str(instance.threads)
    counts = {"OMP_NUM_THREADS": threads, "MKL_NUM_THREADS": threads}
    overridden = {
        name: value
        for name, value in (("OMP_THREAD_LIMIT", threads), ("OMP_DYNAMIC", "false"))
        if takes_threads(name, user_env.get(name, ""), instance.threads)
    }
    kept = {name: value for name, value in user_env.items() if _is_library_variable(name) or name in DEFAULT_ENV}
    added = {name: value for name, value in DEFAULT_ENV.items() if name not in kept}
    notes = [
        f"{name}={user_env[name]} in your environment is ignored: each instance has as many threads as cores; "
        "--cores-per-instance sets both."
        for name, value in counts.items()
        if user_env.get(name, value) != value
    ]
    notes += [
        f"{name}={user_env[name]} in your environment is ignored: an instance would run on fewer than its {threads} "
        "threads."
        for name in overridden
    ]
    set_here = {**counts, **overridden}
    kept = {name: value for name, value in kept.items() if name not in set_here}
    notes += _kept_notes(kept, preload, instance.threads)
    return {**set_here, **added, **preload.env}, tuple(notes)


def program_env(
    instance: InstancePlan, instances: int, user_env: Mapping[str, str], preload: Preload
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
    return {**wanted, **place, **preload.env}, tuple(_kept_notes(kept, preload, instance.threads))


def _is_library_variable(name: str) -> bool:
    """Whether an environment variable is for OpenMP, BLAS or an allocator."""
    return name.startswith(LIBRARY_PREFIXES) or name in LIBRARY_VARIABLES


def _kept_notes(kept: Mapping[str, str], preload: Preload, threads: int) -> list[str]:
    """One sentence for each variable that the user has set and that is kept."""
    return [_kept_note(name, kept[name], preload, threads) for name in sorted(kept)]


def _kept_note(name: str, value: str, preload: Preload, threads: int) -> str:
    note = f"{name}={value} in your environment is kept"
    if name == "GOMP_CPU_AFFINITY":
        return f"{note}, but it moves threads off the planned cores, possibly all of them to one core; unset it."
    if takes_threads(name, value, threads):
        return f"{note}, but with it OpenMP starts fewer than the {threads} planned threads; unset it."
    if name == "LD_PRELOAD" and name in preload.env:
        added = preload.env[name].split(":")[len(split_preload(value)) :]
        return f"{note} and precedes {', '.join(added)}."
    return f"{note}."
