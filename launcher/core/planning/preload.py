"""Chooses the allocator and the OpenMP runtime that a program preloads, and their settings.

Separate from ``core.planning.binding``, which handles cores and memory; this module handles libraries that are loaded
before all others. ``host.process.preload`` finds them and checks that they load; this module does not search.

Rationale. *Allocator*: it determines how often freed pages go back to the kernel and have to be zeroed again. With the
batches of a worker (2,048 tokens, mixed lengths, one core), all allocators took the same time once warm, and tcmalloc
had 12 % less resident memory; at 512 tokens on 40 cores, 1.73 times the speed was published. So ``auto`` uses
tcmalloc, or else jemalloc, and runs without either. *Huge pages*: torch's own request for them costs nothing. glibc's
(``glibc.malloc.hugetlb=1``) is not used: it was 1 % faster for MiniLM and 3 % slower for BERT-base, because a huge
page that malloc gave back is zeroed as a whole when it returns. *OpenMP*: Intel's runtime is mostly neutral, and its
threads spin for 200 ms after each batch by default, so ``auto`` stays with the runtime that ships with torch.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from launcher.errors import MachineError, UsageError
from launcher.options.choices import Allocator, OpenMP

Library = Literal["tcmalloc", "jemalloc", "intel"]


@dataclass(frozen=True, slots=True)
class LibraryKind:
    """One library that can be preloaded.

    ``names`` matches its file names, including versioned ones (the only ones in Debian), and ``shown`` is the readable
    form; ``provides`` is a function that must resolve to it once it is loaded; ``install`` names the packages.
    """

    names: re.Pattern[str]
    shown: str
    provides: str
    install: str


KINDS: Mapping[Library, LibraryKind] = {
    "tcmalloc": LibraryKind(
        re.compile(r"libtcmalloc(?:_minimal)?\.so(?:\.\d+)*"),
        "libtcmalloc_minimal.so* or libtcmalloc.so*",
        "malloc",
        "libtcmalloc-minimal4 (Debian, Ubuntu) or gperftools-libs (Fedora, RHEL)",
    ),
    "jemalloc": LibraryKind(
        re.compile(r"libjemalloc\.so(?:\.\d+)*"),
        "libjemalloc.so*",
        "malloc",
        "libjemalloc2 (Debian, Ubuntu) or jemalloc (Fedora, RHEL)",
    ),
    "intel": LibraryKind(
        re.compile(r"libiomp5\.so(?:\.\d+)*"),
        "libiomp5.so",
        # The entry point of programs built with GCC: without it they would keep using their own runtime.
        "GOMP_parallel",
        "intel-openmp (pip, conda; x86 only)",
    ),
}

ALLOCATORS = re.compile(r"lib(?:tcmalloc|jemalloc|mimalloc|snmalloc|hoard)[^/]*\.so[^/]*")
OPENMP_RUNTIMES = re.compile(r"lib(?:gomp|iomp5|omp5?)(?:-[0-9a-f]+)?\.so[.0-9]*")

# By default jemalloc returns blocks over 8 MiB to the kernel at once: 6,300 page faults per batch instead of 150.
JEMALLOC_CONF = "oversize_threshold:0"

INTEL_ENV: Mapping[str, str] = {
    # Each thread may use all cores of its instance, as planned. The library's own pinning would hold the main thread,
    # and every thread created later, on the first core.
    "KMP_AFFINITY": "disabled",
    # Milliseconds that a thread spins for more work (default 200): long enough for the gap between two operators, and
    # an idle instance uses no cpu time.
    "KMP_BLOCKTIME": "1",
}


@dataclass(frozen=True, slots=True)
class LibrarySearch:
    """The result of searching for one library: ``usable`` is the path that loads, ``refused`` the paths that do not,
    with the reason, ``places`` the folders that were searched."""

    library: Library
    usable: str | None
    refused: tuple[tuple[str, str], ...] = ()
    places: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class PreloadFacts:
    """What the machine offers: the search results for the libraries asked about, and the mode of transparent huge
    pages (``always``, ``madvise``, ``never``; None: unknown)."""

    searches: tuple[LibrarySearch, ...] = ()
    huge_pages: str | None = None


@dataclass(frozen=True, slots=True)
class Preload:
    """The decision. ``env`` holds the variables to set; ``LD_PRELOAD`` includes the user's entries. ``notes`` are
    sentences about libraries that were not found or not used."""

    allocator: Literal["tcmalloc", "jemalloc", "system", "user"]
    openmp: Literal["intel", "own", "user"]
    env: Mapping[str, str]
    notes: tuple[str, ...] = ()


NO_PRELOAD = Preload("system", "own", {})


def wanted_libraries(allocator: Allocator, openmp: OpenMP) -> tuple[Library, ...]:
    """The libraries to search for, in order of preference."""
    allocators: Mapping[Allocator, tuple[Library, ...]] = {
        "auto": ("tcmalloc", "jemalloc"),
        "tcmalloc": ("tcmalloc",),
        "jemalloc": ("jemalloc",),
        "system": (),
    }
    return (*allocators[allocator], *(("intel",) if openmp == "intel" else ()))


def choose_preload(
    allocator: Allocator, openmp: OpenMP, facts: PreloadFacts | None, user_env: Mapping[str, str]
) -> Preload:
    """The allocator and the OpenMP runtime for all instances. ``facts`` None: planning for another machine.

    Raises ``MachineError`` if a library that was requested by name is missing or does not load, ``UsageError`` if the
    user's own ``LD_PRELOAD`` contains a conflicting one.
    """
    mine = split_preload(user_env.get("LD_PRELOAD", ""))
    taken, preload, notes = _choose_allocator(allocator, facts, mine)
    runtime, more, said = _choose_openmp(openmp, facts, mine)
    env = {
        **({"MALLOC_CONF": JEMALLOC_CONF} if taken == "jemalloc" else {}),
        **(INTEL_ENV if runtime == "intel" else {}),
        **_huge_pages(facts),
    }
    env = {name: value for name, value in env.items() if name not in user_env}
    added = [path for path in (*preload, *more) if path not in mine]
    if added:
        # The user's entries come first: an interposer (a profiler, a checker) must be found first and forwards calls.
        env = {"LD_PRELOAD": ":".join((*mine, *added)), **env}
    return Preload(taken, runtime, env, (*notes, *said))


def split_preload(value: str) -> tuple[str, ...]:
    """The entries of ``LD_PRELOAD``, which ld.so splits at colons and spaces, without duplicates."""
    return tuple(dict.fromkeys(entry for entry in re.split(r"[: ]+", value) if entry))


def _choose_allocator(
    asked: Allocator, facts: PreloadFacts | None, mine: Sequence[str]
) -> tuple[Literal["tcmalloc", "jemalloc", "system", "user"], tuple[str, ...], tuple[str, ...]]:
    users = _first_of(ALLOCATORS, mine)
    if users is not None:
        if asked in ("tcmalloc", "jemalloc") and not KINDS[asked].names.fullmatch(_name(users)):
            raise UsageError(_conflict(f"--allocator {asked}", users))
        return "user", (), ()
    if asked == "system":
        return "system", (), ()
    if facts is None:
        return "system", (), (_not_here(f"--allocator {asked}"),) if asked != "auto" else ()
    wanted = wanted_libraries(asked, "auto")
    searches = [one for one in facts.searches if one.library in wanted]
    refusals = tuple(_refusals(searches))
    for one in searches:
        if one.usable is not None:
            return ("tcmalloc" if one.library == "tcmalloc" else "jemalloc"), (one.usable,), refusals
    if asked != "auto":
        raise MachineError(_absent(searches[0], f"--allocator {asked}", "or use --allocator auto"))
    return "system", (), (*refusals, _neither(searches))


def _choose_openmp(
    asked: OpenMP, facts: PreloadFacts | None, mine: Sequence[str]
) -> tuple[Literal["intel", "own", "user"], tuple[str, ...], tuple[str, ...]]:
    users = _first_of(OPENMP_RUNTIMES, mine)
    if users is not None:
        is_gnu = _name(users).startswith("libgomp")
        if asked == ("intel" if is_gnu else "gnu"):
            raise UsageError(_conflict(f"--openmp {asked}", users))
        # The settings of Intel's runtime also suit one that the user preloads.
        return ("intel" if KINDS["intel"].names.fullmatch(_name(users)) else "user"), (), ()
    if asked != "intel":
        return "own", (), ()
    if facts is None:
        return "intel", (), (_not_here("--openmp intel"),)
    (search,) = (one for one in facts.searches if one.library == "intel")
    if search.usable is None:
        raise MachineError(
            _absent(search, "--openmp intel", "or use --openmp auto (the runtime that ships with torch)")
        )
    return "intel", (search.usable,), tuple(_refusals([search]))


def _huge_pages(facts: PreloadFacts | None) -> dict[str, str]:
    """Makes torch align its tensors to huge pages and request them, if the kernel grants them."""
    if facts is None or facts.huge_pages not in ("always", "madvise"):
        return {}
    return {"THP_MEM_ALLOC_ENABLE": "1"}


def _name(path: str) -> str:
    return path.rpartition("/")[2]


def _first_of(names: re.Pattern[str], entries: Sequence[str]) -> str | None:
    return next((entry for entry in entries if names.fullmatch(_name(entry))), None)


def _conflict(asked: str, users: str) -> str:
    return (
        f"{asked}: LD_PRELOAD in your environment contains {users}, and only one of the two can be loaded; "
        f"remove either"
    )


def _not_here(asked: str) -> str:
    return f"{asked}: the library is searched for on the machine itself, so these commands do not include it."


def _absent(search: LibrarySearch, asked: str, otherwise: str) -> str:
    kind = KINDS[search.library]
    found = "; ".join(f"{path} cannot be used: {why}" for path, why in search.refused)
    what = found or f"no {kind.shown} in {', '.join(search.places)}"
    return f"{asked}: {what}; install {kind.install}, {otherwise}"


def _neither(searches: Sequence[LibrarySearch]) -> str:
    names = " or ".join(one.library for one in searches)
    return (
        f"No {names} was found, so the C library's allocator is used, which is equally fast for short texts but "
        f"slower for long texts on many cores. To get one, install {KINDS['tcmalloc'].install}."
    )


def _refusals(searches: Sequence[LibrarySearch]) -> list[str]:
    return [f"{path} was found but is not used: {why}." for one in searches for path, why in one.refused]
