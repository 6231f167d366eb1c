"""Finds the libraries that can be preloaded, and tests each before any worker depends on it.

A library may be built for another architecture, lack its own dependencies, or not be the one that its name suggests;
ld.so then prints a line and continues without it. So each candidate is preloaded into a small process, which reports
where the function that the library should provide comes from. ``core.planning.preload`` chooses among the libraries.
"""

from __future__ import annotations

import os
import re
import shutil
import site
import subprocess
import sys
import sysconfig
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from launcher.core.planning.preload import KINDS, Library, LibrarySearch, PreloadFacts, split_preload
from launcher.host.process.exit_status import describe_status

LOADER_FOLDERS = ("/usr/local/lib", "/usr/local/lib64", "/lib64", "/usr/lib64", "/lib", "/usr/lib")
TEST_SECONDS = 10.0

# Runs with the library preloaded and reports which file provides the function, and whether the library is mapped.
TEST = """
import ctypes, sys
function = getattr(ctypes.CDLL(None), sys.argv[1], None)
address = ctypes.cast(function, ctypes.c_void_p).value if function else 0
mapped = False
with open('/proc/self/maps') as maps:
    for line in maps:
        fields = line.rstrip('\\n').split(None, 5)
        start, end = (int(number, 16) for number in fields[0].split('-'))
        if len(fields) == 6:
            mapped = mapped or fields[5] == sys.argv[2]
            if start <= address < end:
                print('PROVIDER ' + fields[5])
print('MAPPED' if mapped else 'ABSENT', flush=True)
"""


def find_libraries(libraries: Sequence[Library], env: Mapping[str, str]) -> PreloadFacts:
    """The search results for ``libraries`` on this machine, for processes with this environment.

    Takes about 20 ms per library that is found. The first path of each that loads is used, in the order of
    ``search_paths``.
    """
    folders = search_paths(env) if libraries else {}
    return PreloadFacts(tuple(_search(library, folders, env) for library in libraries), read_huge_pages())


def search_paths(env: Mapping[str, str]) -> dict[str, tuple[Path, ...]]:
    """Where libraries are searched for, in order: the name of each place, with its files or folders."""
    own = [Path(folder) for folder in env.get("LD_LIBRARY_PATH", "").split(":") if folder]
    multiarch = sysconfig.get_config_var("MULTIARCH")
    system = [Path(folder) for folder in LOADER_FOLDERS]
    if multiarch:
        system = [Path(folder) / multiarch for folder in ("/lib", "/usr/lib", "/usr/local/lib")] + system
    # pip installs files that are not Python modules there (intel-openmp), and so does conda.
    prefixes = dict.fromkeys(Path(prefix) / "lib" for prefix in (sys.prefix, sys.base_prefix, site.getuserbase()))
    packages = [
        Path(folder) for folder in dict.fromkeys((sysconfig.get_path("purelib"), sysconfig.get_path("platlib")))
    ]
    return {
        **({"LD_LIBRARY_PATH": tuple(own)} if own else {}),
        "ldconfig -p": tuple(_from_cache()),
        "default loader paths": tuple(system),
        "lib of the Python environment": tuple(prefixes),
        "site-packages": tuple(folder for base in packages for folder in (base, *sorted(base.glob("*/lib")))),
    }


def _from_cache() -> Iterator[Path]:
    """The libraries in the loader's cache; none if there is no ldconfig (musl)."""
    program = shutil.which("ldconfig", path=f"{os.environ.get('PATH', os.defpath)}:/sbin:/usr/sbin")
    if program is None:
        return
    try:
        done = subprocess.run([program, "-p"], capture_output=True, text=True, timeout=TEST_SECONDS, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return
    for line in done.stdout.splitlines():
        _, arrow, path = line.partition(" => ")
        if arrow:
            yield Path(path)


def _search(library: Library, folders: Mapping[str, Sequence[Path]], env: Mapping[str, str]) -> LibrarySearch:
    refused: list[tuple[str, str]] = []
    for path in _candidates(library, folders):
        why = check_preload(path, KINDS[library].provides, env)
        if why is None:
            return LibrarySearch(library, str(path), tuple(refused), tuple(folders))
        refused.append((str(path), why))
    return LibrarySearch(library, None, tuple(refused), tuple(folders))


def _candidates(library: Library, folders: Mapping[str, Sequence[Path]]) -> Iterator[Path]:
    """The paths with a matching name, place by place; the first of those that resolve to the same file."""
    names = KINDS[library].names
    seen: set[Path] = set()
    for group in folders.values():
        matching = [path for place in group for path in _files(place, names)]
        for path in sorted(matching, key=_preference):
            real = path.resolve()
            # ld.so would take a colon or a space in a path as a separator.
            if real not in seen and real.is_file() and not re.search(r"[: ]", str(path)):
                seen.add(real)
                yield path


def _preference(path: Path) -> tuple[bool, int]:
    """The minimal tcmalloc before the one with a profiler; then short names, which survive updates."""
    return "minimal" not in path.name, len(path.name)


def _files(place: Path, names: re.Pattern[str]) -> list[Path]:
    """The file ``place`` if its name fits, or the files of the folder ``place`` whose names do."""
    if names.fullmatch(place.name):
        return [place]
    try:
        found = sorted(os.listdir(place))  # noqa: PTH208 - a Path for each of thousands of files takes too long
        return [place / name for name in found if names.fullmatch(name)]
    except OSError:  # even if it is a file with another name: most places are files listed by ldconfig
        return []


def check_preload(path: Path, provides: str, env: Mapping[str, str]) -> str | None:
    """None when ``path`` can be preloaded after the user's libraries and provides the function ``provides``; otherwise
    the reason."""
    entries = dict.fromkeys((*split_preload(env.get("LD_PRELOAD", "")), str(path)))
    command = [sys.executable, "-I", "-S", "-c", TEST, provides, str(path.resolve())]
    try:
        done = subprocess.run(
            command,
            env={**env, "LD_PRELOAD": ":".join(entries), "LC_ALL": "C"},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=TEST_SECONDS,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return f"a process that preloads it did not exit within {TEST_SECONDS:.0f} s"
    return _error_of(path, provides, done)


def _error_of(path: Path, provides: str, done: subprocess.CompletedProcess[str]) -> str | None:
    complaint = re.search(rf"ld\.so: object '{re.escape(str(path))}' from LD_PRELOAD (.*)", done.stderr)
    if complaint:
        return f"ld.so reports that it {complaint[1].rstrip('.')}"
    if done.returncode != 0:
        lines = done.stderr.strip().splitlines()
        last = lines[-1] if lines else "no output"
        return f"a process that preloads it fails ({describe_status(done.returncode)}): {last}"
    if "MAPPED" not in done.stdout:
        return "the loader ignored it without an error"
    provider = next((line[9:] for line in done.stdout.splitlines() if line.startswith("PROVIDER ")), None)
    if provider is None or Path(provider) != path.resolve():
        return f"when it is preloaded, {provides} comes from {provider or 'nowhere'}"
    return None


def read_huge_pages(root: Path = Path("/")) -> str | None:
    """The mode of transparent huge pages: ``always``, ``madvise`` or ``never``; None if the kernel has none."""
    try:
        text = (root / "sys/kernel/mm/transparent_hugepage/enabled").read_text()
    except OSError:
        return None
    chosen = re.search(r"\[(\w+)\]", text)
    return chosen[1] if chosen else None
