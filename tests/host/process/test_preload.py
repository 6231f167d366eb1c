"""Finding and testing libraries: small ones that are compiled here, and real ones where installed."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from launcher.core.planning.preload import KINDS, Library
from launcher.host.process.preload import check_preload, find_libraries, read_huge_pages, search_paths

needs_gcc = pytest.mark.skipif(shutil.which("gcc") is None, reason="needs gcc to make libraries")

# An allocator that never frees, and the entry point of an OpenMP runtime without threads.
ALLOCATOR = """
#include <stddef.h>
#include <string.h>
static char heap[1 << 26] __attribute__((aligned(16)));
static size_t used;
void *malloc(size_t n) {
    size_t at = __atomic_fetch_add(&used, (n + 31) & ~(size_t)15, __ATOMIC_SEQ_CST);
    *(size_t *)(heap + at) = n;
    return heap + at + 16;
}
void free(void *p) { (void)p; }
void *calloc(size_t a, size_t b) { return memset(malloc(a * b), 0, a * b); }
void *realloc(void *p, size_t n) {
    void *q = malloc(n);
    if (p) { size_t old = *(size_t *)((char *)p - 16); memcpy(q, p, old < n ? old : n); }
    return q;
}
"""
OPENMP = "void GOMP_parallel(void (*f)(void *), void *d, unsigned n, unsigned g) { f(d); }"
NEEDS_WHAT_IS_NOT_THERE = "extern int nobody_has_this(void); int call(void) { return nobody_has_this(); }"
ENDS_THE_PROCESS = "#include <signal.h>\n__attribute__((constructor)) void start(void) { raise(SIGSEGV); }"
NOTHING = "int nothing;"


def compiled(path: Path, code: str, *flags: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    command = ["gcc", "-shared", "-fPIC", "-x", "c", "-", "-o", str(path), *flags]
    subprocess.run(command, input=code, text=True, check=True)
    return path


def environment(*folders: Path, **more: str) -> dict[str, str]:
    inherited = {name: value for name, value in os.environ.items() if name != "LD_PRELOAD"}
    own = {"LD_LIBRARY_PATH": ":".join(map(str, folders))} if folders else {}
    return {**inherited, **own, **more}


def seek(library: Library, *folders: Path, **more: str) -> tuple[str | None, tuple[tuple[str, str], ...]]:
    (search,) = find_libraries((library,), environment(*folders, **more)).searches
    assert search.library == library
    return search.usable, search.refused


@needs_gcc
@pytest.mark.parametrize(
    ("library", "name", "code"),
    [
        ("tcmalloc", "libtcmalloc_minimal.so.4", ALLOCATOR),
        ("jemalloc", "libjemalloc.so.2", ALLOCATOR),
        ("intel", "libiomp5.so", OPENMP),
    ],
)
def test_a_library_with_a_versioned_name_is_found(library: Library, name: str, code: str, tmp_path: Path) -> None:
    path = compiled(tmp_path / name, code)
    assert seek(library, tmp_path) == (str(path), ())


@needs_gcc
def test_several_names_of_one_file_are_tested_once_and_the_shortest_is_used(tmp_path: Path) -> None:
    real = compiled(tmp_path / "libjemalloc.so.2.5.3", ALLOCATOR)
    (tmp_path / "libjemalloc.so.2").symlink_to(real.name)
    assert seek("jemalloc", tmp_path) == (str(tmp_path / "libjemalloc.so.2"), ())


@needs_gcc
def test_the_minimal_tcmalloc_is_preferred(tmp_path: Path) -> None:
    compiled(tmp_path / "libtcmalloc.so.4", ALLOCATOR)
    minimal = compiled(tmp_path / "libtcmalloc_minimal.so.4", ALLOCATOR)
    assert seek("tcmalloc", tmp_path) == (str(minimal), ())


@needs_gcc
def test_a_library_that_fails_is_skipped_with_the_reason(tmp_path: Path) -> None:
    first, second, third = (tmp_path / name for name in ("a", "b", "c"))
    (first / "libjemalloc.so.2").parent.mkdir()
    (first / "libjemalloc.so.2").write_text("no library at all")
    compiled(second / "libjemalloc.so.2", NEEDS_WHAT_IS_NOT_THERE, "-Wl,-z,now")
    good = compiled(third / "libjemalloc.so.2", ALLOCATOR)
    usable, refused = seek("jemalloc", first, second, third)
    assert usable == str(good)
    (text, text_reason), (needy, needy_reason) = refused
    assert (text, needy) == (str(first / "libjemalloc.so.2"), str(second / "libjemalloc.so.2"))
    assert "ld.so reports that it cannot be preloaded (" in text_reason
    assert "nobody_has_this" in needy_reason


@needs_gcc
@pytest.mark.parametrize(
    ("code", "reason"),
    [
        (ENDS_THE_PROCESS, "fails (killed by SIGSEGV)"),
        (NOTHING, "when it is preloaded, malloc comes from "),
    ],
)
def test_a_library_that_loads_but_does_not_work_is_refused(code: str, reason: str, tmp_path: Path) -> None:
    path = compiled(tmp_path / "libtcmalloc.so.4", code)
    said = check_preload(path, "malloc", environment())
    assert said is not None
    assert reason in said


@needs_gcc
def test_a_runtime_without_the_entry_points_of_gcc_is_refused(tmp_path: Path) -> None:
    path = compiled(tmp_path / "libiomp5.so", NOTHING)
    assert (
        check_preload(path, "GOMP_parallel", environment()) == "when it is preloaded, GOMP_parallel comes from nowhere"
    )


@needs_gcc
def test_a_library_is_tested_after_those_that_the_user_preloads(tmp_path: Path) -> None:
    users = compiled(tmp_path / "libmine.so", ALLOCATOR)
    path = compiled(tmp_path / "libjemalloc.so.2", ALLOCATOR)
    said = check_preload(path, "malloc", environment(LD_PRELOAD=str(users)))
    assert said == f"when it is preloaded, malloc comes from {users}"
    harmless = compiled(tmp_path / "libharmless.so", NOTHING)
    assert check_preload(path, "malloc", environment(LD_PRELOAD=str(harmless))) is None


@needs_gcc
def test_a_broken_preload_of_the_user_is_not_attributed_to_the_library(tmp_path: Path) -> None:
    path = compiled(tmp_path / "libjemalloc.so.2", ALLOCATOR)
    assert check_preload(path, "malloc", environment(LD_PRELOAD=str(tmp_path / "gone.so"))) is None


@needs_gcc
def test_a_path_with_a_space_is_not_used(tmp_path: Path) -> None:
    folder = tmp_path / "with blank"
    compiled(folder / "libjemalloc.so.2", ALLOCATOR)
    usable, _ = seek("jemalloc", folder)
    assert usable != str(folder / "libjemalloc.so.2")


def test_the_python_environment_is_searched_where_pip_puts_libraries() -> None:
    found = search_paths({})
    assert list(found) == [
        "ldconfig -p", "default loader paths", "lib of the Python environment", "site-packages",
    ]  # fmt: skip
    assert Path(sys.prefix) / "lib" in found["lib of the Python environment"]


def test_without_wanted_libraries_nothing_is_searched(tmp_path: Path) -> None:
    assert find_libraries((), {"LD_LIBRARY_PATH": str(tmp_path)}).searches == ()


@pytest.mark.parametrize("library", ["tcmalloc", "jemalloc", "intel"])
def test_the_installed_libraries_of_this_machine_pass_the_test(library: Library) -> None:
    (search,) = find_libraries((library,), environment()).searches
    if search.usable is None:
        pytest.skip(f"no {KINDS[library].shown} on this machine")
    assert check_preload(Path(search.usable), KINDS[library].provides, environment()) is None


@pytest.mark.parametrize(
    ("text", "mode"), [("always [madvise] never\n", "madvise"), ("always madvise [never]\n", "never"), ("?\n", None)]
)
def test_the_mode_of_huge_pages_is_read(text: str, mode: str | None, tmp_path: Path) -> None:
    folder = tmp_path / "sys/kernel/mm/transparent_hugepage"
    folder.mkdir(parents=True)
    (folder / "enabled").write_text(text)
    assert read_huge_pages(tmp_path) == mode
    assert read_huge_pages(tmp_path / "elsewhere") is None
