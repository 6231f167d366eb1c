"""Finds performance problems of a machine: facts in, one finding per check out, the most severe first.

Pure, so that every check can be tested with constructed facts. What is read, and from where, is decided in
``host.machine.diagnosis_facts``. A check without sufficient facts reports `unknown`; no check is skipped.
"""

from __future__ import annotations

from launcher.core.diagnosis import (
    clock_checks,
    cpu_checks,
    interference_checks,
    limit_checks,
    memory_checks,
    software_checks,
)
from launcher.core.diagnosis.facts import Facts
from launcher.core.diagnosis.finding import SEVERITIES, Check, Finding

CHECKS: tuple[Check, ...] = (
    Check(
        "busy-cpus",
        "An instance waits for its slowest thread, so sharing one cpu with another program slows down the instance.",
        interference_checks.check_busy_cpus,
    ),
    Check(
        "busy-siblings",
        "Two hardware threads share the execution units of one core. A slowdown by a factor of 2 was reported for "
        "instances placed on siblings; another program on a sibling has the same effect.",
        interference_checks.check_busy_siblings,
    ),
    Check(
        "other-launchers",
        "Each launcher plans all cores, as if no other launcher were running.",
        interference_checks.check_other_launchers,
    ),
    Check(
        "pinned-programs",
        "The kernel cannot move a pinned program to another cpu when an instance needs this one.",
        interference_checks.check_pinned_programs,
    ),
    Check(
        "cpu-steal",
        "While the hypervisor runs something else on a cpu, the instance on that cpu makes no progress.",
        interference_checks.check_cpu_steal,
    ),
    Check(
        "cpu-quota",
        "A program with more threads than its quota is throttled in every period; a slowdown by a factor of 45 was "
        "reported. The plan stays within the quota, so the other cores stay idle.",
        limit_checks.check_cpu_quota,
    ),
    Check(
        "throttling",
        "A throttled control group does not run until the next period, by default for up to 0.1 s.",
        limit_checks.check_throttling,
    ),
    Check(
        "instruction-sets",
        "bf16 requires instructions for it (AMX, AVX512-BF16, Arm bf16); without them, models run in fp32.",
        software_checks.check_instruction_sets,
    ),
    Check(
        "instruction-limit",
        "These variables are intended for debugging; they make libraries use older instructions.",
        software_checks.check_instruction_limit,
    ),
    Check(
        "thread-environment",
        "The plan assigns one core to each thread; with GOMP_CPU_AFFINITY, all threads of an instance were observed on "
        "a single core.",
        software_checks.check_thread_environment,
    ),
    Check(
        "memory-policy",
        "Without a memory policy, memory may be allocated on another node. Published results show a cost of 27 to 33 % "
        "for crossing packages, for up to 128 tokens.",
        software_checks.check_memory_policy,
    ),
    Check(
        "nodes",
        "An instance is fastest on the cores and memory of one node. Published results show a cost of 27 to 33 % for "
        "crossing packages, for up to 128 tokens.",
        memory_checks.check_nodes,
    ),
    Check(
        "node-memory",
        "Cores of a node without memory read all weights from another node, for every batch.",
        memory_checks.check_node_memory,
    ),
    Check(
        "memory-pressure",
        "When memory runs out, workers are killed or swapped out.",
        memory_checks.check_memory_pressure,
    ),
    Check(
        "swap",
        "Reading a page back from swap stalls the whole instance.",
        memory_checks.check_swap,
    ),
    Check(
        "huge-pages",
        "With 2 MiB pages instead of 4 KiB pages, large weights need far fewer address translations.",
        memory_checks.check_huge_pages,
    ),
    Check(
        "numa-balancing",
        "The kernel periodically unmaps pages to find out which node uses them; each costs a page fault.",
        memory_checks.check_numa_balancing,
    ),
    Check(
        "governor",
        "With a governor that follows the load, the clock is still low when a short batch starts.",
        clock_checks.check_governor,
    ),
    Check(
        "energy-preference",
        "It controls how quickly, and how far, the processor raises its clock.",
        clock_checks.check_energy_preference,
    ),
    Check(
        "boost",
        "The nominal clock of a server processor is well below the clock that it reaches with boost.",
        clock_checks.check_boost,
    ),
    Check(
        "clock-limit",
        "Performance is proportional to the clock, unless memory bandwidth limits it.",
        clock_checks.check_clock_limit,
    ),
    Check(
        "thermal-throttling",
        "A core that is too hot lowers its clock, and the instance waits for its slowest core.",
        clock_checks.check_thermal_throttling,
    ),
    Check(
        "offline-cpus",
        "The plan cannot use offline cores.",
        cpu_checks.check_offline_cpus,
    ),
    Check(
        "isolated-cpus",
        "The kernel does not balance load across isolated cpus, so the plan does not use them.",
        cpu_checks.check_isolated_cpus,
    ),
    Check(
        "allowed-cpus",
        "The plan cannot use cores outside the cpuset or the affinity mask.",
        cpu_checks.check_allowed_cpus,
    ),
    Check(
        "smt",
        "Dense arithmetic is fastest with one thread per core; two threads share the execution units.",
        cpu_checks.check_smt,
    ),
    Check(
        "virtual-cores",
        "If two cpus of a guest are threads of one core, instances on both slow each other down; a factor of 2 was "
        "reported.",
        cpu_checks.check_virtual_cores,
    ),
    Check(
        "numactl",
        "With numactl, the commands of the report can be run by hand, and processes are bound before Python starts.",
        software_checks.check_numactl,
    ),
    Check(
        "allocator",
        "Published results show a speedup of 1.73 for 512 tokens on 40 cores, and none for up to 128 tokens. Measured "
        "on one core, only the memory use differs (12 % less with tcmalloc).",
        software_checks.check_allocator,
    ),
    Check(
        "torch-build",
        "A CUDA build is no faster on CPUs, and installs gigabytes of libraries that are never used.",
        software_checks.check_torch_build,
    ),
    Check(
        "kernel",
        "Linux 5.15 added memory policies that prefer several nodes, and Linux 5.16 added AMX.",
        software_checks.check_kernel,
    ),
    Check(
        "clock-source",
        "The server reads the clock for every event; a slow clock source needs a system call or bus access each time.",
        software_checks.check_clock_source,
    ),
    Check(
        "mitigations",
        "Most mitigations slow down system calls, which workers rarely make. The mitigation for gather instructions "
        "slows down computation itself.",
        software_checks.check_mitigations,
    ),
    Check(
        "open-files",
        "At the limit, the server cannot accept connections.",
        limit_checks.check_open_files,
    ),
    Check(
        "priority",
        "Workers inherit the priority of the process that starts them.",
        limit_checks.check_priority,
    ),
    Check(
        "inconsistent-topology",
        "Wrong topology data leads to a wrong plan, for example with siblings treated as cores (a slowdown by a factor "
        "of 2 was reported).",
        software_checks.check_inconsistent_topology,
    ),
)


def diagnose(facts: Facts) -> tuple[Finding, ...]:
    """One finding per check, the most severe first; findings of one severity are in the order of ``CHECKS``."""
    findings = [_finding(check, facts) for check in CHECKS]
    return tuple(sorted(findings, key=lambda finding: SEVERITIES.index(finding.severity)))


def _finding(check: Check, facts: Facts) -> Finding:
    verdict = check.run(facts)
    fix = verdict.fix or None
    return Finding(
        check.id,
        verdict.severity,
        verdict.title,
        verdict.evidence,
        check.why,
        fix,
        verdict.needs_root and fix is not None,
    )
