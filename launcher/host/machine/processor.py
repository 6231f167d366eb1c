"""Reads the processor (architecture, vendor, model, microarchitecture, relevant instruction sets) and the memory size.

Separate from ``sysfs``, which reads how the cores are arranged. `/proc/cpuinfo` is read directly, because py-cpuinfo
takes a second (it starts processes and runs CPUID); it is the fallback if that file has no data, on the machine this
runs on.
"""

from __future__ import annotations

import platform
from collections.abc import Iterable
from dataclasses import dataclass

from launcher.core.machine.topology import UNKNOWN_ARCH
from launcher.host.machine.file_tree import Tree, decimal
from launcher.host.machine.microarchitecture import Identity, microarchitecture

# Names of the kernel, for the instruction sets by which deep-learning kernels are chosen. Separate per architecture,
# because names are ambiguous: `sme` means matrix instructions on Arm and memory encryption on AMD.
X86_ISA = (
    "amx_bf16", "amx_int8", "amx_fp16", "amx_tile", "avx512_bf16", "avx512_fp16", "avx512_vnni", "avx512f", "avx2",
    "avx_vnni", "avx_vnni_int8", "avx_ne_convert", "avx", "fma", "f16c", "sse4_2",
)  # fmt: skip
ARM_ISA = (
    "bf16", "i8mm", "sme2", "sme", "sve2", "svebf16", "svei8mm", "sve", "asimd", "asimddp", "asimdhp", "asimdfhm",
    "neon",
)  # fmt: skip
OTHER_ISA = ("lasx", "lsx", "nnpa", "vxe", "vx")
X86_VENDORS = {"GenuineIntel", "AuthenticAMD", "HygonGenuine", "CentaurHauls", "Shanghai"}

# Names of server cores by implementer and part of MIDR; /proc/cpuinfo on Arm has numbers only.
ARM_PARTS = {
    (0x41, 0xD08): "Cortex-A72",
    (0x41, 0xD0C): "Neoverse-N1",
    (0x41, 0xD40): "Neoverse-V1",
    (0x41, 0xD49): "Neoverse-N2",
    (0x41, 0xD4F): "Neoverse-V2",
    (0x41, 0xD83): "Neoverse-V3AE",
    (0x41, 0xD84): "Neoverse-V3",
    (0x41, 0xD85): "Cortex-X925",
    (0x41, 0xD8E): "Neoverse-N3",
    (0x46, 0x001): "A64FX",
    (0x48, 0xD01): "TaiShan-v110",
    (0xC0, 0xAC3): "Ampere-1",
    (0xC0, 0xAC4): "Ampere-1a",
}
ARM_IMPLEMENTERS = {0x41: "ARM", 0x42: "Broadcom", 0x43: "Cavium", 0x46: "Fujitsu", 0x48: "HiSilicon", 0x4E: "NVIDIA",
                    0x51: "Qualcomm", 0x53: "Samsung", 0x61: "Apple", 0xC0: "Ampere"}  # fmt: skip

_MODEL_KEYS = ("model name", "Model Name", "uarch", "cpu", "family", "Hardware")
_VENDOR_KEYS = ("vendor_id", "vendor", "CPU Family")
_FLAG_KEYS = ("flags", "Features", "features")
_SIGNS = (
    ("vendor_id", "IBM/S390", "s390x"),
    ("cpu", "POWER", "ppc64"),
    ("cpu", "Cell", "ppc64"),
    ("isa", "rv64", "riscv64"),
    ("isa", "rv32", "riscv32"),
    ("type", "sun4", "sparc64"),
    ("CPU Family", "Loongson", "loongarch64"),
)
X86 = {"x86_64", "i686", "i386"}
ARM = {"aarch64", "armv7l", "armv8l"}


@dataclass(frozen=True, slots=True)
class Processor:
    """``arch`` as ``uname -m`` prints it, or ``unknown``; ``isa`` in the order of ``X86_ISA`` and the like.

    ``microarchitecture`` is archspec's name, None if it has none.
    """

    arch: str
    vendor: str | None
    model: str | None
    isa: tuple[str, ...]
    microarchitecture: str | None = None


