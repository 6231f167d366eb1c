"""The registry of claimed cores: files and locks, of running and of ended processes, and of hostile ones."""

from __future__ import annotations

import fcntl
import json
import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from launcher.core.planning.claims import Claim
from launcher.errors import LauncherError, UsageError
from launcher.host.process.stop_launchers import stop_launchers
from launcher.host.registry import MAX_FILE_BYTES, Held, Registry, user_name
from launcher.options import StopOptions

CLAIM = Claim(
    "demo-8000", os.getpid(), user_name(os.geteuid()), "serve", "http://127.0.0.1:8000", "demo", (0, 1, 4), 5.0
)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "registry"


def hold(registry: Registry, claim: Claim = CLAIM) -> Held:
    with registry.locked() as handle:
        return registry.write(handle, claim)


# A launcher: claims the cpus of its arguments, says so, and waits.
LAUNCHER = """
import os, sys, time
from dataclasses import replace
from pathlib import Path
from launcher.core.planning.claims import Claim
from launcher.host.registry import Registry
registry = Registry([Path(sys.argv[1])])
claim = Claim("other", os.getpid(), "", "serve", None, None, (7,), time.time())
with registry.locked() as handle:
    held = registry.write(handle, claim)
print("claimed", flush=True)
sys.stdin.read()
"""


