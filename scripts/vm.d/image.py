"""Builds what the guest boots from: Debian's kernel and a small initramfs, fetched and built once, kept in .cache/vm.

There is no disk image. The guest's root is the host's own root, read-only over 9p, under an overlay in memory: it runs
the same Python, torch and checkout as the host, a change of the code needs no new build, and the guest cannot change
the host.
"""

from __future__ import annotations

import gzip
import hashlib
import lzma
import os
import platform
import re
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

# The generic kernel, because Debian's cloud kernel has no 9p.
KERNEL_PACKAGE = "linux-image-amd64"
BUSYBOX_PACKAGE = "busybox-static"
MODULES = ("virtio_pci", "virtio_rng", "9pnet_virtio", "9p", "overlay")
MODULE_FOLDERS = (
    "drivers/virtio",
    "drivers/char/hw_random",
    "net/9p",
    "fs/9p",
    "fs/netfs",
    "fs/fscache",
    "fs/overlayfs",
)
PACKAGES = {
    "qemu-system-x86_64": "qemu-system-x86",
    "setpriv": "util-linux",
    "numactl": "numactl",
    "lscpu": "util-linux",
}

# cache=loose: the host's files do not change while the guest runs, and otherwise every stat would be a message. Large
# read-aheads, because each fault on a mapped library costs a message: importing torch takes half the time. The results
# are mounted without a cache, so that data is on the host when write() returns.
INIT = """#!/bin/busybox sh
export PATH=/bin
/bin/busybox mount -t proc proc /proc
/bin/busybox --install -s /bin
mount -t sysfs sysfs /sys
mount -t devtmpfs dev /dev
for module in {modules}; do insmod /modules/$module.ko || echo "vm: module $module cannot be loaded"; done
share=trans=virtio,version=9p2000.L,msize=524288
mount -t 9p -o $share,ro,cache=loose root /host || poweroff -f
for ahead in /sys/class/bdi/9p-*/read_ahead_kb; do echo 2048 >$ahead; done
mount -t tmpfs -o size=60% upper /upper
mkdir /upper/new /upper/work
mount -t overlay -o lowerdir=/host,upperdir=/upper/new,workdir=/upper/work root /root || poweroff -f
for kind in proc sysfs devtmpfs; do
  case $kind in proc) at=proc ;; sysfs) at=sys ;; *) at=dev ;; esac
  mkdir -p /root/$at
  mount -t $kind $kind /root/$at
done
mkdir -p /root/dev/shm /root/dev/pts /root/run/vm
mount -t tmpfs shm /root/dev/shm
mount -t devpts devpts /root/dev/pts
mount -t cgroup2 cgroup2 /root/sys/fs/cgroup
mount -t 9p -o $share,cache=none results /root/run/vm || poweroff -f
ip link set lo up
hostname guest
exec switch_root /root /bin/sh /run/vm/start
"""


class ImageError(RuntimeError):
    """The guest cannot be built here; the message states what is missing and how to get it."""


@dataclass(frozen=True, slots=True)
class Image:
    """The paths of the kernel and the initramfs."""

    kernel: Path
    initramfs: Path


def build_image(cache: Path, say: Callable[[str], None], *, again: bool = False) -> Image:
    """The kernel and the initramfs in ``cache``, built if this file has changed since the last build, or if ``again``
    is set. Raises ``ImageError``.
    """
    install_programs(say)
    # The key is the content of this file: it determines every input except newer packages, which are no reason to
    # build.
    folder = cache / hashlib.sha256(Path(__file__).read_bytes()).hexdigest()[:16]
    image = Image(folder / "vmlinuz", folder / "initramfs.gz")
    if again and folder.exists():
        shutil.rmtree(folder)
    if not folder.exists():
        cache.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=cache, prefix="building-") as scratch:
            made = Path(scratch) / "image"
            made.mkdir()
            _build_into(made, Path(scratch), say)
            made.rename(folder)
        _remove_older(folder)
    return image


def _remove_older(kept: Path) -> None:
    for folder in kept.parent.iterdir():
        if folder != kept and (folder / "initramfs.gz").exists():
            shutil.rmtree(folder)


def install_programs(say: Callable[[str], None]) -> None:
    """Install missing programs, if this is root and apt is installed. Raises ``ImageError`` otherwise."""
    if platform.machine() != "x86_64":
        raise ImageError(f"the guests need x86-64, but this machine is {platform.machine()}")
    missing = sorted({package for program, package in PACKAGES.items() if shutil.which(program) is None})
    if not missing:
        return
    if shutil.which("apt-get") is None or os.geteuid() != 0:
        raise ImageError(f"not installed: {', '.join(missing)}; as root: apt-get install {' '.join(missing)}")
    say(f"installing {' '.join(missing)}")
    _apt_fresh("install", "--yes", "--no-install-recommends", *missing)


