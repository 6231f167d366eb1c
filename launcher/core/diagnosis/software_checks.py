"""Checks of software: kernel, instruction sets and what limits them, numactl, memory policy, allocator, torch."""

from __future__ import annotations

import re
from collections.abc import Iterable

from launcher.core.diagnosis.facts import Facts, Reading, Software
from launcher.core.diagnosis.finding import (
    Evidence,
    Verdict,
    advice,
    count,
    evidence_of,
    fine,
    only_live,
    problem,
    unknown,
)
from launcher.core.machine.cpuset import format_cpu_list
from launcher.core.planning.footprint import BF16_FLAGS

# Models of x86 processors (kernel: arch/x86/include/asm/intel-family.h, arch/x86/kernel/cpu/amd.c), and what all of
# them have. Names would not do: a hypervisor may show any.
AMX = frozenset({"amx_tile", "amx_bf16", "amx_int8"})
AVX512_BF16 = frozenset({"avx512f", "avx512_vnni", "avx512_bf16"})
INTEL_MODELS = {
    143: ("Sapphire Rapids", AMX | AVX512_BF16 | {"avx512_fp16"}),
    207: ("Emerald Rapids", AMX | AVX512_BF16 | {"avx512_fp16"}),
    173: ("Granite Rapids", AMX | AVX512_BF16 | {"avx512_fp16", "amx_fp16"}),
    174: ("Granite Rapids D", AMX | AVX512_BF16 | {"avx512_fp16", "amx_fp16"}),
}
ZEN4_MODELS = (range(0x10, 0x20), range(0x60, 0x80), range(0xA0, 0xB0))
ARM_CORES = {
    "Neoverse-V1": frozenset({"bf16", "i8mm", "sve"}),
    "Neoverse-N2": frozenset({"bf16", "i8mm", "sve", "sve2"}),
    "Neoverse-V2": frozenset({"bf16", "i8mm", "sve", "sve2"}),
    "Neoverse-V3": frozenset({"bf16", "i8mm", "sve", "sve2"}),
    "Neoverse-N3": frozenset({"bf16", "i8mm", "sve", "sve2"}),
}
AMX_KERNEL = (5, 16)
PREFERRED_MANY_KERNEL = (5, 15)

# What each value of ONEDNN_MAX_CPU_ISA adds to those before it; the branch without AVX-512 is AVX2_VNNI and _2.
ONEDNN_STEPS = (
    ("AVX512_CORE", {"avx512f"}),
    ("AVX512_CORE_VNNI", {"avx512_vnni"}),
    ("AVX512_CORE_BF16", {"avx512_bf16"}),
    ("AVX512_CORE_FP16", {"avx512_fp16"}),
    ("AVX512_CORE_AMX", {"amx_tile", "amx_bf16", "amx_int8"}),
    ("AVX512_CORE_AMX_FP16", {"amx_fp16"}),
)
ONEDNN_SAME = {
    "AVX10_1_512": "AVX512_CORE_FP16",
    "AVX10_1_512_AMX": "AVX512_CORE_AMX",
    "AVX10_1_512_AMX_FP16": "AVX512_CORE_AMX_FP16",
}
ONEDNN_BELOW = ("SSE41", "AVX", "AVX2", "AVX2_VNNI", "AVX2_VNNI_2")
ONEDNN_NAMES = ("ONEDNN_MAX_CPU_ISA", "DNNL_MAX_CPU_ISA")

SLOW_CLOCKS = ("hpet", "acpi_pm", "pit", "jiffies", "refined-jiffies", "hyperv_clocksource_msr")
FAST_CLOCKS = ("tsc", "tsc-early", "kvm-clock", "hyperv_clocksource_tsc_page", "arch_sys_counter", "timebase", "tod")

PLACING = ("OMP_PROC_BIND", "OMP_PLACES", "KMP_AFFINITY", "KMP_HW_SUBSET")
PLACES_NOTHING = ("false", "disabled", "none")
COUNTS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "OMP_THREAD_LIMIT")
ENVIRONMENT = (*COUNTS, *PLACING, "GOMP_CPU_AFFINITY", *ONEDNN_NAMES, "ATEN_CPU_CAPABILITY")

PACKAGES = {
    "numactl": {"debian": "numactl", "fedora": "numactl", "suse": "numactl", "arch": "numactl", "alpine": "numactl"},
    "allocator": {"debian": "libtcmalloc-minimal4", "fedora": "gperftools-libs", "arch": "gperftools"},
}
INSTALLERS = {
    "debian": "apt-get install -y",
    "fedora": "dnf install -y",
    "suse": "zypper install -y",
    "arch": "pacman -S",
    "alpine": "apk add",
}
RELATIVES = {"ubuntu": "debian", "rhel": "fedora", "centos": "fedora", "amzn": "fedora", "sles": "suse"}