def start(folder: Path, program: str = LAUNCHER) -> subprocess.Popen[str]:
    process = subprocess.Popen(
        [sys.executable, "-c", program, str(folder)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "claimed\n"
    return process


def test_a_claim_is_read_by_others_until_it_is_released(folder: Path) -> None:
    registry = Registry([folder])
    held = hold(registry)
    assert Registry([folder]).read().claims == (CLAIM,)
    assert registry.read().owners == {CLAIM.pid: os.geteuid()}
    held.release()
    held.release()
    assert registry.read().claims == ()
    assert list(folder.iterdir()) == []


def test_a_dropped_claim_is_released(folder: Path) -> None:
    registry = Registry([folder])
    hold(registry)
    assert registry.read().claims == ()


@pytest.mark.parametrize("number", [signal.SIGKILL, None])
def test_the_claim_of_an_ended_process_is_void_and_removed_by_the_next_one(
    folder: Path, number: signal.Signals | None
) -> None:
    process = start(folder)
    (claim,) = Registry([folder]).read().claims
    assert (claim.name, claim.pid, claim.cpus) == ("other", process.pid, (7,))
    if number is None:
        process.communicate("")
    else:
        process.send_signal(number)
        process.wait()
    assert Registry([folder]).read().claims == ()
    with hold(Registry([folder])):
        assert len(list(folder.iterdir())) == 1


def test_a_claim_that_lacks_a_descriptor_leaves_nothing(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(_: int) -> int:
        raise OSError(24, "Too many open files")

    registry = Registry([folder])
    with registry.locked() as handle:
        before = len(os.listdir("/proc/self/fd"))  # noqa: PTH208
        monkeypatch.setattr(os, "dup", refused)
        assert registry.write(handle, CLAIM).claim is None
        assert len(os.listdir("/proc/self/fd")) == before  # noqa: PTH208
    assert list(folder.iterdir()) == []


def test_a_fork_neither_removes_nor_keeps_a_claim(folder: Path) -> None:
    forking = LAUNCHER.replace("print(", "fork = os.fork()\nif not fork:\n    sys.exit()\nos.waitpid(fork, 0)\nprint(")
    process = start(folder, forking)
    assert [claim.pid for claim in Registry([folder]).read().claims] == [process.pid]
    process.communicate("")
    assert Registry([folder]).read().claims == ()


def test_programs_see_no_claim_of_the_launcher_that_has_started_them(folder: Path) -> None:
    registry = Registry([folder])
    held = hold(registry)
    code = (
        "import sys; from pathlib import Path; from launcher.host.registry import Registry;"
        "registry = Registry([Path(sys.argv[1])]);"
        "print(len(registry.read().claims), len(registry.others()))"
    )
    done = subprocess.run([sys.executable, "-c", code, str(folder)], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["1", "0"]
    assert registry.others() == (CLAIM,), "two engines of one process do not share cores either"
    held.release()


def test_the_folder_is_open_to_all_users_and_each_can_remove_only_its_own_files(folder: Path) -> None:
    umask = os.umask(0o077)
    try:
        held = hold(Registry([folder]))
    finally:
        os.umask(umask)
    assert folder.stat().st_mode & 0o7777 == 0o1777
    (file,) = folder.iterdir()
    assert file.stat().st_mode & 0o777 == 0o644
    held.release()


def test_the_first_usable_folder_is_written_and_all_are_read(tmp_path: Path) -> None:
    one, two = tmp_path / "absent" / "one", tmp_path / "two"
    held = hold(Registry([one, two]))
    assert not one.parent.exists()
    one.parent.mkdir()
    other = hold(Registry([one, two]), replace(CLAIM, name="second"))
    assert {claim.name for claim in Registry([one, two]).read().claims} == {"demo-8000", "second"}
    assert [claim.name for claim in Registry([one]).read().claims] == ["second"]
    held.release()
    other.release()


def test_without_a_usable_folder_nothing_is_claimed(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text("")
    registry = Registry([file / "registry"])
    held = hold(registry)
    assert registry.read().claims == ()
    held.release()


def test_a_link_in_place_of_the_folder_is_not_followed(tmp_path: Path) -> None:
    target, link = tmp_path / "target", tmp_path / "link"
    target.mkdir(mode=0o700)
    link.symlink_to(target)
    registry = Registry([link])
    with hold(registry):
        assert list(target.iterdir()) == []
    assert "cannot be read" in registry.read().problems[0]


def test_a_folder_in_which_others_could_replace_files_is_not_used(folder: Path) -> None:
    folder.mkdir()
    folder.chmod(0o777)
    with hold(Registry([folder])):
        assert list(folder.iterdir()) == []
    assert "no sticky bit" in Registry([folder]).read().problems[0]


def locked(path: Path, content: bytes) -> int:
    """A file that this process has locked, as a launcher does."""
    path.write_bytes(content)
    file = os.open(path, os.O_RDWR)
    fcntl.flock(file, fcntl.LOCK_EX)
    return file


GOOD = {"name": "x", "pid": 7, "kind": "serve", "address": None, "model": None, "cpus": "0", "since": 1.0}


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"[]",
        json.dumps({**GOOD, "pid": 0}).encode(),
        json.dumps({**GOOD, "cpus": "0-99999999999"}).encode(),
        json.dumps({**GOOD, "cpus": "x"}).encode(),
        json.dumps({**GOOD, "kind": "\x1b[2J"}).encode(),
        json.dumps({**GOOD, "name": "x" * 2000}).encode(),
        b'{"name": "' + b"x" * (2 * MAX_FILE_BYTES),
    ],
)
def test_a_file_that_is_not_a_claim_is_reported_and_hides_no_other(folder: Path, content: bytes) -> None:
    registry = Registry([folder])
    held = hold(registry)
    file = locked(folder / "1-bad.json", content)
    listing = registry.read()
    assert listing.claims == (CLAIM,)
    (problem,) = listing.problems
    assert problem.isprintable()
    os.close(file)
    held.release()


def test_control_characters_of_a_claim_are_escaped(folder: Path) -> None:
    folder.mkdir()
    file = locked(folder / "1-x.json", json.dumps({**GOOD, "name": "\x1b[31mred\n", "model": "a\tb"}).encode())
    (claim,) = Registry([folder]).read().claims
    assert (claim.name, claim.model) == ("\\x1b[31mred\\n", "a\\tb")
    os.close(file)


def test_pipes_and_links_among_the_files_do_not_block(folder: Path, tmp_path: Path) -> None:
    folder.mkdir()
    os.mkfifo(folder / "1-pipe.json")
    (folder / "2-link.json").symlink_to("/dev/zero")
    (folder / "3-folder.json").mkdir()
    registry = Registry([folder])
    with hold(registry):
        assert registry.read().claims == (CLAIM,)


def test_the_variable_selects_the_registry(folder: Path) -> None:
    held = hold(Registry([folder]))
    assert Registry.of({"LAUNCH_REGISTRY": str(folder)}).read().claims == (CLAIM,)
    assert Registry.of({"LAUNCH_REGISTRY": "off"}).read().claims == ()
    with pytest.raises(UsageError, match="absolute path, or 'off'"):
        Registry.of({"LAUNCH_REGISTRY": "relative"})
    held.release()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can act for another user")
def test_a_forged_claim_cannot_stop_a_process_of_another_user(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LAUNCH_REGISTRY", str(folder))
    folder.mkdir(mode=0o700)
    with subprocess.Popen(["sleep", "60"]) as victim:
        path = folder / f"{victim.pid}-x.json"
        file = locked(path, json.dumps({**GOOD, "pid": victim.pid}).encode())
        os.chown(path, 65534, 65534)
        with pytest.raises(LauncherError, match="belongs to another user than the claim"):
            stop_launchers(StopOptions(names=("x",), seconds=0))
        stop_launchers(StopOptions(all=True, seconds=0))
        assert victim.poll() is None
        os.chown(path, 0, 0)
        stop_launchers(StopOptions(all=True))
        assert victim.wait(10) == -signal.SIGTERM
        os.close(file)
