"""Each check of the diagnosis, with constructed facts, fine and not fine; and rules for all checks."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from launcher.core.diagnosis import CHECKS, diagnose
from launcher.core.diagnosis.facts import (
    Clocks,
    Cpus,
    Facts,
    Kernel,
    Live,
    Memory,
    MemoryLimit,
    PerCpu,
    Program,
    Quota,
    Reading,
    Sample,
    Software,
    Throttled,
)
from launcher.core.diagnosis.finding import SEVERITIES, Finding
from launcher.core.diagnosis.findings_report import findings_json, findings_text
from launcher.core.diagnosis.software_checks import parse_release
from launcher.core.diagnosis.torch_build import TorchBuild
from launcher.core.machine.isa_limits import disabled_by
from launcher.core.machine.topology import Limits, Machine
from launcher.core.planning.binding import Binding
from launcher.core.planning.plan import PlanRequest, make_plan
from launcher.core.planning.preload import LibrarySearch
from tests.core.by_hand import GIB, machine

AMX = ("amx_bf16", "amx_int8", "amx_tile")
AVX512 = ("avx512_bf16", "avx512_fp16", "avx512_vnni", "avx512f", "avx2")
GOOD_ENVIRONMENT = (("OMP_NUM_THREADS", "4"),)
CUDA_TORCH = TorchBuild("2.13.0+cu130", "CUDA 13.0")

# The machine of all tests: 2 nodes of 4 cores; cpus 0-7 are their first threads, 8-15 the second ones.
ALL: Cpus = tuple(range(8))


def _machine(**changes: Any) -> Machine:
    made = machine(((4,), (4,)))
    return replace(made, isa=AMX + AVX512, memory_bytes=128 * GIB, free_bytes=100 * GIB, **changes)


def facts(here: Machine | None = None, **changes: Any) -> Facts:
    """The facts of a machine without problems, with changes."""
    here = here or _machine()
    plan = make_plan(here, PlanRequest())
    siblings = tuple(cpu for core in here.cores for cpu in core.cpus[1:])
    well = Facts(
        here,
        plan,
        siblings=siblings,
        cpuset=here.online,
        quotas=(Quota("/sys/fs/cgroup/cpu.max", "max 100000", None),),
        throttled=Throttled(100, 0, 0.0, 0),
        clocks=_clocks(),
        memory=_memory(),
        kernel=_kernel(),
        live=Live(_sample(), _software(), tuple(Binding("bind", "numactl", "as asked") for _ in plan.instances)),
    )
    return replace(well, **changes)


def _clocks(**changes: Any) -> Clocks:
    clocks = Clocks()
    well = Clocks(
        driver=replace(clocks.driver, value="acpi-cpufreq"),
        governor=replace(clocks.governor, values=(("performance", ALL),)),
        governors=replace(clocks.governors, value="performance powersave schedutil"),
        preference=replace(clocks.preference, values=(("performance", ALL),)),
        boost=replace(clocks.boost, value="1"),
        limit=replace(clocks.limit, values=(("3000000", ALL),)),
        highest=replace(clocks.highest, values=(("3000000", ALL),)),
        throttle_count=replace(clocks.throttle_count, values=(("0", ALL),)),
    )
    return replace(well, **changes)


def _memory(**changes: Any) -> Memory:
    memory = Memory()
    well = Memory(
        huge_pages=replace(memory.huge_pages, value="always [madvise] never"),
        compaction=replace(memory.compaction, value="always defer [madvise] never"),
        balancing=replace(memory.balancing, value="0"),
        swappiness=replace(memory.swappiness, value="60"),
        swap_bytes=0,
        swap_used=0,
    )
    return replace(well, **changes)


def _kernel(**changes: Any) -> Kernel:
    kernel = Kernel()
    well = Kernel(
        release=replace(kernel.release, value="6.1.0-13-amd64"),
        command_line=replace(kernel.command_line, value="quiet"),
        isolated=replace(kernel.isolated, value=""),
        smt=replace(kernel.smt, value="on"),
        clock_source=replace(kernel.clock_source, value="tsc"),
        clock_sources=replace(kernel.clock_sources, value="tsc hpet acpi_pm"),
        vulnerabilities=(Reading("/sys/devices/system/cpu/vulnerabilities/meltdown", "Mitigation: PTI"),),
        virtual=False,
        virtual_sign=Reading("/proc/cpuinfo flags", "without hypervisor"),
        flags_known=True,
        family=6,
        model=143,
    )
    return replace(well, **changes)


def _sample(**changes: Any) -> Sample:
    idle = tuple((cpu, 0.01) for cpu in range(16))
    return replace(Sample(0.4, idle, tuple((cpu, 0.0) for cpu in range(16)), (), 0), **changes)


def _software(**changes: Any) -> Software:
    well = Software(
        numactl="/usr/bin/numactl",
        allocators=(LibrarySearch("tcmalloc", None), LibrarySearch("jemalloc", "/usr/lib/libjemalloc.so.2")),
        torch=TorchBuild("2.13.0+cpu"),
        environment=GOOD_ENVIRONMENT,
        distribution=("ubuntu", "debian"),
        open_files=(65536, 65536),
    )
    return replace(well, **changes)


def live(well: Facts, **changes: Any) -> Facts:
    """The facts with other live facts."""
    assert well.live is not None
    return replace(well, live=replace(well.live, **changes))


def found(name: str, here: Facts) -> Finding:
    return next(finding for finding in diagnose(here) if finding.id == name)


def words(finding: Finding) -> str:
    evidence = (f"{one.source} {one.found}" for one in finding.evidence)
    return "\n".join([finding.title, *evidence, *(finding.fix or ())])


def test_a_machine_without_problems_has_nothing_to_fix() -> None:
    assert {finding.id: finding.severity for finding in diagnose(facts()) if finding.severity != "fine"} == {}
    assert all(finding.fix is None and not finding.needs_root for finding in diagnose(facts()))


def test_every_check_gives_one_finding_and_names_its_evidence() -> None:
    bare = Facts(_machine(), make_plan(_machine(), PlanRequest()), siblings=None, quotas=None)
    for here in (facts(), replace(facts(), live=None), bare):
        findings = diagnose(here)
        assert sorted(finding.id for finding in findings) == sorted(check.id for check in CHECKS)
        assert all(finding.evidence and finding.title.endswith(".") and finding.why for finding in findings)
    assert len({check.id for check in CHECKS}) == len(CHECKS)


def test_missing_facts_are_unknown_and_never_fine() -> None:
    """With only a machine, checks can be fine only if they depend on the machine alone."""
    bare = Facts(_machine(), make_plan(_machine(), PlanRequest()), siblings=None, quotas=None)
    decided = {finding.id for finding in diagnose(bare) if finding.severity != "unknown"}
    assert decided == {"memory-pressure", "nodes", "node-memory", "offline-cpus", "inconsistent-topology"}


# -- each check, with facts that trigger it --------------------------------------------------------------------

Case = tuple[str, Callable[[], Facts], str, list[str]]


def _clock(**changes: Any) -> Callable[[], Facts]:
    return lambda: facts(clocks=_clocks(**changes))


def _per(name: str, *values: tuple[str, Cpus]) -> PerCpu:
    return replace(getattr(Clocks(), name), values=values)


def _with_memory(**changes: Any) -> Callable[[], Facts]:
    return lambda: facts(memory=_memory(**changes))


def _with_kernel(**changes: Any) -> Callable[[], Facts]:
    return lambda: facts(kernel=_kernel(**changes))


def _with_software(**changes: Any) -> Callable[[], Facts]:
    return lambda: live(facts(), software=_software(**changes))


def _with_sample(**changes: Any) -> Callable[[], Facts]:
    return lambda: live(facts(), sample=_sample(**changes))


def _in_environment(**environment: str) -> Callable[[], Facts]:
    return _with_software(environment=tuple(environment.items()))


def _busy(*cpus: int) -> tuple[tuple[int, float], ...]:
    return tuple((cpu, 0.9 if cpu in cpus else 0.01) for cpu in range(16))


def _on(here: Machine) -> Callable[[], Facts]:
    return lambda: facts(here)


def _with_isa(*isa: str, **kernel: Any) -> Callable[[], Facts]:
    return lambda: facts(replace(_machine(), isa=isa), kernel=_kernel(**kernel))


def _quota(*limits: tuple[str, str, float | None]) -> Callable[[], Facts]:
    return lambda: facts(quotas=tuple(Quota(*limit) for limit in limits))


def _bound(first: Binding, others: Binding) -> Callable[[], Facts]:
    def made() -> Facts:
        well = facts()
        return live(well, bindings=(first, *(others for _ in well.plan.instances[1:])))

    return made


def _memory_of(*amounts: int | None) -> Machine:
    here = _machine()
    return replace(
        here,
        nodes=tuple(replace(node, memory_bytes=bytes_) for node, bytes_ in zip(here.nodes, amounts, strict=True)),
    )


def _one_node() -> Machine:
    here = _machine()
    cores = tuple(replace(core, node=0) for core in here.cores)
    return replace(here, cores=cores, nodes=here.nodes[:1])


def _sub_numa() -> Machine:
    here = _machine()
    return replace(here, cores=tuple(replace(core, package=0) for core in here.cores))


BOUND, UNBOUND = Binding("bind", "numactl", "as asked"), Binding("none", "syscalls", "refused")
BUSY = Program(42, "python train.py", tuple(range(16)), 0.9)
PINNED = Program(43, "nginx", (1,), 0.0)
FOREIGN = Program(44, "redis-server", (2,), 0.5, foreign=True)
WORKERS = (Program(51, "python -m launcher.worker", (0, 1), 0.9, front=50),)
GDS = "/sys/devices/system/cpu/vulnerabilities/gather_data_sampling"

CASES: list[Case] = [
    ("busy-cpus", _with_sample(busy=_busy(3), programs=(BUSY,)), "problem", ["cpu 3 90%", "python train.py", "/42/"]),
    ("busy-cpus", _with_sample(busy=_busy(3)), "problem", ["no program visible"]),
    ("busy-cpus", _with_sample(busy=_busy(8), programs=(BUSY,)), "fine", ["at most 1%"]),
    ("busy-siblings", _with_sample(busy=_busy(8), programs=(BUSY,)), "problem", ["cpu 8 90%", "siblings"]),
    ("busy-siblings", _with_sample(busy=_busy(3)), "fine", []),
    ("busy-siblings", lambda: facts(siblings=()), "fine", ["no second hardware thread"]),
    ("busy-siblings", lambda: facts(siblings=None), "unknown", ["does not report"]),
    (
        "other-launchers",
        _with_sample(programs=WORKERS),
        "problem",
        ["cpus 0-1", "kill -TERM 50", "taskset -c 2-7,10-15"],
    ),
    (
        "other-launchers",
        lambda: live(
            facts(replace(_machine(), allowed=(4,), cores=_machine().cores[4:])), sample=_sample(programs=WORKERS)
        ),
        "fine",
        ["on other cpus"],
    ),
    ("pinned-programs", _with_sample(programs=(PINNED,)), "advice", ["planned cpu 1", "nginx", "renice", "/proc/43"]),
    ("pinned-programs", _with_sample(programs=(PINNED, FOREIGN)), "problem", ["2 other programs", "redis-server"]),
    ("pinned-programs", _with_sample(programs=(replace(PINNED, cpus=(9,)),)), "fine", []),
    ("pinned-programs", _with_sample(programs=WORKERS), "fine", []),
    ("pinned-programs", _with_sample(programs=(*WORKERS, Program(50, "launch", (0, 1), 0.1))), "fine", []),
    ("cpu-steal", _with_sample(steal=tuple((cpu, 0.2) for cpu in ALL)), "problem", ["20%", "pinned cpus"]),
    ("cpu-steal", _with_sample(steal=tuple((cpu, 0.02) for cpu in ALL)), "advice", ["2%"]),
    ("cpu-quota", _quota(("/a/cpu.max", "350000 100000", 3.5)), "problem", ["3 of 8 cores", "echo max > /a/cpu.max"]),
    ("cpu-quota", _quota(("/a/cpu.cfs_quota_us", "50000", 0.5)), "problem", ["single", "echo -1 >", "--cpus 8"]),
    ("cpu-quota", _quota(("/a/cpu.max", "800000 100000", 8.0)), "fine", ["covers all 8 cores"]),
    ("cpu-quota", _quota(("/a/cpu.max", "max", None), ("/b/cpu.max", "2 1", 2.0)), "problem", ["> /b/cpu.max"]),
    ("cpu-quota", lambda: facts(quotas=()), "fine", ["root group"]),
    ("cpu-quota", lambda: facts(quotas=None), "unknown", ["no control group is visible"]),
    (
        "throttling",
        lambda: facts(throttled=Throttled(1000, 500, 7.0, 3)),
        "problem",
        ["500 of nr_periods 1000", "3 more"],
    ),
    ("throttling", lambda: facts(throttled=Throttled(1000, 500, 7.0, 0)), "advice", ["50%"]),
    ("throttling", lambda: facts(throttled=Throttled(1000, 1, 0.1, 0)), "fine", ["1 of nr_periods"]),
    ("throttling", lambda: facts(throttled=None), "unknown", ["no nr_throttled"]),
    ("instruction-sets", _with_isa(*AVX512), "problem", ["Sapphire Rapids", "amx_bf16", "clearcpuid"]),
    (
        "instruction-sets",
        _with_isa(*AVX512, virtual=True),
        "problem",
        ["amx_int8", "-cpu host"],
    ),
    (
        "instruction-sets",
        _with_isa(*AVX512, release=Reading("/proc/version", "5.15.0-91-generic")),
        "problem",
        ["5.16", "5.15.0-91"],
    ),
    ("instruction-sets", _with_isa("avx2", model=85), "fine", ["no instructions for bf16", "fp32"]),
    ("instruction-sets", _with_isa("avx512_bf16", model=85), "fine", ["avx512_bf16"]),
    ("instruction-sets", _with_kernel(flags_known=False), "unknown", ["no flags"]),
    (
        "instruction-sets",
        lambda: facts(replace(_machine(), vendor="AuthenticAMD", isa=("avx2",)), kernel=_kernel(family=25, model=17)),
        "problem",
        ["Zen 4", "avx512_bf16"],
    ),
    (
        "instruction-sets",
        lambda: facts(replace(_machine(), vendor="AuthenticAMD", isa=("avx2",)), kernel=_kernel(family=25, model=1)),
        "fine",
        ["fp32"],
    ),
    (
        "instruction-sets",
        lambda: facts(replace(_machine(), arch="aarch64", vendor="ARM", model="Neoverse-V1", isa=("asimd",))),
        "problem",
        ["Neoverse-V1", "bf16, i8mm, sve"],
    ),
    (
        "instruction-limit",
        _in_environment(ONEDNN_MAX_CPU_ISA="AVX512_CORE"),
        "problem",
        ["amx_bf16", "unset ONEDNN_M"],
    ),
    ("instruction-limit", _in_environment(ATEN_CPU_CAPABILITY="avx2"), "problem", ["avx512f", "unset ATEN"]),
    ("instruction-limit", _in_environment(ONEDNN_MAX_CPU_ISA="DEFAULT"), "fine", ["disables none"]),
    ("instruction-limit", _in_environment(), "fine", ["none of ONEDNN_MAX_CPU_ISA"]),
    ("thread-environment", _in_environment(GOMP_CPU_AFFINITY="0-7"), "problem", ["0-7", "unset GOMP_CPU_AFFINITY"]),
    (
        "thread-environment",
        _in_environment(OMP_PROC_BIND="true", KMP_AFFINITY="compact"),
        "advice",
        ["unset OMP_PROC_BIND KMP_AFFINITY"],
    ),
    ("thread-environment", _in_environment(OMP_NUM_THREADS="48"), "fine", ["OMP_NUM_THREADS=48", "the plan sets"]),
    ("thread-environment", _in_environment(OMP_THREAD_LIMIT="1"), "advice", ["=1", "unset OMP_THREAD_LIMIT"]),
    ("thread-environment", _in_environment(OMP_DYNAMIC="true"), "advice", ["=true", "unset OMP_DYNAMIC"]),
    ("thread-environment", _in_environment(OMP_THREAD_LIMIT="999"), "fine", ["OMP_THREAD_LIMIT=999"]),
    ("thread-environment", _in_environment(KMP_AFFINITY="disabled"), "fine", ["KMP_AFFINITY=disabled"]),
    (
        "memory-policy",
        _bound(BOUND, Binding("cpus", "numactl", "bind: not permitted")),
        "problem",
        ["not permitted", "SYS_NICE"],
    ),
    ("memory-policy", _bound(UNBOUND, UNBOUND), "problem", ["cannot be bound at all"]),
    ("nodes", _on(_one_node()), "advice", ["2 packages", "1 node", "interleaving"]),
    (
        "nodes",
        lambda: facts(_one_node(), kernel=_kernel(command_line=Reading("/proc/cmdline", "quiet numa=off"))),
        "problem",
        ["remove numa=off"],
    ),
    ("nodes", lambda: facts(_one_node(), kernel=_kernel(virtual=True)), "advice", ["QEMU"]),
    ("nodes", _on(_sub_numa()), "fine", ["sub-NUMA", "up to 4 cores"]),
    ("nodes", _on(machine(((4,), (4,)), has_nodes=False)), "advice", ["no nodes"]),
    ("nodes", _on(machine(((4,),), has_nodes=False)), "fine", ["no NUMA nodes"]),
    ("node-memory", _on(_memory_of(0, 64 * GIB)), "problem", ["node 0", "slots"]),
    ("node-memory", _on(_memory_of(16 * GIB, 64 * GIB)), "advice", ["node 0", "16.0 GiB instead of 64.0 GiB"]),
    ("node-memory", _on(_memory_of(None, 64 * GIB)), "unknown", ["does not report", "node 0: not reported"]),
    (
        "node-memory",
        _on(_machine(limits=Limits(memory_nodes=(1,)))),
        "problem",
        ["cores of node 0", "--cpuset-mems 0-1"],
    ),
    ("memory-pressure", _on(replace(_machine(), free_bytes=2 * GIB)), "problem", ["exhausted", "2.0 GiB of 128.0 GiB"]),
    ("memory-pressure", _on(replace(_machine(), free_bytes=10 * GIB)), "advice", ["Little memory"]),
    (
        "memory-pressure",
        _with_memory(limit=MemoryLimit("/sys/fs/cgroup", 8 * GIB, 8 * GIB - 1)),
        "problem",
        ["8.0 GiB"],
    ),
    (
        "memory-pressure",
        _with_memory(limit=MemoryLimit("/sys/fs/cgroup", 8 * GIB, GIB)),
        "fine",
        ["7.0 GiB of 8.0 GiB"],
    ),
    ("memory-pressure", _on(replace(_machine(), memory_bytes=None)), "unknown", ["does not report"]),
    ("swap", _with_memory(swap_bytes=GIB), "fine", ["No memory is swapped"]),
    ("swap", _with_memory(swap_bytes=GIB, swap_used=GIB // 2), "advice", ["512 MiB", "swappiness", "swapoff"]),
    (
        "swap",
        lambda: live(facts(memory=_memory(swap_bytes=GIB, swap_used=GIB // 2)), sample=_sample(swapped=700)),
        "problem",
        ["700 pages in 0.4 s"],
    ),
    ("swap", _with_memory(swap_bytes=None), "unknown", ["unknown", "not found"]),
    (
        "swap",
        lambda: facts(replace(_machine(), free_bytes=GIB), memory=_memory(swap_bytes=64 * GIB, swap_used=32 * GIB)),
        "advice",
        ["32.0 GiB"],
    ),
    ("huge-pages", _with_memory(huge_pages=Reading("x", "always madvise [never]")), "advice", ["echo madvise"]),
    (
        "huge-pages",
        _with_memory(compaction=Reading("x", "[always] defer never")),
        "advice",
        ["defer+madvise", "stall"],
    ),
    ("huge-pages", _with_memory(huge_pages=Reading("x", "[always] madvise never")), "fine", ["every program"]),
    ("huge-pages", _with_memory(huge_pages=Reading("x", None)), "unknown", ["not found"]),
    ("numa-balancing", _with_memory(balancing=Reading("x", "1")), "fine", ["whose memory is bound"]),
    (
        "numa-balancing",
        lambda: replace(facts(memory=_memory(balancing=Reading("x", "1"))), live=None),
        "advice",
        ["kernel.numa_balancing=0"],
    ),
    ("numa-balancing", _with_memory(balancing=Reading("x", None)), "unknown", []),
    (
        "numa-balancing",
        lambda: facts(_one_node(), memory=_memory(balancing=Reading("x", "1"))),
        "fine",
        ["at most one node"],
    ),
    ("governor", _clock(governor=_per("governor", ("schedutil", ALL))), "advice", ["schedutil on cpus 0-7", "tee"]),
    (
        "governor",
        _clock(governor=_per("governor", ("powersave", (3,)), ("performance", (0,)))),
        "problem",
        ["on cpu 3"],
    ),
    (
        "governor",
        _clock(governor=_per("governor", ("powersave", ALL)), driver=Reading("x", "intel_pstate")),
        "fine",
        ["itself (intel_pstate)"],
    ),
    (
        "governor",
        _clock(governor=_per("governor", ("ondemand", ALL)), governors=Reading("x", "ondemand")),
        "advice",
        ["modprobe cpufreq_performance"],
    ),
    ("governor", lambda: facts(clocks=Clocks()), "unknown", ["not found"]),
    (
        "energy-preference",
        _clock(preference=_per("preference", ("balance_power", ALL))),
        "problem",
        ["balance_power"],
    ),
    ("energy-preference", _clock(preference=_per("preference", ("balance_performance", ALL))), "advice", ["tee"]),
    ("energy-preference", _clock(preference=_per("preference")), "fine", ["no energy preference"]),
    ("energy-preference", lambda: facts(clocks=Clocks()), "unknown", ["not found"]),
    ("boost", _clock(boost=Reading("x", "0")), "problem", ["echo 1 > /sys/devices/system/cpu/cpufreq/boost"]),
    ("boost", _clock(no_turbo=Reading("x", "1")), "problem", ["echo 0 >", "no_turbo"]),
    ("boost", _clock(boost=Reading("x", None), no_turbo=Reading("x", "0")), "fine", []),
    ("boost", lambda: facts(clocks=Clocks()), "unknown", ["not found"]),
    ("clock-limit", _clock(limit=_per("limit", ("2000000", (4, 5)))), "problem", ["cpus 4-5", "2.0 GHz", "3.0 GHz"]),
    ("clock-limit", _clock(limit=_per("limit", ("2990000", ALL))), "fine", []),
    ("clock-limit", _clock(limit=_per("limit", ("junk", ALL))), "unknown", ["junk"]),
    (
        "thermal-throttling",
        _clock(throttle_count=_per("throttle_count", ("0", (0, 1)), ("17", (2,)))),
        "advice",
        ["cpu 2", "17 times"],
    ),
    ("thermal-throttling", lambda: facts(clocks=Clocks()), "unknown", ["not found"]),
    ("offline-cpus", _on(_machine(present=tuple(range(18)))), "problem", ["2 of 18", "echo 1 >", "cpu17/online"]),
    ("offline-cpus", _on(_machine(present=tuple(range(99)))), "problem", ["and likewise", "16-98"]),
    (
        "offline-cpus",
        lambda: facts(_machine(present=tuple(range(32))), kernel=_kernel(smt=Reading("smt/control", "off"))),
        "fine",
        ["SMT is off"],
    ),
    ("offline-cpus", _on(replace(_machine(present=tuple(range(64))), arch="ppc64le")), "unknown", ["ppc64_cpu"]),
    ("isolated-cpus", _on(_machine(isolated=(6, 7))), "advice", ["2 of 16", "6-7", "isolcpus"]),
    ("isolated-cpus", _with_kernel(isolated=Reading("x", None)), "unknown", ["does not report"]),
    (
        "allowed-cpus",
        lambda: facts(
            replace(_machine(limits=Limits(affinity=(0, 1, 2, 3))), allowed=(0, 1, 2, 3), cores=_machine().cores[:4])
        ),
        "advice",
        ["4 of 16", "taskset -c 0-15 launch"],
    ),
    (
        "allowed-cpus",
        lambda: replace(facts(replace(_machine(), allowed=(0, 1), cores=_machine().cores[:2])), cpuset=(0, 1)),
        "advice",
        ["2 of 16", "--cpuset-cpus 0-15"],
    ),
    ("allowed-cpus", lambda: facts(cpuset=None), "unknown", ["unknown which online cpus"]),
    ("smt", lambda: facts(siblings=()), "fine", ["one online hardware thread"]),
    (
        "smt",
        lambda: replace(facts(replace(_machine(), allowed=ALL)), siblings=tuple(range(8, 16))),
        "advice",
        ["Other programs may use", "8-15"],
    ),
    ("virtual-cores", lambda: facts(siblings=(), kernel=_kernel(virtual=True)), "unknown", ["ThreadsPerCore=1"]),
    ("virtual-cores", _with_kernel(virtual=True), "fine", ["hypervisor reports"]),
    ("virtual-cores", _with_kernel(virtual=None), "unknown", ["unknown whether"]),
    ("numactl", _with_software(numactl=None), "advice", ["apt-get install -y numactl"]),
    ("numactl", _with_software(numactl=None, distribution=("rocky", "rhel")), "advice", ["dnf install -y numactl"]),
    ("numactl", _with_software(numactl=None, distribution=()), "advice", ["# install numactl"]),
    (
        "allocator",
        _with_software(allocators=(LibrarySearch("tcmalloc", None, places=("ldconfig -p",)),)),
        "advice",
        ["libtcmalloc-minimal4", "ldconfig -p"],
    ),
    (
        "allocator",
        _with_software(allocators=(LibrarySearch("jemalloc", None, (("/opt/libjemalloc.so.2", "wrong ELF class"),)),)),
        "advice",
        ["cannot be preloaded", "/opt/libjemalloc.so.2 wrong ELF class"],
    ),
    ("torch-build", _with_software(torch=None), "problem", ["not installed"]),
    ("torch-build", _with_software(torch=CUDA_TORCH), "advice", ["2.13.0+cu130", "CUDA 13.0", "whl/cpu"]),
    ("torch-build", _with_software(torch=CUDA_TORCH, gpu_packages=("nvidia-cublas",)), "advice", ["nvidia-cublas"]),
    ("kernel", _with_kernel(release=Reading("x", "5.4.0-150")), "advice", ["5.15"]),
    ("kernel", lambda: facts(_one_node(), kernel=_kernel(release=Reading("x", "5.4"))), "fine", []),
    ("kernel", _with_kernel(release=Reading("x", None)), "unknown", ["is unknown"]),
    ("clock-source", _with_kernel(clock_source=Reading("/s", "hpet")), "advice", ["hpet is slow", "echo tsc > /s"]),
    (
        "clock-source",
        _with_kernel(clock_source=Reading("/s", "hpet"), clock_sources=Reading("x", "hpet")),
        "advice",
        ["dmesg"],
    ),
    ("clock-source", _with_kernel(clock_source=Reading("/s", "sundial")), "unknown", ["sundial"]),
    ("clock-source", _with_kernel(clock_source=Reading("/s", None)), "unknown", ["not found"]),
    (
        "mitigations",
        _with_kernel(vulnerabilities=(Reading(GDS, "Mitigation: Microcode"),)),
        "advice",
        ["gather instructions"],
    ),
    ("mitigations", _with_kernel(vulnerabilities=(Reading(GDS, "Not affected"),)), "fine", ["No active mitigation"]),
    ("mitigations", _with_kernel(vulnerabilities=()), "unknown", ["not found"]),
    ("open-files", _with_software(open_files=(512, 1024)), "advice", ["open files is 1024", "prlimit --nofile=65536"]),
    ("open-files", _with_software(open_files=(1024, 4096)), "fine", ["4096"]),
    ("open-files", _with_software(open_files=(-1, -1)), "fine", ["unlimited"]),
    ("priority", _with_software(nice=10), "problem", ["nice 10", "renice -n 0"]),
    ("priority", _with_software(scheduling="SCHED_IDLE"), "problem", ["chrt"]),
    ("priority", _with_software(nice=-5), "fine", []),
    ("inconsistent-topology", _on(_machine(warnings=("cpu 3 lies",))), "advice", ["cpu 3 lies"]),
]


@pytest.mark.parametrize(
    ("name", "made", "severity", "expected"), CASES, ids=[f"{c[0]}-{n}" for n, c in enumerate(CASES)]
)
def test_each_check_reports_its_problem(
    name: str, made: Callable[[], Facts], severity: str, expected: list[str]
) -> None:
    finding = found(name, made())
    assert finding.severity == severity, words(finding)
    for word in expected:
        assert word in words(finding)


def test_every_check_has_a_case_that_is_fine_and_one_that_is_not() -> None:
    """With ``facts()`` every check is fine; the cases change each of them."""
    other = {name for name, _, severity, _ in CASES if severity != "fine"}
    assert other == {check.id for check in CHECKS}


def test_problems_and_advice_have_a_fix() -> None:
    for name, made, severity, _ in CASES:
        if severity in ("problem", "advice"):
            assert found(name, made()).fix, name


# -- details --------------------------------------------------------------------------------------------------


def test_programs_are_moved_to_cpus_outside_the_plan_if_there_are_any() -> None:
    here = live(facts(_machine(online=tuple(range(20)))), sample=_sample(busy=_busy(3), programs=(BUSY,)))
    assert found("busy-cpus", here).fix == ("taskset -a -p -c 16-19 42",)


def test_the_remedy_for_a_busy_sibling_is_a_plan_without_its_core_and_not_a_lower_priority() -> None:
    busy = found("busy-siblings", live(facts(), sample=_sample(busy=_busy(8), programs=(BUSY,))))
    assert busy.fix == ("# or stop these programs, or plan without their cores:", "taskset -c 1-7,9-15 launch")
    foreign = replace(
        facts(), machine=_machine(allowed=ALL, cores=tuple(replace(c, cpus=c.cpus[:1]) for c in _machine().cores))
    )
    assert found("busy-siblings", live(foreign, sample=_sample(busy=_busy(8)))).fix == ("# or stop these programs",)


def test_nodes_with_fewer_usable_cores_do_not_count_as_short_of_memory() -> None:
    here = _machine()
    assert found("node-memory", facts(replace(here, cores=here.cores[:4] + here.cores[6:]))).severity == "fine"
    fewer = replace(_memory_of(64 * GIB, 32 * GIB), cores=here.cores[:6])
    assert found("node-memory", facts(fewer)).severity == "fine"


def test_another_users_program_needs_root() -> None:
    mine = live(facts(), sample=_sample(busy=_busy(2), programs=(BUSY,)))
    theirs = live(facts(), sample=_sample(busy=_busy(2), programs=(FOREIGN,)))
    assert not found("busy-cpus", mine).needs_root
    assert found("busy-cpus", theirs).needs_root


def test_swap_is_not_emptied_if_memory_has_no_room_for_it() -> None:
    here = facts(replace(_machine(), free_bytes=GIB), memory=_memory(swap_bytes=8 * GIB, swap_used=4 * GIB))
    assert "swapoff" not in words(found("swap", here))


@pytest.mark.parametrize(
    ("name", "value", "lost"),
    [
        ("ONEDNN_MAX_CPU_ISA", "ALL", set()),
        ("ONEDNN_MAX_CPU_ISA", "avx2", {*AMX, *AVX512} - {"avx2"}),
        ("ONEDNN_MAX_CPU_ISA", "SSE41", {*AMX, *AVX512}),
        ("DNNL_MAX_CPU_ISA", "AVX512_CORE_BF16", {*AMX, "avx512_fp16"}),
        ("ONEDNN_MAX_CPU_ISA", "AVX10_1_512_AMX", set()),
        ("ONEDNN_MAX_CPU_ISA", "AVX512_CORE_AMX", set()),
        ("ATEN_CPU_CAPABILITY", "default", {"avx2", "avx512f"}),
        ("ATEN_CPU_CAPABILITY", "AVX2", {"avx512f"}),
        ("ATEN_CPU_CAPABILITY", "avx512", set()),
    ],
)
def test_an_isa_limit_disables_everything_above_it(name: str, value: str, lost: set[str]) -> None:
    assert disabled_by(name, value, (*AMX, *AVX512)) == lost


def test_releases_of_kernels_are_compared_as_numbers() -> None:
    assert parse_release("6.18.44-fc") == (6, 18)
    assert parse_release("5.4") == (5, 4)
    assert parse_release("next") is None
    assert parse_release(None) is None


# -- text and document ----------------------------------------------------------------------------------------


@functools.cache
def _all_findings() -> tuple[Finding, ...]:
    """Findings of every kind, each from one of the cases."""
    return tuple(found(name, made()) for name, made, _, _ in CASES)


@pytest.mark.parametrize("width", [40, 80, 100, 300])
def test_the_text_stays_within_the_width_except_for_words_that_cannot_be_broken(width: int) -> None:
    for line in findings_text(_machine(), _all_findings(), width).plain.splitlines():
        assert len(line) <= width or max(map(len, line.split())) > width - 20
        assert line == line.rstrip()


def test_the_text_has_every_finding_with_the_worst_first() -> None:
    findings = diagnose(_CASES_BY_NAME["governor"]())
    plain = findings_text(_machine(), findings, 80).plain
    places = [plain.index(head) for head in ("Advice:", "\nFine")]
    assert places == sorted(places)
    assert all(finding.id in plain for finding in findings)


_CASES_BY_NAME = {name: made for name, made, severity, _ in reversed(CASES) if severity == "advice"}


def test_commands_in_the_text_can_be_pasted_into_a_shell() -> None:
    """Wrapped lines end with a backslash, so that the shell reads the same command as in the document."""
    finding = found("clock-limit", facts(clocks=_clocks(limit=_per("limit", ("2000000", ALL)))))
    lines = findings_text(_machine(), [finding], 50).plain.splitlines()
    start = next(index for index, line in enumerate(lines) if line.strip().startswith("fix"))
    shown = [line.strip().removeprefix("fix").strip() for line in lines[start:]]
    assert shown[0] == "# as root:"
    joined = " ".join(" ".join(shown[1:]).replace("\\ ", " ").split())
    assert (joined,) == finding.fix


def test_findings_are_sorted_by_severity() -> None:
    order = [SEVERITIES.index(finding.severity) for finding in diagnose(_CASES_BY_NAME["nodes"]())]
    assert order == sorted(order)


def test_the_document_has_the_keys_of_schema_1() -> None:
    document = json.loads(json.dumps(findings_json(_all_findings())))
    assert set(document) == {"schema", "findings"}
    assert document["schema"] == 1
    for entry in document["findings"]:
        assert set(entry) == {"id", "severity", "title", "evidence", "why", "fix", "needs_root"}
        assert entry["fix"] is None or entry["fix"]
        assert all(set(one) == {"source", "found"} for one in entry["evidence"])