def check_numactl(facts: Facts) -> Verdict:
    """Whether numactl is there to bind with."""
    if facts.live is None:
        return only_live("Whether numactl is installed")
    path = facts.live.software.numactl
    if path is not None:
        return fine("numactl is installed.", Evidence("which numactl", path))
    fix, root = _install("numactl", facts.live.software, "numactl")
    title = "numactl is missing; workers bind themselves by system calls."
    return advice(title, Evidence("which numactl", "nothing in PATH"), fix=fix, root=root)


def _install(what: str, software: Software, name: str) -> tuple[tuple[str, ...], bool]:
    for family in (RELATIVES.get(one, one) for one in software.distribution):
        package = PACKAGES[what].get(family)
        if package is not None:
            return (f"{INSTALLERS[family]} {package}",), True
    return (f"# install {name} by the package manager of this system",), True


def check_memory_policy(facts: Facts) -> Verdict:
    """Whether instances can really be bound to their cpus and to the memory of their nodes."""
    if facts.live is None:
        return only_live("Whether memory can be bound to nodes")
    bindings = facts.live.bindings
    levels = ", ".join(dict.fromkeys(f"{binding.level} by {binding.tool}" for binding in bindings))
    evidence: tuple[Evidence, ...] = (Evidence("a bound process for each instance", levels or "no instances"),)
    asked = ["cpus" if instance.memory == "local" else "bind" for instance in facts.plan.instances]
    order = ("bind", "preferred", "cpus", "none")
    less = [
        (instance.id, binding)
        for instance, binding, level in zip(facts.plan.instances, bindings, asked, strict=True)
        if order.index(binding.level) > order.index(level)
    ]
    if not less:
        what = "cpus" if "bind" not in asked else "cpus and nodes"
        return fine(f"Instances can be bound to their {what}.", *evidence)
    evidence += tuple(Evidence("refused", reason) for reason in dict.fromkeys(binding.reason for _, binding in less))
    who = format_cpu_list([number for number, _ in less])
    fix = (
        "docker run --cap-add SYS_NICE …  # its filter lets set_mempolicy and mbind pass then",
        f"docker update --cpuset-mems {_all_nodes(facts)} CONTAINER  # when a node is not allowed",
    )
    level = less[0][1].level
    if level == "none":
        return problem(f"Instances {who} cannot be bound at all.", *evidence, fix=fix)
    return problem(f"Memory of instances {who} cannot be bound; what works is: {level}.", *evidence, fix=fix)


def _all_nodes(facts: Facts) -> str:
    return format_cpu_list(node.id for node in facts.machine.nodes if node.memory_bytes != 0) or "0"


def check_allocator(facts: Facts) -> Verdict:
    """Whether an allocator made for many threads is there, and can be preloaded."""
    if facts.live is None:
        return only_live("Which allocators are installed")
    software = facts.live.software
    usable = [(one.library, one.usable) for one in software.allocators if one.usable is not None]
    if usable:
        found = tuple(Evidence(f"a process with {name} preloaded", path) for name, path in usable)
        return fine(f"{' and '.join(name for name, _ in usable)} can be preloaded.", *found)
    fix, root = _install("allocator", software, "tcmalloc (gperftools) or jemalloc")
    refused = [pair for one in software.allocators for pair in one.refused]
    if refused:
        evidence = tuple(Evidence(path, why) for path, why in refused)
        return advice("An allocator is there, but cannot be preloaded.", *evidence, fix=fix, root=root)
    places = dict.fromkeys(place for one in software.allocators for place in one.places)
    sought = Evidence(", ".join(places), "no tcmalloc, no jemalloc")
    return advice("Neither tcmalloc nor jemalloc is installed.", sought, fix=fix, root=root)


def check_torch_build(facts: Facts) -> Verdict:
    """Whether torch is there, and built for CPUs only."""
    if facts.live is None:
        return only_live("Which torch is installed")
    software = facts.live.software
    shown = Evidence("version of the installed distribution torch", software.torch or "not installed")
    if software.torch is None:
        return problem("torch is not installed in this environment.", shown, fix=("./scripts/setup run",))
    if not software.cuda_parts:
        return fine(f"torch {software.torch} is built for CPUs.", shown)
    parts = Evidence("files of torch, distributions nvidia-*", ", ".join(software.cuda_parts[:6]))
    fix = ("# install the CPU build of the same version, then: pip uninstall those nvidia-* packages",)
    return advice(f"torch {software.torch} is a build for CUDA.", shown, parts, fix=fix)


