"""Which libraries are preloaded: each choice, with what was found and with the user's own settings."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from launcher.core.planning.plan import InstancePlan
from launcher.core.planning.preload import (
    KINDS,
    Allocator,
    Library,
    LibrarySearch,
    OpenMP,
    Preload,
    PreloadFacts,
    choose_preload,
    split_preload,
    wanted_libraries,
)
from launcher.core.planning.worker_env import worker_env
from launcher.errors import MachineError, UsageError

PATHS: dict[Library, str] = {
    "tcmalloc": "/usr/lib/libtcmalloc_minimal.so.4",
    "jemalloc": "/usr/lib/libjemalloc.so.2",
    "intel": "/venv/lib/libiomp5.so",
}
INSTANCE = InstancePlan(0, (0, 1), (0, 1), 2, (0,), "bind", None, "For a test.")


def facts(*there: Library, huge_pages: str | None = "never", **refused: str) -> PreloadFacts:
    """A machine with these libraries; keywords: libraries that exist but do not load, with the reason."""
    searches = [
        LibrarySearch(
            library,
            path if library in there else None,
            ((path + ".old", refused[library]),) if library in refused else (),
            ("ldconfig -p", "site-packages"),
        )
        for library, path in PATHS.items()
    ]
    return PreloadFacts(tuple(searches), huge_pages)


def choose(
    allocator: Allocator = "auto", openmp: OpenMP = "auto", machine: PreloadFacts | None = None, **env: str
) -> Preload:
    return choose_preload(allocator, openmp, machine, env)


EVERYTHING = facts("tcmalloc", "jemalloc", "intel")


@pytest.mark.parametrize(
    ("asked", "machine", "taken"),
    [
        ("auto", EVERYTHING, "tcmalloc"),
        ("auto", facts("jemalloc"), "jemalloc"),
        ("auto", facts(), "system"),
        ("tcmalloc", EVERYTHING, "tcmalloc"),
        ("jemalloc", EVERYTHING, "jemalloc"),
        ("system", EVERYTHING, "system"),
    ],
)
def test_the_requested_allocator_is_preloaded(asked: Allocator, machine: PreloadFacts, taken: str) -> None:
    chosen = choose(asked, machine=machine)
    assert chosen.allocator == taken
    assert chosen.env.get("LD_PRELOAD") == {**PATHS, "system": None}[taken]
    assert ("MALLOC_CONF" in chosen.env) == (taken == "jemalloc")


def test_auto_without_a_library_names_the_package_to_install() -> None:
    (note,) = choose(machine=facts()).notes
    assert "tcmalloc" in note
    assert "libtcmalloc-minimal4" in note


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        (("tcmalloc", "auto"), ["--allocator tcmalloc", "libtcmalloc_minimal.so*", "libtcmalloc-minimal4"]),
        (("jemalloc", "auto"), ["--allocator jemalloc", "libjemalloc.so*", "libjemalloc2"]),
        (("auto", "intel"), ["--openmp intel", "libiomp5.so", "intel-openmp"]),
    ],
)
def test_a_missing_library_requested_by_name_is_refused_with_the_searched_places(
    asked: tuple[Allocator, OpenMP], words: list[str]
) -> None:
    with pytest.raises(MachineError) as caught:
        choose_preload(*asked, facts(), {})
    for word in (*words, "ldconfig -p", "site-packages"):
        assert word in str(caught.value)


def test_a_library_that_does_not_load_is_named_with_the_reason() -> None:
    broken = facts(tcmalloc="ld.so reports that it cannot be preloaded")
    with pytest.raises(MachineError, match=r"libtcmalloc_minimal\.so\.4\.old cannot be used: ld\.so reports"):
        choose("tcmalloc", machine=broken)
    notes = choose(machine=broken).notes
    assert "/usr/lib/libtcmalloc_minimal.so.4.old was found but is not used: ld.so reports" in notes[0]
    assert len(notes) == 2


def test_libraries_that_were_not_requested_are_ignored() -> None:
    with pytest.raises(MachineError):
        choose("jemalloc", machine=facts("tcmalloc"))


def test_the_users_preloads_are_kept_and_come_first() -> None:
    chosen = choose("tcmalloc", "intel", EVERYTHING, LD_PRELOAD="/a/libprofiler.so /b/libcheck.so:/a/libprofiler.so")
    assert chosen.env["LD_PRELOAD"].split(":") == [
        "/a/libprofiler.so", "/b/libcheck.so", PATHS["tcmalloc"], PATHS["intel"],
    ]  # fmt: skip
    assert "LD_PRELOAD" not in choose("system", machine=EVERYTHING, LD_PRELOAD="/a/libprofiler.so").env


def test_nothing_is_preloaded_twice() -> None:
    chosen = choose("tcmalloc", machine=EVERYTHING, LD_PRELOAD=PATHS["tcmalloc"])
    assert "LD_PRELOAD" not in chosen.env
    assert chosen.allocator == "user"


@pytest.mark.parametrize("users", ["/x/libmimalloc.so.2", "libjemalloc.so.2", "/x/libtcmalloc_and_profiler.so.4"])
def test_no_second_allocator_is_added_to_the_users(users: str) -> None:
    chosen = choose("auto", machine=EVERYTHING, LD_PRELOAD=users)
    assert chosen.allocator == "user"
    assert "LD_PRELOAD" not in chosen.env
    with pytest.raises(UsageError, match=f"--allocator tcmalloc.*{re.escape(users)}"):
        choose("tcmalloc", machine=EVERYTHING, LD_PRELOAD=users)


@pytest.mark.parametrize(
    ("asked", "users"), [("intel", "/x/libgomp.so.1"), ("gnu", "/x/libiomp5.so"), ("gnu", "libomp.so.5")]
)
def test_a_preloaded_openmp_runtime_that_conflicts_with_the_option_is_refused(asked: OpenMP, users: str) -> None:
    with pytest.raises(UsageError, match=f"--openmp {asked}.*{re.escape(users)}"):
        choose(openmp=asked, machine=EVERYTHING, LD_PRELOAD=users)
    assert "LD_PRELOAD" not in choose("system", machine=EVERYTHING, LD_PRELOAD=users).env


@pytest.mark.parametrize("asked", ["auto", "gnu"])
def test_no_openmp_runtime_is_preloaded_unless_requested(asked: OpenMP) -> None:
    chosen = choose("system", asked, EVERYTHING)
    assert (chosen.openmp, dict(chosen.env)) == ("own", {})


def test_intels_threads_neither_pin_themselves_nor_spin_for_long() -> None:
    env = choose("system", "intel", EVERYTHING).env
    assert env == {"LD_PRELOAD": PATHS["intel"], "KMP_AFFINITY": "disabled", "KMP_BLOCKTIME": "1"}
    kept = choose("system", "intel", EVERYTHING, KMP_BLOCKTIME="200").env
    assert "KMP_BLOCKTIME" not in kept


@pytest.mark.parametrize(("mode", "asked"), [("always", True), ("madvise", True), ("never", False), (None, False)])
def test_huge_pages_are_requested_where_the_kernel_grants_them(mode: str | None, asked: bool) -> None:
    machine = facts("tcmalloc", huge_pages=mode)
    assert ("THP_MEM_ALLOC_ENABLE" in choose(machine=machine).env) == asked
    assert "THP_MEM_ALLOC_ENABLE" not in choose(machine=machine, THP_MEM_ALLOC_ENABLE="0").env


def test_for_another_machine_nothing_is_preloaded_and_requests_are_noted() -> None:
    assert choose() == Preload("system", "own", {})
    chosen = choose("jemalloc", "intel")
    assert "LD_PRELOAD" not in chosen.env
    assert [note.partition(":")[0] for note in chosen.notes] == ["--allocator jemalloc", "--openmp intel"]


def test_only_libraries_that_may_be_used_are_searched_for() -> None:
    assert wanted_libraries("auto", "auto") == ("tcmalloc", "jemalloc")
    assert wanted_libraries("system", "gnu") == ()
    assert wanted_libraries("jemalloc", "intel") == ("jemalloc", "intel")


@pytest.mark.parametrize(
    ("library", "fitting", "others"),
    [
        ("tcmalloc", ["libtcmalloc.so", "libtcmalloc.so.4", "libtcmalloc_minimal.so.4.5.10"],
         ["libtcmalloc_minimal_debug.so.4", "libtcmalloc_and_profiler.so.4", "libtcmalloc.a", "libtcmalloc.so.bak"]),
        ("jemalloc", ["libjemalloc.so", "libjemalloc.so.2"], ["libjemalloc_pic.a", "libjemalloc-1a2b.so.2"]),
        ("intel", ["libiomp5.so"], ["libiomp5_db.so", "libiompstubs5.so", "libiomp5.dbg"]),
    ],
)  # fmt: skip
def test_libraries_are_recognized_by_their_versioned_names(
    library: Library, fitting: list[str], others: list[str]
) -> None:
    names = KINDS[library].names
    assert [name for name in (*fitting, *others) if names.fullmatch(name)] == fitting


@given(st.lists(st.sampled_from(["/a.so", "/b.so", "/c.so"])), st.sampled_from([":", " ", "::", " : "]))
def test_a_preload_list_is_read_as_the_loader_reads_it(entries: list[str], separator: str) -> None:
    assert split_preload(separator.join(entries)) == tuple(dict.fromkeys(entries))


def test_a_worker_gets_the_decision_and_the_notes_say_what_was_kept() -> None:
    user = {"LD_PRELOAD": "/a/libprofiler.so", "MALLOC_CONF": "stats_print:true", "GLIBC_TUNABLES": "x=1"}
    env, notes = worker_env(INSTANCE, user, choose_preload("jemalloc", "auto", EVERYTHING, user))
    assert env["LD_PRELOAD"] == f"/a/libprofiler.so:{PATHS['jemalloc']}"
    assert "MALLOC_CONF" not in env
    assert notes == (
        "GLIBC_TUNABLES=x=1 in your environment is kept.",
        f"LD_PRELOAD=/a/libprofiler.so in your environment is kept and precedes {PATHS['jemalloc']}.",
        "MALLOC_CONF=stats_print:true in your environment is kept.",
    )


def test_numpys_blas_starts_no_threads_in_a_worker() -> None:
    assert worker_env(INSTANCE, {})[0]["OPENBLAS_NUM_THREADS"] == "1"
    env, notes = worker_env(INSTANCE, {"OPENBLAS_NUM_THREADS": "4"})
    assert "OPENBLAS_NUM_THREADS" not in env
    assert notes == ("OPENBLAS_NUM_THREADS=4 in your environment is kept.",)
