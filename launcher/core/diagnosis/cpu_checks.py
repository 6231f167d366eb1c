"""Checks of cores and cpus: hardware threads; offline, isolated and disallowed cpus."""

from __future__ import annotations

from launcher.core.diagnosis.facts import Facts
from launcher.core.diagnosis.finding import (
    Evidence,
    Verdict,
    advice,
    count,
    cpus_text,
    evidence_of,
    fine,
    problem,
    unknown,
)
from launcher.core.machine.cpuset import format_cpu_list

CPU = "/sys/devices/system/cpu"
SIBLINGS = f"{CPU}/cpu*/topology/core_cpus_list"


def check_smt(facts: Facts) -> Verdict:
    """Whether other programs may run on the second hardware threads of planned cores; the plan uses one thread per
    core.
    """
    control = evidence_of(facts.kernel.smt)
    if facts.siblings is None:
        return unknown("The kernel does not report which cpus share a core.", *control, Evidence(SIBLINGS, "not found"))
    evidence = (*control, Evidence(SIBLINGS, cpus_text(facts.siblings) if facts.siblings else "no siblings"))
    if not facts.siblings:
        return fine("Every planned core has one online hardware thread.", *evidence)
    foreign = sorted(set(facts.siblings) - set(facts.machine.allowed))
    if foreign:
        title = f"Other programs may use the second hardware threads of planned cores: {cpus_text(foreign)}."
        fix = (
            f"# add the second threads to this cpuset: {format_cpu_list(foreign)}",
            "# or turn off SMT, on the host: echo off > /sys/devices/system/cpu/smt/control",
        )
        return advice(title, *evidence, Evidence("allowed cpus", format_cpu_list(facts.machine.allowed)), fix=fix)
    return fine("SMT is on, and the plan uses one hardware thread per core.", *evidence)


def check_virtual_cores(facts: Facts) -> Verdict:
    """Whether what appears as a core may be one hardware thread of the host."""
    sign = evidence_of(facts.kernel.virtual_sign)
    if facts.kernel.virtual is None:
        return unknown("It is unknown whether this is a virtual machine.", *sign)
    if not facts.kernel.virtual:
        return fine("This is not a virtual machine, so its cores are physical cores.", *sign)
    if facts.siblings:
        return fine("The hypervisor reports which cpus share a core.", *sign)
    fix = (
        "# request one hardware thread per core, for example:",
        "#   EC2:  aws ec2 run-instances --cpu-options CoreCount=N,ThreadsPerCore=1",
        "#   GCE:  gcloud compute instances create --threads-per-core=1",
        "#   QEMU: -smp N,cores=C,threads=2, with each guest core pinned to the siblings of a host core",
    )
    shown = Evidence(SIBLINGS, f"{count(len(facts.machine.cores), 'core')}, each with one cpu")
    return unknown(
        "The hypervisor does not report whether cpus of this virtual machine share a core.",
        *sign,
        shown,
        fix=fix,
    )


def check_offline_cpus(facts: Facts) -> Verdict:
    """Offline cpus, except those that are offline because SMT is off."""
    machine = facts.machine
    offline = tuple(sorted(set(machine.present) - set(machine.online)))
    evidence = (
        Evidence(f"{CPU}/present", format_cpu_list(machine.present)),
        Evidence(f"{CPU}/online", format_cpu_list(machine.online)),
    )
    if not offline:
        return fine("All cpus are online.", *evidence)
    if facts.kernel.smt.value in ("off", "forceoff"):
        return fine(f"SMT is off, and with it {cpus_text(offline)}.", *evidence, *evidence_of(facts.kernel.smt))
    if machine.arch.startswith("ppc64"):
        title = f"The kernel does not report whether offline {cpus_text(offline)} are cores or only threads of cores."
        return unknown(title, *evidence, fix=("ppc64_cpu --smt  # prints the number of online threads per core",))
    return problem(
        f"{len(offline)} of {count(len(machine.present), 'cpu')} are offline: {format_cpu_list(offline)}.",
        *evidence,
        fix=tuple(f"echo 1 > {CPU}/cpu{cpu}/online" for cpu in offline[:4])
        + ((f"# and likewise for the rest of {format_cpu_list(offline)}",) if len(offline) > 4 else ()),
        root=True,
    )


def check_isolated_cpus(facts: Facts) -> Verdict:
    """Isolated cpus, on which the kernel schedules only pinned programs, and which the plan therefore does not use."""
    isolated = facts.machine.isolated
    evidence = evidence_of(facts.kernel.isolated, facts.kernel.command_line)
    if not isolated and facts.kernel.isolated.value is None:
        return unknown("The kernel does not report whether cpus are isolated.", *evidence)
    if not isolated:
        return fine("No cpus are isolated.", *evidence_of(facts.kernel.isolated))
    fix = ("# kernel command line: remove isolcpus=…, or remove these cpus from it; then restart",)
    share = f"{len(isolated)} of {count(len(facts.machine.online), 'cpu')}"
    title = f"{share} are isolated, and the plan does not use them: {format_cpu_list(isolated)}."
    return advice(title, *evidence, fix=fix, root=True)


def check_allowed_cpus(facts: Facts) -> Verdict:
    """Online cpus that this process may not use, because of its cpuset or affinity mask."""
    machine = facts.machine
    affinity = machine.limits.affinity
    lost = set(machine.online) - set(machine.allowed) - set(machine.isolated)
    evidence = (
        Evidence("cpuset.cpus of the control group", _cpus_or(facts.cpuset, "no limit found")),
        Evidence("/proc/self/status Cpus_allowed_list", _cpus_or(affinity, "not found")),
        Evidence(f"{CPU}/online", format_cpu_list(machine.online)),
    )
    if affinity is None and facts.cpuset is None:
        return unknown("It is unknown which online cpus this process may use.", *evidence)
    if not lost:
        return fine("This process may use all online cpus.", *evidence)
    allowed = f"{len(machine.allowed)} of {count(len(machine.online), 'online cpu')}"
    within = set(machine.online) if facts.cpuset is None else set(facts.cpuset) & set(machine.online)
    fix: tuple[str, ...] = ()
    if within - set(machine.allowed):
        fix += (f"taskset -c {format_cpu_list(within)} launch",)
    if facts.cpuset is not None and set(machine.online) - set(facts.cpuset):
        fix += (f"docker update --cpuset-cpus {format_cpu_list(machine.online)} CONTAINER  # on the host",)
    title = f"This process may use {allowed}: {format_cpu_list(machine.allowed)}."
    return advice(title, *evidence, fix=fix, root=any("docker" in line for line in fix))


def _cpus_or(cpus: tuple[int, ...] | None, otherwise: str) -> str:
    return otherwise if cpus is None else format_cpu_list(cpus) or "none"
