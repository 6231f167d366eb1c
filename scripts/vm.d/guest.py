"""Boots one guest, runs one command in it, and always terminates it.

The command's output streams, exit code and results are files in a folder shared by host and guest: the host follows the
streams as they grow. QEMU is killed by its process id, by the time limit, or by the kernel when this process dies.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shlex
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from image import Image
from shape import Shape, qemu_arguments

# Emulated mitigations and randomization cost a third of the time and test nothing here; cpu0_hotplug lets kernels
# before 6.5 take cpu 0 offline; a panic ends QEMU at once because of -no-reboot. String instructions are emulated byte
# by byte; without them (erms; 112 is rep_good in the kernel's cpufeatures.h) memory is cleared seven times faster.
KERNEL_COMMAND = (
    "console=ttyS0 quiet panic=-1 mitigations=off nokaslr no5lvl nowatchdog tsc=reliable clearcpuid=112 cpu0_hotplug"
)
# monitor=off: otherwise an offline cpu waits with mwait, which QEMU emulates by spinning.
CPU_MODEL = "max,vendor=GenuineIntel,erms=off,monitor=off"
EXIT_TIME_LIMIT = 124
EXIT_NO_ANSWER = 125
FOLLOW_SECONDS = 0.05
POWER_OFF_SECONDS = 10.0
# A guest can hang forever in QEMU's emulation of self-modifying code (seen once in about forty boots: all cpus in the
# kernel's int3 handler, at an instruction that had long been patched back). Its heartbeat then stops.
BEAT_SECONDS = 5
SILENT_SECONDS = 120.0
BOOTS = 3

START = """while :; do echo >/run/vm/alive; sleep {beat}; done &
cd {folder}
export HOME={home} PATH={path} LC_ALL=C.UTF-8 PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1 VM_RESULTS=/run/vm
{command} </dev/null >/run/vm/stdout 2>/run/vm/stderr
echo $? >/run/vm/exit_code.part
mv /run/vm/exit_code.part /run/vm/exit_code
sync
echo o >/proc/sysrq-trigger
while :; do sleep 1; done
"""


@dataclass(frozen=True, slots=True)
class Boot:
    """One boot: the command, its folder, the folder that the guest may write to, and the time limit in seconds."""

    shape: Shape
    image: Image
    command: Sequence[str]
    folder: Path
    results: Path
    seconds: float
    kernel_command: str = ""


@dataclass(frozen=True, slots=True)
class BootResult:
    """How a boot ended: with the exit code of the command, or without one and with ``reason``, a phrase that follows
    the guest's name. ``came_up``: the command may have started.
    """

    code: int | None
    reason: str
    came_up: bool
    timed_out: bool


def run_guest(boot: Boot) -> int:
    """The exit code of the command; ``EXIT_TIME_LIMIT`` or ``EXIT_NO_ANSWER`` if there is none, with the reason on
    stderr. A guest that does not come up is booted again, because nothing has run in it.
    """
    limit = time.monotonic() + boot.seconds
    for attempt in range(1, BOOTS + 1):
        end = _run_once(boot, limit)
        if end.code is not None:
            return end.code
        print(f"vm: {boot.shape.name} {end.reason}; the end of its console:\n{_console(boot)}", file=sys.stderr)
        if end.came_up or end.timed_out:
            break
        print(f"vm: the guest did not come up (boot {attempt} of at most {BOOTS})", file=sys.stderr)
    return EXIT_TIME_LIMIT if end.timed_out else EXIT_NO_ANSWER


def _run_once(boot: Boot, limit: float) -> BootResult:
    for name in ("stdout", "stderr", "exit_code", "console", "alive"):
        (boot.results / name).unlink(missing_ok=True)
    (boot.results / "start").write_text(_start(boot))
    with _qemu(boot) as process:
        reason = _follow(boot, process, limit)
    code, came_up = boot.results / "exit_code", (boot.results / "alive").exists()
    return BootResult(int(code.read_text()) if code.exists() else None, reason, came_up, time.monotonic() > limit)


@contextlib.contextmanager
def only_guest(lock: Path) -> Iterator[None]:
    """Wait until no other guest runs on this machine: two would run at half speed and use twice the memory."""
    lock.parent.mkdir(parents=True, exist_ok=True)
    with lock.open("w") as held:
        try:
            fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            print("vm: waiting for another guest to exit", file=sys.stderr)
            fcntl.flock(held, fcntl.LOCK_EX)
        yield


def qemu_command(boot: Boot) -> list[str]:
    """The complete command line of QEMU, which the kernel kills when its parent dies."""
    return [
        *("setpriv", "--pdeathsig", "KILL", "qemu-system-x86_64"),
        *("-machine", "q35", "-accel", "tcg,thread=multi", "-cpu", CPU_MODEL),
        *("-nodefaults", "-no-user-config", "-display", "none", "-no-reboot"),
        *qemu_arguments(boot.shape),
        *("-serial", f"file:{boot.results / 'console'}".replace(",", ",,")),
        *("-kernel", str(boot.image.kernel), "-initrd", str(boot.image.initramfs)),
        *("-append", f"{KERNEL_COMMAND} {boot.kernel_command}".strip()),
        *("-device", "virtio-rng-pci"),
        *_share("root", Path("/"), "readonly=on,multidevs=remap"),
        *_share("results", boot.results, "readonly=off"),
    ]


def _console(boot: Boot) -> str:
    path = boot.results / "console"
    text = path.read_text(errors="replace") if path.exists() else ""
    return text.split("Call Trace:")[0][-3000:]


def _share(tag: str, path: Path, options: str) -> list[str]:
    device = f"virtio-9p-pci,fsdev={tag},mount_tag={tag}"
    escaped = str(path).replace(",", ",,")
    return ["-fsdev", f"local,id={tag},path={escaped},security_model=none,{options}", "-device", device]


def _start(boot: Boot) -> str:
    return START.format(
        beat=BEAT_SECONDS,
        folder=shlex.quote(str(boot.folder)),
        home=shlex.quote(os.environ.get("HOME", "/root")),
        path=shlex.quote("/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"),
        command=shlex.join(boot.command),
    )


@contextlib.contextmanager
def _qemu(boot: Boot) -> Iterator[subprocess.Popen[bytes]]:
    process = subprocess.Popen(qemu_command(boot), stdin=subprocess.DEVNULL)
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def _follow(boot: Boot, process: subprocess.Popen[bytes], limit: float) -> str:
    """Copy the two streams as they grow; returns why they ended, as a phrase that follows the guest's name."""
    with contextlib.ExitStack() as stack:
        streams: list[tuple[BinaryIO, BinaryIO]] = []
        for name, target in (("stdout", sys.stdout.buffer), ("stderr", sys.stderr.buffer)):
            path = boot.results / name
            path.touch()
            streams.append((stack.enter_context(path.open("rb")), target))
        heart = Heartbeat(boot.results / "alive")
        reason = None
        while reason is None:
            _copy(streams)
            if (boot.results / "exit_code").exists():
                limit = min(limit, time.monotonic() + POWER_OFF_SECONDS)
            reason = _over(boot, process, limit, heart)
            time.sleep(FOLLOW_SECONDS)
        _copy(streams)
    return reason


def _over(boot: Boot, process: subprocess.Popen[bytes], limit: float, heart: Heartbeat) -> str | None:
    ended = process.poll()
    if ended is not None:
        return f"ended without an answer (QEMU: {ended})"
    if time.monotonic() > limit:
        return f"did not exit within {boot.seconds:.0f} s"
    if heart.silent_seconds() > SILENT_SECONDS:
        return f"hangs: no heartbeat for {SILENT_SECONDS:.0f} s"
    return None


class Heartbeat:
    """The time of the guest's last heartbeat, by this machine's clock."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._seen: int | None = None
        self._at = time.monotonic()

    def silent_seconds(self) -> float:
        """Seconds since the file was last seen to change, or since the start."""
        changed = self._path.stat().st_mtime_ns if self._path.exists() else None
        if changed != self._seen:
            self._seen, self._at = changed, time.monotonic()
        return time.monotonic() - self._at


def _copy(streams: list[tuple[BinaryIO, BinaryIO]]) -> None:
    for source, target in streams:
        while content := source.read(1 << 16):
            target.write(content)
            target.flush()
