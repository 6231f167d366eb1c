"""The processor: architecture, names and instruction sets, of recorded machines and of this one."""

from __future__ import annotations

from pathlib import Path

import pytest

from launcher.host.machine.file_tree import Tree
from launcher.host.machine.processor import X86_ISA, meminfo, read_memory, read_processor
from tests.machines import recorded


@pytest.mark.parametrize(
    ("name", "arch", "vendor", "model"),
    [
        ("dv-2xEPYC-7763", "x86_64", "AuthenticAMD", "AMD EPYC 7763 64-Core Processor"),
        ("ghw-arm64-c288", "aarch64", "ARM", "Neoverse-N1"),
        ("hw-128arm-2pa2n8cluster4co", "aarch64", "HiSilicon", "TaiShan-v110"),
        ("dv-lassen-POWER9", "ppc64", None, "POWER9, altivec supported"),
        ("ghw-s390x", "s390x", "IBM/S390", None),
        ("ul-rv64-linux", "riscv64", None, "sifive,u74-mc"),
        ("ul-loongarch-kvm_on_loongson_3c6000", "loongarch64", "Loongson-64bit", "Loongson-3A5000"),
        ("hw-8ia64-2s2c2t", "ia64", "GenuineIntel", "Itanium 2"),
        ("ul-i386-dellpe700", "i686", "GenuineIntel", "Intel(R) Pentium(R) 4 CPU 3.40GHz"),
        ("ul-armv7", "armv7l", "ARM", "SAMSUNG EXYNOS5 (Flattened Device Tree)"),
        ("ul-sparc64-UltraSparc-T1", "sparc64", None, "UltraSparc T1 (Niagara)"),
        ("nri-server", "x86_64", None, "not recorded in this dump"),
    ],
)
def test_recorded_machines_are_named(name: str, arch: str, vendor: str | None, model: str | None) -> None:
    processor = read_processor(Tree(recorded(name)))
    assert (processor.arch, processor.vendor, processor.model) == (arch, vendor, model)


def _processor(root: Path, cpuinfo: str) -> tuple[str, tuple[str, ...]]:
    (root / "proc").mkdir()
    (root / "proc/cpuinfo").write_text(cpuinfo)
    processor = read_processor(Tree(root))
    return processor.arch, processor.isa


def test_instruction_sets_of_a_xeon_are_listed_best_first(tmp_path: Path) -> None:
    flags = "fpu lm fma avx avx2 avx512f avx512_vnni avx512_bf16 amx_tile amx_int8 amx_bf16 f16c sse4_2"
    assert _processor(tmp_path, f"vendor_id : GenuineIntel\nflags : {flags}\n") == (
        "x86_64",
        (
            "amx_bf16",
            "amx_int8",
            "amx_tile",
            "avx512_bf16",
            "avx512_vnni",
            "avx512f",
            "avx2",
            "avx",
            "fma",
            "f16c",
            "sse4_2",
        ),
    )


def test_memory_encryption_of_amd_is_not_mistaken_for_matrix_instructions_of_arm(tmp_path: Path) -> None:
    assert _processor(tmp_path, "vendor_id : AuthenticAMD\nflags : lm sme avx2 bf16\n") == ("x86_64", ("avx2",))


def test_instruction_sets_of_a_graviton_are_those_of_arm(tmp_path: Path) -> None:
    cpuinfo = "processor : 0\nFeatures : fp asimd asimddp sve bf16 i8mm\nCPU implementer : 0x41\nCPU part : 0xd40\n"
    assert _processor(tmp_path, cpuinfo) == ("aarch64", ("bf16", "i8mm", "sve", "asimd", "asimddp"))
    assert read_processor(Tree(tmp_path)).model == "Neoverse-V1"


def test_meminfo_of_machine_and_node_is_in_bytes() -> None:
    assert meminfo("MemTotal:  2 kB\nHugePages_Total: 3\nbroken\nOdd: x kB\n") == {
        "MemTotal": 2048,
        "HugePages_Total": 3,
    }
    assert meminfo("Node 12 MemTotal:  2 kB\nNode 12 Active(file): 1 kB") == {"MemTotal": 2048, "Active(file)": 1024}


def test_memory_of_a_recorded_machine_is_not_that_of_this_one(tmp_path: Path) -> None:
    (tmp_path / "proc").mkdir()
    (tmp_path / "proc/meminfo").write_text("MemTotal: 8 kB\nMemFree: 2 kB\nMemAvailable: 5 kB\n")
    assert read_memory(Tree(tmp_path)) == (8192, 5120)
    assert read_memory(Tree(tmp_path / "proc")) == (None, None)


@pytest.mark.slow
def test_this_machine_is_named_as_py_cpuinfo_names_it() -> None:
    import cpuinfo

    info = cpuinfo.get_cpu_info()
    processor = read_processor(Tree(Path("/")))
    assert processor.arch == info["arch_string_raw"]
    if processor.arch == "x86_64":
        assert (processor.vendor, processor.model) == (info["vendor_id_raw"], info["brand_raw"])
        assert set(processor.isa) == set(X86_ISA) & set(info["flags"])