def check_thread_environment(facts: Facts) -> Verdict:
    """Whether the user's environment tells OpenMP where to put threads, or how many there are."""
    if facts.live is None:
        return only_live("The environment of programs")
    found = {name: value for name, value in facts.live.software.environment if name in (*PLACING, *COUNTS)}
    gomp = dict(facts.live.software.environment).get("GOMP_CPU_AFFINITY")
    placing = [name for name, value in found.items() if name in PLACING and value.lower() not in PLACES_NOTHING]
    evidence = tuple(Evidence("environment", f"{name}={value}") for name, value in found.items())
    if gomp is not None:
        evidence = (Evidence("environment", f"GOMP_CPU_AFFINITY={gomp}"), *evidence)
        fix = (f"unset {' '.join(['GOMP_CPU_AFFINITY', *placing])}",)
        return problem("GOMP_CPU_AFFINITY moves the threads of every instance.", *evidence, fix=fix)
    if placing:
        fix = (f"unset {' '.join(placing)}",)
        return advice(f"{', '.join(placing)} may move threads off the planned cores.", *evidence, fix=fix)
    if found:
        return fine("What is set moves no threads, and workers get their number from the plan.", *evidence)
    return fine("Nothing in the environment moves threads.", Evidence("environment", f"none of {', '.join(PLACING)}"))


def check_instruction_limit(facts: Facts) -> Verdict:
    """Whether the environment keeps libraries from instruction sets that the processor has."""
    if facts.live is None:
        return only_live("Whether the environment limits instruction sets")
    environment = dict(facts.live.software.environment)
    evidence: list[Evidence] = []
    lost: set[str] = set()
    for name in (*ONEDNN_NAMES, "ATEN_CPU_CAPABILITY"):
        value = environment.get(name)
        if value:
            evidence.append(Evidence("environment", f"{name}={value}"))
            lost |= disabled_by(name, value, facts.machine.isa)
    if not evidence:
        none = Evidence("environment", f"none of {', '.join((*ONEDNN_NAMES, 'ATEN_CPU_CAPABILITY'))}")
        return fine("Nothing in the environment limits instruction sets.", none)
    if not lost:
        return fine("The limits on instruction sets take nothing from this processor.", *evidence)
    names = " ".join(name for name in (*ONEDNN_NAMES, "ATEN_CPU_CAPABILITY") if environment.get(name))
    title = f"The environment keeps libraries from {_listed(lost)}."
    return problem(title, *evidence, fix=(f"unset {names}",))


def disabled_by(name: str, value: str, isa: Iterable[str]) -> set[str]:
    """The instruction sets of ``isa`` that are not used when this variable has this value."""
    have = set(isa)
    if name == "ATEN_CPU_CAPABILITY":
        wide = {one for one in have if one.startswith("avx512")}
        narrow = wide | (have & {"avx2"})
        return {"default": narrow, "avx2": wide}.get(value.lower(), set())
    level = ONEDNN_SAME.get(value.upper(), value.upper())
    if level in ONEDNN_BELOW:
        lost = {flag for _, flags in ONEDNN_STEPS for flag in flags}
        return have & (lost | ({"avx2"} if level in ("SSE41", "AVX") else set()))
    names = [step for step, _ in ONEDNN_STEPS]
    if level not in names:
        return set()  # ALL, DEFAULT, and what oneDNN does not know
    return have & {flag for _, flags in ONEDNN_STEPS[names.index(level) + 1 :] for flag in flags}


def check_instruction_sets(facts: Facts) -> Verdict:
    """Whether the kernel shows the instruction sets that this processor is known to have."""
    machine, kernel = facts.machine, facts.kernel
    shown = Evidence("/proc/cpuinfo flags", " ".join(machine.isa) or "none that matters")
    number = Evidence(
        "/proc/cpuinfo", f"{machine.model or 'no model name'}, family {kernel.family}, model {kernel.model}"
    )
    if not kernel.flags_known:
        return unknown("Which instruction sets there are is not stated.", Evidence("/proc/cpuinfo", "no flags"))
    name, expected = expected_isa(facts)
    missing = expected - set(machine.isa)
    if missing:
        title = f"This processor ({name}) has {_listed(missing)}, but the kernel does not show it."
        fix, evidence = _expose(facts, missing)
        return problem(title, shown, number, *evidence, fix=fix, root=True)
    if not BF16_FLAGS & set(machine.isa):
        title = "There are no instructions for bf16, so that models run in fp32."
        return fine(title, shown, number)
    sure = "All that this processor is known to have is shown" if name else "Instructions for bf16 are there"
    return fine(f"{sure}: {_listed(BF16_FLAGS & set(machine.isa))}.", shown, number)


def expected_isa(facts: Facts) -> tuple[str, frozenset[str]]:
    """The name of the processor and what it has for certain; nothing for one that is not in the tables."""
    machine, family, model = facts.machine, facts.kernel.family, facts.kernel.model
    if machine.vendor == "GenuineIntel" and family == 6 and model in INTEL_MODELS:
        name, flags = INTEL_MODELS[model]
        return name, flags
    if machine.vendor == "AuthenticAMD" and model is not None:
        if family == 25 and any(model in models for models in ZEN4_MODELS):
            return "Zen 4", AVX512_BF16
        if family == 26:
            return "Zen 5 or later", AVX512_BF16
    if machine.arch == "aarch64" and machine.model in ARM_CORES:
        return machine.model, ARM_CORES[machine.model]
    return "", frozenset()