def _build_into(made: Path, scratch: Path, say: Callable[[str], None]) -> None:
    if shutil.which("apt-cache") is None or shutil.which("dpkg-deb") is None:
        raise ImageError("apt is not installed; the guest boots Debian's kernel: use Debian, or a Debian container")
    say("fetching the kernel and busybox")
    package = _kernel_package()
    kernel_deb, busybox_deb = _download(package, scratch), _download(BUSYBOX_PACKAGE, scratch)
    folders = [f"./lib/modules/*/kernel/{folder}/*" for folder in MODULE_FOLDERS]
    kernel = _unpack(kernel_deb, scratch / "kernel", ["./boot/vmlinuz-*", *folders])
    busybox = _unpack(busybox_deb, scratch / "busybox", ["./bin/busybox"])
    say(f"building the initramfs for {package}")
    shutil.move(next(kernel.glob("boot/vmlinuz-*")), made / "vmlinuz")
    archive = _initramfs((busybox / "bin/busybox").read_bytes(), _load_order(kernel))
    (made / "initramfs.gz").write_bytes(gzip.compress(archive, 6))
    (made / "packages").write_text(f"{kernel_deb.name}\n{busybox_deb.name}\n")


def _kernel_package() -> str:
    """The package with Debian's newest kernel; the name without a version is only a metapackage."""
    for known in (True, False):
        if not known and os.geteuid() == 0:
            _apt("update")
        shown = subprocess.run(["apt-cache", "depends", KERNEL_PACKAGE], capture_output=True, text=True, check=False)
        match = re.search(r"Depends: (linux-image-\S+)", shown.stdout)
        if match is not None:
            return match[1]
    raise ImageError(
        f"apt does not find {KERNEL_PACKAGE}; the guest boots Debian's kernel: run apt-get update as root, or use "
        "Debian"
    )


def _download(package: str, folder: Path) -> Path:
    _apt_fresh("download", package, folder=folder)
    found = sorted(folder.glob(f"{package}_*.deb"))
    if not found:
        raise ImageError(f"apt-get download {package} left no file")
    return found[0]


def _apt_fresh(*arguments: str, folder: Path | None = None) -> None:
    """As ``_apt``; if it fails, once more with updated lists, because old ones name files that no longer exist."""
    try:
        _apt(*arguments, folder=folder)
    except ImageError:
        if os.geteuid() != 0:
            raise
        _apt("update")
        _apt(*arguments, folder=folder)


def _apt(*arguments: str, folder: Path | None = None) -> None:
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    command = ["apt-get", "--quiet", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, cwd=folder, env=environment, check=False)
    if done.returncode:
        raise ImageError(f"{' '.join(command)} failed: {done.stderr.strip() or done.stdout.strip()}")


def _unpack(package: Path, folder: Path, patterns: list[str]) -> Path:
    folder.mkdir()
    with subprocess.Popen(["dpkg-deb", "--fsys-tarfile", package], stdout=subprocess.PIPE) as reader:
        subprocess.run(["tar", "-x", "-C", folder, "--wildcards", *patterns], stdin=reader.stdout, check=True)
    return folder


def _load_order(kernel: Path) -> dict[str, bytes]:
    """The contents of modules by name, each after its dependencies (virtio_ring before virtio)."""
    files = {path.name.split(".ko")[0].replace("-", "_"): path for path in kernel.rglob("*.ko*")}
    order: dict[str, bytes] = {}

    def add(name: str) -> None:
        if name in order or name not in files:  # not in the package: built into the kernel
            return
        content = files[name].read_bytes()
        if files[name].suffix == ".xz":
            content = lzma.decompress(content)
        depends = re.search(rb"\0depends=([^\0]*)\0", content)
        for needed in depends[1].decode().split(",") if depends else ():
            add(needed.replace("-", "_"))
        order[name] = content

    for module in MODULES:
        add(module)
    return order


def _initramfs(busybox: bytes, modules: dict[str, bytes]) -> bytes:
    """A cpio archive (newc, see the kernel's Documentation/driver-api/early-userspace/buffer-format.rst)."""
    folders = ("bin", "modules", "proc", "sys", "dev", "host", "upper", "root")
    entries = [(name, 0o40755, b"", (0, 0)) for name in folders]
    entries.append(("dev/console", 0o20600, b"", (5, 1)))
    entries.append(("bin/busybox", 0o100755, busybox, (0, 0)))
    entries += [(f"modules/{name}.ko", 0o100644, content, (0, 0)) for name, content in modules.items()]
    entries.append(("init", 0o100755, INIT.format(modules=" ".join(modules)).encode(), (0, 0)))
    entries.append(("TRAILER!!!", 0, b"", (0, 0)))
    return b"".join(_cpio_entries(entries))


def _cpio_entries(entries: Iterable[tuple[str, int, bytes, tuple[int, int]]]) -> Iterable[bytes]:
    for number, (name, mode, content, device) in enumerate(entries, start=1):
        fields = (number, mode, 0, 0, 1, 0, len(content), 0, 0, *device, len(name) + 1, 0)
        head = b"070701" + b"".join(b"%08x" % field for field in fields) + name.encode() + b"\0"
        yield head + bytes(-len(head) % 4) + content + bytes(-len(content) % 4)
