"""Checks of software: kernel, instruction sets and what limits them, numactl, memory policy, allocator, torch."""

from __future__ import annotations

import re
from collections.abc import Iterable

from launcher.core.diagnosis.facts import Facts, Reading, Software
from launcher.core.diagnosis.finding import (
    Evidence,
    Verdict,
    advice,
    evidence_of,
    fine,
    only_live,
    problem,
    unknown,
)
from launcher.core.diagnosis.torch_build import CPU_INDEX
from launcher.core.machine.cpuset import format_cpu_list
from launcher.core.machine.isa_limits import ISA_LIMITS, disabled_by
from launcher.core.planning.footprint import BF16_FLAGS
from launcher.core.planning.worker_env import takes_threads

# Models of x86 processors (kernel: arch/x86/include/asm/intel-family.h, arch/x86/kernel/cpu/amd.c), and the instruction
# sets that all of them have. By number, because a hypervisor may report any name.
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

SLOW_CLOCKS = ("hpet", "acpi_pm", "pit", "jiffies", "refined-jiffies", "hyperv_clocksource_msr")
FAST_CLOCKS = ("tsc", "tsc-early", "kvm-clock", "hyperv_clocksource_tsc_page", "arch_sys_counter", "timebase", "tod")

PLACING = ("OMP_PROC_BIND", "OMP_PLACES", "KMP_AFFINITY", "KMP_HW_SUBSET")
PLACES_NOTHING = ("false", "disabled", "none")
COUNTS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "OMP_THREAD_LIMIT", "OMP_DYNAMIC")
ENVIRONMENT = (*COUNTS, *PLACING, "GOMP_CPU_AFFINITY", *ISA_LIMITS)

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
    """Whether numactl is installed."""
    if facts.live is None:
        return only_live("The presence of numactl")
    path = facts.live.software.numactl
    if path is not None:
        return fine("numactl is installed.", Evidence("which numactl", path))
    fix, root = _install("numactl", facts.live.software, "numactl")
    title = "numactl is not installed, so workers bind themselves with system calls."
    return advice(title, Evidence("which numactl", "not in PATH"), fix=fix, root=root)


def _install(what: str, software: Software, name: str) -> tuple[tuple[str, ...], bool]:
    for family in (RELATIVES.get(one, one) for one in software.distribution):
        package = PACKAGES[what].get(family)
        if package is not None:
            return (f"{INSTALLERS[family]} {package}",), True
    return (f"# install {name} with the package manager of this system",), True


def check_memory_policy(facts: Facts) -> Verdict:
    """Whether instances can be bound to their cpus and to the memory of their nodes."""
    if facts.live is None:
        return only_live("Binding of instances")
    bindings = facts.live.bindings
    levels = ", ".join(dict.fromkeys(f"{binding.level} with {binding.tool}" for binding in bindings))
    evidence: tuple[Evidence, ...] = (Evidence("a test process bound like each instance", levels or "no instances"),)
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
        "docker run --cap-add SYS_NICE …  # allows set_mempolicy and mbind",
        f"docker update --cpuset-mems {_all_nodes(facts)} CONTAINER  # if a node is not allowed",
    )
    level = less[0][1].level
    if level == "none":
        return problem(f"Instances {who} cannot be bound at all.", *evidence, fix=fix)
    return problem(
        f"The memory of instances {who} cannot be bound; the strictest possible binding is {level}.", *evidence, fix=fix
    )


def _all_nodes(facts: Facts) -> str:
    return format_cpu_list(node.id for node in facts.machine.nodes if node.memory_bytes != 0) or "0"


def check_allocator(facts: Facts) -> Verdict:
    """Whether tcmalloc or jemalloc is installed and can be preloaded."""
    if facts.live is None:
        return only_live("The presence of allocators")
    software = facts.live.software
    usable = [(one.library, one.usable) for one in software.allocators if one.usable is not None]
    if usable:
        found = tuple(Evidence(f"a test process with {name} preloaded", path) for name, path in usable)
        return fine(f"{' and '.join(name for name, _ in usable)} can be preloaded.", *found)
    fix, root = _install("allocator", software, "tcmalloc (gperftools) or jemalloc")
    refused = [pair for one in software.allocators for pair in one.refused]
    if refused:
        evidence = tuple(Evidence(path, why) for path, why in refused)
        return advice("An allocator is installed, but cannot be preloaded.", *evidence, fix=fix, root=root)
    places = dict.fromkeys(place for one in software.allocators for place in one.places)
    searched = Evidence(", ".join(places), "no tcmalloc, no jemalloc")
    return advice("Neither tcmalloc nor jemalloc is installed.", searched, fix=fix, root=root)