def _expose(facts: Facts, missing: frozenset[str]) -> tuple[tuple[str, ...], tuple[Evidence, ...]]:
    kernel = facts.kernel
    release = parse_release(kernel.release.value)
    if missing <= AMX | {"amx_fp16"} and release is not None and release < AMX_KERNEL:
        return ("# a kernel of 5.16 or newer, which knows AMX",), evidence_of(kernel.release)
    if kernel.virtual:
        fix = ("# at the host: pass the processor through (QEMU: -cpu host; libvirt: host-passthrough)",)
        return fix, evidence_of(kernel.virtual_sign, kernel.release)
    fix = ("# kernel command line: remove clearcpuid=… and nosve; firmware: switch these instructions on",)
    return fix, evidence_of(kernel.command_line, kernel.release)


def _listed(flags: Iterable[str]) -> str:
    return ", ".join(sorted(flags))


def parse_release(text: str | None) -> tuple[int, int] | None:
    """Major and minor number of a kernel release such as ``6.1.0-13-amd64``."""
    match = re.match(r"(\d{1,4})\.(\d{1,4})", text or "")
    return (int(match[1]), int(match[2])) if match else None


def check_kernel(facts: Facts) -> Verdict:
    """Whether the kernel has what binding and instruction sets need."""
    release = parse_release(facts.kernel.release.value)
    evidence = evidence_of(facts.kernel.release)
    if release is None:
        return unknown("The release of the kernel is not stated.", *evidence)
    several = sum(node.memory_bytes != 0 for node in facts.machine.nodes) > 1
    if release < PREFERRED_MANY_KERNEL and several:
        title = "This kernel cannot prefer the memory of several nodes at once."
        return advice(title, *evidence, fix=("# a kernel of 5.15 or newer",), root=True)
    return fine("The kernel is new enough.", *evidence)


def check_clock_source(facts: Facts) -> Verdict:
    """Whether the kernel's clock can be read without entering the kernel."""
    current, available = facts.kernel.clock_source, facts.kernel.clock_sources
    evidence = evidence_of(current, available)
    if current.value is None:
        return unknown("Which clock the kernel reads is not stated.", *evidence)
    if current.value in FAST_CLOCKS:
        return fine(f"The kernel's clock is read quickly ({current.value}).", *evidence)
    if current.value not in SLOW_CLOCKS:
        return unknown(f"Whether the clock {current.value} is read quickly is not known here.", *evidence)
    better = next((one for one in FAST_CLOCKS if one in (available.value or "").split()), None)
    if better is None:
        fix = ("# kernel log: why was tsc given up?  dmesg | grep -i -e tsc -e clocksource",)
    else:
        fix = (f"echo {better} > {current.source}",)
    return advice(f"Reading the clock {current.value} is slow.", *evidence, fix=fix, root=True)


def check_mitigations(facts: Facts) -> Verdict:
    """Whether a mitigation slows down what inference does, which is computing, not entering the kernel."""
    found = facts.kernel.vulnerabilities
    if not found:
        nowhere = Evidence("/sys/devices/system/cpu/vulnerabilities", "not there")
        return unknown("Which mitigations are in place is not stated.", nowhere)
    active = [one for one in found if (one.value or "").startswith("Mitigation")]
    gathers = [one for one in active if one.source.endswith("/gather_data_sampling")]
    if not gathers:
        return fine(f"None of {count(len(active), 'mitigation')} in place slows computing.", *_brief(active))
    fix = ("# a decision about security: kernel command line gather_data_sampling=off, where no one else runs code",)
    title = "Gather instructions are slowed down by a mitigation in microcode."
    return advice(title, *evidence_of(*gathers), fix=fix, root=True)


def _brief(readings: list[Reading]) -> tuple[Evidence, ...]:
    names = " ".join(reading.source.rpartition("/")[2] for reading in readings)
    return (Evidence("/sys/devices/system/cpu/vulnerabilities", names or "no mitigation"),)


def check_inconsistent_topology(facts: Facts) -> Verdict:
    """Whether what the machine says of itself agrees."""
    warnings = facts.machine.warnings
    if not warnings:
        return fine("What the machine says of itself agrees.", Evidence("launch topology", "no contradictions"))
    evidence = tuple(Evidence("launch topology", warning) for warning in warnings)
    fix = ("launch topology  # shows how the contradictions were resolved",)
    return advice("What the machine says of itself does not agree.", *evidence, fix=fix)