def read_processor(tree: Tree) -> Processor:
    """The processor of the machine under the tree's root."""
    fields = _first_fields(tree.text("proc/cpuinfo") or "")
    flags = " ".join(fields.get(key, "") for key in _FLAG_KEYS).split()
    vendor = _first(fields, _VENDOR_KEYS) or _arm_vendor(fields)
    model = _arm_model(fields) or _first(fields, _MODEL_KEYS)
    arch = platform.machine() if tree.live else _arch(fields, flags, tree)
    if tree.live and model is None and not flags:
        vendor, model, flags = _ask_cpuinfo()
    return processor_of(arch, vendor, model, flags, part=fields.get("CPU part", "").lower())


def processor_of(
    arch: str, vendor: str | None, model: str | None, flags: Iterable[str], *, part: str = ""
) -> Processor:
    """A processor with these names and with the flags of ``/proc/cpuinfo``; ``part`` is Arm's `CPU part`."""
    known = {flag.lower() for flag in flags}
    interest = X86_ISA if arch in X86 else ARM_ISA if arch in ARM else OTHER_ISA
    name = microarchitecture(Identity(arch, vendor, frozenset(known), part))
    return Processor(arch, vendor, model, tuple(flag for flag in interest if flag in known), name)


def read_memory(tree: Tree) -> tuple[int | None, int | None]:
    """Bytes of memory of the whole machine: total, and available without swapping."""
    if tree.live:
        import psutil  # only here: it always reports this machine

        memory = psutil.virtual_memory()
        return memory.total, memory.available
    fields = meminfo(tree.text("proc/meminfo") or "")
    return fields.get("MemTotal"), fields.get("MemAvailable", fields.get("MemFree"))


def meminfo(text: str) -> dict[str, int]:
    """Bytes by name, of `/proc/meminfo` or the meminfo of a node, whose lines start with ``Node N``."""
    found: dict[str, int] = {}
    for line in text.splitlines():
        name, colon, value = line.rpartition(":")
        words = value.split()
        amount = decimal(words[0]) if words else None
        if colon and name.strip() and amount is not None:
            found[name.split()[-1]] = amount * (1024 if words[-1] == "kB" else 1)
    return found


def _first_fields(text: str) -> dict[str, str]:
    """The first value of each key: that of the first processor, or of the whole machine."""
    found: dict[str, str] = {}
    for line in text.splitlines():
        key, colon, value = line.partition(":")
        if colon and value.strip() not in ("", "unknown"):
            found.setdefault(key.strip(), " ".join(value.split()))
    return found


def _first(fields: dict[str, str], keys: Iterable[str]) -> str | None:
    return next((fields[key] for key in keys if key in fields), None)


def _number(text: str | None) -> int | None:
    try:
        return None if text is None else int(text, 0)
    except ValueError:
        return None


def _arm_vendor(fields: dict[str, str]) -> str | None:
    implementer = _number(fields.get("CPU implementer"))
    return None if implementer is None else ARM_IMPLEMENTERS.get(implementer)


def _arm_model(fields: dict[str, str]) -> str | None:
    implementer, part = _number(fields.get("CPU implementer")), _number(fields.get("CPU part"))
    return None if implementer is None or part is None else ARM_PARTS.get((implementer, part))


def _arch(fields: dict[str, str], flags: list[str], tree: Tree) -> str:
    """The architecture of a recorded machine, which has no uname, from fields that only one architecture has."""
    if fields.get("arch") == "IA-64" or "Itanium" in fields.get("family", ""):
        return "ia64"
    if _is_x86(fields, tree):
        return "i686" if flags and "lm" not in flags else "x86_64"
    if "CPU implementer" in fields:
        return "aarch64" if "asimd" in flags or "fp" in flags else "armv7l"
    for key, sign, arch in _SIGNS:
        if sign in fields.get(key, ""):
            return arch
    return UNKNOWN_ARCH


def _is_x86(fields: dict[str, str], tree: Tree) -> bool:
    name = fields.get("model name", "")
    modalias = tree.text("sys/devices/system/cpu/modalias") or ""
    return (
        fields.get("vendor_id") in X86_VENDORS
        or name.startswith(("Intel(R)", "AMD "))
        or modalias.startswith(("x86cpu", "cpu:type:x86"))
    )


def _ask_cpuinfo() -> tuple[str | None, str | None, list[str]]:
    import cpuinfo  # only here: it takes a second

    info = cpuinfo.get_cpu_info()
    return info.get("vendor_id_raw"), info.get("brand_raw"), list(info.get("flags", ()))