def check_torch_build(facts: Facts) -> Verdict:
    """Whether torch is installed, and built for CPUs only."""
    if facts.live is None:
        return only_live("The build of torch")
    software = facts.live.software
    build = software.torch
    shown = Evidence("torch/version.py", build.version if build else "not installed")
    if build is None:
        fix = f"pip install torch --index-url {CPU_INDEX}"
        return problem("torch is not installed in this environment.", shown, fix=(fix,))
    if build.accelerator is None:
        return fine(f"torch {build.version} is a CPU build.", shown)
    packages = software.gpu_packages
    evidence = [shown, *([Evidence("installed distributions", ", ".join(packages[:6]))] if packages else [])]
    remove = [f"pip uninstall -y {' '.join(packages)}"] if packages else []
    return advice(
        f"torch {build.version} is a build for {build.accelerator}.", *evidence, fix=(build.cpu_command, *remove)
    )


def check_thread_environment(facts: Facts) -> Verdict:
    """Whether the environment of the user sets the placement of OpenMP threads, or their number."""
    if facts.live is None:
        return only_live("The environment")
    found = {name: value for name, value in facts.live.software.environment if name in (*PLACING, *COUNTS)}
    gomp = dict(facts.live.software.environment).get("GOMP_CPU_AFFINITY")
    placing = [name for name, value in found.items() if name in PLACING and value.lower() not in PLACES_NOTHING]
    evidence = tuple(Evidence("environment", f"{name}={value}") for name, value in found.items())
    if gomp is not None:
        evidence = (Evidence("environment", f"GOMP_CPU_AFFINITY={gomp}"), *evidence)
        fix = (f"unset {' '.join(['GOMP_CPU_AFFINITY', *placing])}",)
        return problem("GOMP_CPU_AFFINITY changes the placement of the threads of every instance.", *evidence, fix=fix)
    if placing:
        fix = (f"unset {' '.join(placing)}",)
        return advice(f"{', '.join(placing)} may change the placement of threads.", *evidence, fix=fix)
    most = max((instance.threads for instance in facts.plan.instances), default=0)
    fewer = [name for name, value in found.items() if takes_threads(name, value, most)]
    if fewer:
        title = f"{', '.join(fewer)} takes threads from programs of launch run; launch serve overrides it."
        return advice(title, *evidence, fix=(f"unset {' '.join(fewer)}",))
    if found:
        return fine(
            "The environment does not change the placement of threads; the plan sets their number.",
            *evidence,
        )
    return fine(
        "The environment does not change the placement of threads.",
        Evidence("environment", f"none of {', '.join(PLACING)}"),
    )


def check_instruction_limit(facts: Facts) -> Verdict:
    """Whether the environment disables instruction sets that the processor has."""
    if facts.live is None:
        return only_live("The environment")
    environment = dict(facts.live.software.environment)
    evidence: list[Evidence] = []
    lost: set[str] = set()
    for name in ISA_LIMITS:
        value = environment.get(name)
        if value:
            evidence.append(Evidence("environment", f"{name}={value}"))
            lost |= disabled_by(name, value, facts.machine.isa)
    if not evidence:
        none = Evidence("environment", f"none of {', '.join(ISA_LIMITS)}")
        return fine("The environment does not limit instruction sets.", none)
    if not lost:
        return fine("The environment limits instruction sets, but disables none that this processor has.", *evidence)
    names = " ".join(name for name in ISA_LIMITS if environment.get(name))
    title = f"The environment disables {_listed(lost)}."
    return problem(title, *evidence, fix=(f"unset {names}",))


def check_instruction_sets(facts: Facts) -> Verdict:
    """Whether the kernel reports the instruction sets that this processor is known to have."""
    machine, kernel = facts.machine, facts.kernel
    shown = Evidence("/proc/cpuinfo flags", " ".join(machine.isa) or "none of those that matter")
    number = Evidence(
        "/proc/cpuinfo", f"{machine.model or 'no model name'}, family {kernel.family}, model {kernel.model}"
    )
    if not kernel.flags_known:
        return unknown("The kernel does not report the instruction sets.", Evidence("/proc/cpuinfo", "no flags"))
    name, expected = expected_isa(facts)
    missing = expected - set(machine.isa)
    if missing:
        title = f"This processor ({name}) has {_listed(missing)}, but the kernel does not report it."
        fix, evidence = _expose(facts, missing)
        return problem(title, shown, number, *evidence, fix=fix, root=True)
    if not BF16_FLAGS & set(machine.isa):
        title = "The processor has no instructions for bf16, so models run in fp32."
        return fine(title, shown, number)
    return fine(f"The processor has instructions for bf16: {_listed(BF16_FLAGS & set(machine.isa))}.", shown, number)


