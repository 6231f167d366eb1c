"""Judges what keeps a machine from its speed: facts in, one finding for each check out, worst first.

Pure, so that every judgement can be tested with facts made up for it. What is read, and from where, is decided in
``host.machine.doctor``. A check that cannot decide says so; none is left out.
"""

from __future__ import annotations

from launcher.core.diagnosis import core_checks, interference_checks, limit_checks, memory_checks, software_checks
from launcher.core.diagnosis.facts import Facts
from launcher.core.diagnosis.finding import SEVERITIES, Check, Finding

CHECKS: tuple[Check, ...] = (
    Check(
        "busy-cpus",
        "An instance waits for its slowest thread; one cpu that is shared with another program slows down all of it.",
        interference_checks.check_busy_cpus,
    ),
    Check(
        "busy-siblings",
        "Two hardware threads share the units of one core: 2 times slower was reported where instances had been "
        "put on siblings, and a busy sibling takes its part in the same way.",
        interference_checks.check_busy_siblings,
    ),
    Check(
        "other-launchers",
        "Two launchers plan the same cores, each as if it were alone.",
        interference_checks.check_other_launchers,
    ),
    Check(
        "pinned-programs",
        "The scheduler cannot move a pinned program away when an instance needs the cpu.",
        interference_checks.check_pinned_programs,
    ),
    Check(
        "cpu-steal",
        "To the guest a cpu that the hypervisor takes away looks like one that is slow now and then.",
        interference_checks.check_cpu_steal,
    ),
    Check(
        "cpu-quota",
        "A program with more threads than its quota is stopped in every period; 45 times slower was reported. The"
        " plan heeds the quota, so that cores beyond it stay idle.",
        limit_checks.check_cpu_quota,
    ),
    Check(
        "throttling",
        "A stopped control group computes nothing until the next period, by default for up to 0.1 s.",
        limit_checks.check_throttling,
    ),
    Check(
        "instruction-sets",
        "bf16 needs instructions for it (AMX, AVX512-BF16, ARM bf16); without them models run in fp32.",
        software_checks.check_instruction_sets,
    ),
    Check(
        "instruction-limit",
        "These variables are meant for debugging; libraries then compute with older instructions.",
        software_checks.check_instruction_limit,
    ),
    Check(
        "thread-environment",
        "The plan gives each thread a core of its own; with GOMP_CPU_AFFINITY all threads of an instance were "
        "found on one.",
        software_checks.check_thread_environment,
    ),
    Check(
        "memory-policy",
        "Without a policy memory may come from another node; crossing packages is published to cost 27 to 33 % "
        "for up to 128 tokens.",
        software_checks.check_memory_policy,
    ),
    Check(
        "nodes",
        "An instance is fastest on the cores and memory of one node; crossing packages is published to cost "
        "27 to 33 % for up to 128 tokens.",
        memory_checks.check_nodes,
    ),
    Check(
        "node-memory",
        "Cores without memory next to them fetch all weights from another node, for every batch.",
        memory_checks.check_node_memory,
    ),
    Check(
        "memory-pressure",
        "When memory is full, workers are killed, or their pages go to swap.",
        memory_checks.check_memory_pressure,
    ),
    Check(
        "swap",
        "A page that must come back from swap stops a whole instance for as long as the disk takes.",
        memory_checks.check_swap,
    ),
    Check(
        "huge-pages",
        "With pages of 2 MiB instead of 4 KiB large weights need far fewer address translations.",
        memory_checks.check_huge_pages,
    ),
    Check(
        "numa-balancing",
        "To see who uses a page the kernel takes it away for a moment, again and again.",
        memory_checks.check_numa_balancing,
    ),
    Check(
        "governor",
        "A clock that follows the load is still low when a short batch begins.",
        core_checks.check_governor,
    ),
    Check(
        "energy-preference",
        "It decides how soon and how far the processor raises its clock.",
        core_checks.check_energy_preference,
    ),
    Check(
        "boost",
        "Server processors are sold by a nominal clock that is well below what they reach when cool.",
        core_checks.check_boost,
    ),
    Check(
        "clock-limit",
        "Speed follows the clock as long as memory keeps up.",
        core_checks.check_clock_limit,
    ),
    Check(
        "thermal-throttling",
        "A core that is too hot lowers its clock, and the instance waits for it.",
        core_checks.check_thermal_throttling,
    ),
    Check(
        "offline-cpus",
        "A core that is switched off cannot be planned.",
        core_checks.check_offline_cpus,
    ),
    Check(
        "isolated-cpus",
        "The scheduler does not balance isolated cpus, so that the plan leaves them alone.",
        core_checks.check_isolated_cpus,
    ),
    Check(
        "allowed-cpus",
        "Cores outside the cpuset or the affinity mask cannot be planned.",
        core_checks.check_allowed_cpus,
    ),
    Check(
        "smt",
        "One thread per core is what dense arithmetic wants; two on one core share its units.",
        core_checks.check_smt,
    ),
    Check(
        "virtual-cores",
        "Where two cpus of a guest are threads of one core, instances on both of them were reported 2 times slower.",
        core_checks.check_virtual_cores,
    ),
    Check(
        "numactl",
        "With numactl the commands of the report can be run by hand, and binding is in place before Python starts.",
        software_checks.check_numactl,
    ),
    Check(
        "allocator",
        "1.73 times the speed was published for 512 tokens on 40 cores, and no gain up to 128 tokens; on one core "
        "only memory was measured to differ (12 % less with tcmalloc).",
        software_checks.check_allocator,
    ),
    Check(
        "torch-build",
        "On CPUs it computes the same as the build for CPUs, and brings gigabytes of libraries that are never used.",
        software_checks.check_torch_build,
    ),
    Check(
        "kernel",
        "Linux 5.15 can prefer several nodes at once, 5.16 knows AMX.",
        software_checks.check_kernel,
    ),
    Check(
        "clock-source",
        "Every event of the front reads the clock; a slow one enters the kernel, or a chip on a bus, each time.",
        software_checks.check_clock_source,
    ),
    Check(
        "mitigations",
        "Most mitigations cost where programs enter the kernel, which workers rarely do; that of gather "
        "instructions costs in the middle of computing.",
        software_checks.check_mitigations,
    ),
    Check(
        "open-files",
        "At the limit the front cannot accept connections.",
        limit_checks.check_open_files,
    ),
    Check(
        "priority",
        "Workers inherit the priority of the shell that starts them.",
        limit_checks.check_priority,
    ),
    Check(
        "inconsistent-topology",
        "What is told wrongly is planned wrongly, such as siblings taken for cores (reported 2 times slower).",
        software_checks.check_inconsistent_topology,
    ),
)


def diagnose(facts: Facts) -> tuple[Finding, ...]:
    """One finding for each check, the worst first, in the order of ``CHECKS`` where they are alike."""
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