def expected_isa(facts: Facts) -> tuple[str, frozenset[str]]:
    """The name of the processor and the instruction sets that it certainly has; empty for unknown processors."""
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
        return ("# upgrade to Linux 5.16 or later, which supports AMX",), evidence_of(kernel.release)
    if kernel.virtual:
        fix = ("# on the host: pass the processor through (QEMU: -cpu host; libvirt: host-passthrough)",)
        return fix, evidence_of(kernel.virtual_sign, kernel.release)
    fix = ("# kernel command line: remove clearcpuid=… and nosve; firmware: enable these instructions",)
    return fix, evidence_of(kernel.command_line, kernel.release)


def _listed(flags: Iterable[str]) -> str:
    return ", ".join(sorted(flags))


def parse_release(text: str | None) -> tuple[int, int] | None:
    """Major and minor number of a kernel release such as ``6.1.0-13-amd64``."""
    match = re.match(r"(\d{1,4})\.(\d{1,4})", text or "")
    return (int(match[1]), int(match[2])) if match else None


def check_kernel(facts: Facts) -> Verdict:
    """Whether the kernel supports the memory policies that the plan may use."""
    release = parse_release(facts.kernel.release.value)
    evidence = evidence_of(facts.kernel.release)
    if release is None:
        return unknown("The release of the kernel is unknown.", *evidence)
    several = sum(node.memory_bytes != 0 for node in facts.machine.nodes) > 1
    if release < PREFERRED_MANY_KERNEL and several:
        title = "This kernel does not support memory policies that prefer several nodes."
        return advice(title, *evidence, fix=("# upgrade to Linux 5.15 or later",), root=True)
    return fine("The kernel is new enough.", *evidence)


def check_clock_source(facts: Facts) -> Verdict:
    """Whether the clock can be read without a system call."""
    current, available = facts.kernel.clock_source, facts.kernel.clock_sources
    evidence = evidence_of(current, available)
    if current.value is None:
        return unknown("The clock source of the kernel is unknown.", *evidence)
    if current.value in FAST_CLOCKS:
        return fine(f"The clock source is fast ({current.value}).", *evidence)
    if current.value not in SLOW_CLOCKS:
        return unknown(f"It is unknown whether the clock source {current.value} is fast.", *evidence)
    better = next((one for one in FAST_CLOCKS if one in (available.value or "").split()), None)
    if better is None:
        fix = ("# find out why the kernel rejected tsc: dmesg | grep -i -e tsc -e clocksource",)
    else:
        fix = (f"echo {better} > {current.source}",)
    return advice(f"The clock source {current.value} is slow.", *evidence, fix=fix, root=True)


def check_mitigations(facts: Facts) -> Verdict:
    """Whether a mitigation of a vulnerability slows down computation."""
    found = facts.kernel.vulnerabilities
    if not found:
        absent = Evidence("/sys/devices/system/cpu/vulnerabilities", "not found")
        return unknown("The active mitigations are unknown.", absent)
    active = [one for one in found if (one.value or "").startswith("Mitigation")]
    gathers = [one for one in active if one.source.endswith("/gather_data_sampling")]
    if not gathers:
        return fine("No active mitigation slows down computation.", *_brief(active))
    fix = ("# security decision, if all code on this machine is trusted: kernel command line gather_data_sampling=off",)
    title = "A microcode mitigation slows down gather instructions."
    return advice(title, *evidence_of(*gathers), fix=fix, root=True)


def _brief(readings: list[Reading]) -> tuple[Evidence, ...]:
    names = " ".join(reading.source.rpartition("/")[2] for reading in readings)
    return (Evidence("/sys/devices/system/cpu/vulnerabilities", names or "no mitigation"),)


def check_inconsistent_topology(facts: Facts) -> Verdict:
    """Whether the topology data of the machine is consistent."""
    warnings = facts.machine.warnings
    if not warnings:
        return fine("The topology data is consistent.", Evidence("launch topology", "no warnings"))
    evidence = tuple(Evidence("launch topology", warning) for warning in warnings)
    fix = ("launch topology  # shows how the plan resolves the contradictions",)
    return advice("The topology data is inconsistent.", *evidence, fix=fix)
