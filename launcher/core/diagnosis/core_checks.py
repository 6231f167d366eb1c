"""Checks of the cores: hardware threads, cpus that are off, kept away or not allowed, and the clock they run at."""

from __future__ import annotations

from launcher.core.diagnosis.facts import Facts, PerCpu
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
# These drivers leave the clock to the processor; their governor `powersave` is no fixed low clock, and how eager the
# processor is stands in the energy preference (kernel: admin-guide/pm/intel_pstate.rst, amd-pstate.rst).
OWN_CLOCK_DRIVERS = ("intel_pstate", "amd-pstate-epp", "amd_pstate_epp")
EAGER = ("performance", "0")
HALF_EAGER = ("balance_performance", "default", "128")
# A limit that is meant differs by more than rounding from the highest clock.
CLOCK_TOLERANCE = 0.98


def check_smt(facts: Facts) -> Verdict:
    """Whether cores have several hardware threads; the plan uses one of each, so either is fine."""
    control = evidence_of(facts.kernel.smt)
    if facts.siblings is None:
        return unknown("Which cpus share a core is not stated.", *control, Evidence(SIBLINGS, "not there"))
    evidence = (*control, Evidence(SIBLINGS, cpus_text(facts.siblings) if facts.siblings else "no siblings"))
    if not facts.siblings:
        return fine("Every planned core has one hardware thread that is online.", *evidence)
    foreign = sorted(set(facts.siblings) - set(facts.machine.allowed))
    if foreign:
        title = f"The second hardware threads of planned cores, {cpus_text(foreign)}, belong to others."
        fix = (
            f"# give both threads of each core to this cpuset: add {format_cpu_list(foreign)}",
            "# or on the host: echo off > /sys/devices/system/cpu/smt/control",
        )
        return advice(title, *evidence, Evidence("allowed cpus", format_cpu_list(facts.machine.allowed)), fix=fix)
    return fine("SMT is on, and the plan uses one hardware thread of each core.", *evidence)


def check_virtual_cores(facts: Facts) -> Verdict:
    """Whether cpus that seem to be cores may be hardware threads of a host."""
    sign = evidence_of(facts.kernel.virtual_sign)
    if facts.kernel.virtual is None:
        return unknown("Whether this is a virtual machine could not be told.", *sign)
    if not facts.kernel.virtual:
        return fine("The kernel runs on the hardware itself, so its cores are real.", *sign)
    if facts.siblings:
        return fine("The virtual machine is told which of its cpus share a core.", *sign)
    fix = (
        "# ask for one hardware thread per core, such as",
        "#   EC2:  aws ec2 run-instances --cpu-options CoreCount=N,ThreadsPerCore=1",
        "#   GCE:  gcloud compute instances create --threads-per-core=1",
        "#   QEMU: -smp N,cores=C,threads=2 with the host's siblings behind one core",
    )
    shown = Evidence(SIBLINGS, f"{count(len(facts.machine.cores), 'core')}, each with one cpu")
    return unknown(
        "Whether two cpus of this virtual machine share a core of its host is not shown to it.",
        *sign,
        shown,
        fix=fix,
    )


def check_offline_cpus(facts: Facts) -> Verdict:
    """Cpus that are switched off, other than by switching SMT off."""
    machine = facts.machine
    offline = tuple(sorted(set(machine.present) - set(machine.online)))
    evidence = (
        Evidence(f"{CPU}/present", format_cpu_list(machine.present)),
        Evidence(f"{CPU}/online", format_cpu_list(machine.online)),
    )
    if not offline:
        return fine("All cpus are online.", *evidence)
    if facts.kernel.smt.value in ("off", "forceoff"):
        return fine(
            f"SMT is switched off, and with it {cpus_text(offline)}.", *evidence, *evidence_of(facts.kernel.smt)
        )
    if machine.arch.startswith("ppc64"):
        title = f"Whether {cpus_text(offline)}, which are off, are cores or only threads of cores is not shown."
        return unknown(title, *evidence, fix=("ppc64_cpu --smt  # says how many threads of each core are on",))
    return problem(
        f"{len(offline)} of {count(len(machine.present), 'cpu')} are switched off: {format_cpu_list(offline)}.",
        *evidence,
        fix=tuple(f"echo 1 > {CPU}/cpu{cpu}/online" for cpu in offline[:4])
        + ((f"# and in the same way the others of {format_cpu_list(offline)}",) if len(offline) > 4 else ()),
        root=True,
    )


def check_isolated_cpus(facts: Facts) -> Verdict:
    """Cpus that the kernel keeps free of ordinary programs, and the plan therefore of instances."""
    isolated = facts.machine.isolated
    evidence = evidence_of(facts.kernel.isolated, facts.kernel.command_line)
    if not isolated and facts.kernel.isolated.value is None:
        return unknown("Whether cpus are isolated is not stated.", *evidence)
    if not isolated:
        return fine("No cpus are isolated.", *evidence_of(facts.kernel.isolated))
    fix = ("# kernel command line: remove isolcpus=…, or leave these cpus out of it; then restart",)
    share = f"{len(isolated)} of {count(len(facts.machine.online), 'cpu')}"
    title = f"{share} are isolated and unused by the plan: {format_cpu_list(isolated)}."
    return advice(title, *evidence, fix=fix, root=True)


def check_allowed_cpus(facts: Facts) -> Verdict:
    """Online cpus that this process may not use: outside the cpuset, or the affinity mask."""
    machine = facts.machine
    affinity = machine.limits.affinity
    lost = set(machine.online) - set(machine.allowed) - set(machine.isolated)
    evidence = (
        Evidence("cpuset.cpus of the control group", _cpus_or(facts.cpuset, "no limit stated")),
        Evidence("/proc/self/status Cpus_allowed_list", _cpus_or(affinity, "not there")),
        Evidence(f"{CPU}/online", format_cpu_list(machine.online)),
    )
    if affinity is None and facts.cpuset is None:
        return unknown("Which of the online cpus may be used is not stated.", *evidence)
    if not lost:
        return fine("All online cpus may be used.", *evidence)
    allowed = f"{len(machine.allowed)} of {count(len(machine.online), 'online cpu')}"
    within = set(machine.online) if facts.cpuset is None else set(facts.cpuset) & set(machine.online)
    fix: tuple[str, ...] = ()
    if within - set(machine.allowed):
        fix += (f"taskset -c {format_cpu_list(within)} launch",)
    if facts.cpuset is not None and set(machine.online) - set(facts.cpuset):
        fix += (f"docker update --cpuset-cpus {format_cpu_list(machine.online)} CONTAINER  # on the host",)
    title = f"{allowed} may be used: {format_cpu_list(machine.allowed)}."
    return advice(title, *evidence, fix=fix, root=any("docker" in line for line in fix))


def _cpus_or(cpus: tuple[int, ...] | None, otherwise: str) -> str:
    return otherwise if cpus is None else format_cpu_list(cpus) or "none"


def check_governor(facts: Facts) -> Verdict:
    """How the kernel chooses the clock."""
    clocks = facts.clocks
    evidence = evidence_of(clocks.governor, clocks.driver)
    if not clocks.governor.values:
        return unknown("What chooses the clock is not shown to this kernel (host or firmware).", *evidence)
    by_name = dict(clocks.governor.values)
    if clocks.driver.value in OWN_CLOCK_DRIVERS:
        return fine(f"The processor chooses its clock itself ({clocks.driver.value}).", *evidence)
    slow = {name: cpus for name, cpus in by_name.items() if name != "performance"}
    if not slow:
        return fine("The governor is performance.", *evidence)
    named = ", ".join(f"{name} on {cpus_text(cpus)}" for name, cpus in slow.items())
    fix = _set_all("scaling_governor", "performance")
    if clocks.governors.value is not None and "performance" not in clocks.governors.value.split():
        evidence = (*evidence, *evidence_of(clocks.governors))
        fix = ("modprobe cpufreq_performance", *fix)
    if "powersave" in slow:
        return problem(f"The governor holds the lowest clock: {named}.", *evidence, fix=fix, root=True)
    return advice(f"The governor lets the clock follow the load: {named}.", *evidence, fix=fix, root=True)


def _set_all(name: str, value: str) -> tuple[str, ...]:
    return (f"echo {value} | tee {CPU}/cpu*/cpufreq/{name}",)


def check_energy_preference(facts: Facts) -> Verdict:
    """How much the processor, where it chooses its clock itself, prefers speed over energy."""
    clocks = facts.clocks
    evidence = evidence_of(clocks.preference, clocks.driver)
    if not clocks.preference.values:
        if clocks.driver.value is None:
            return unknown("Whether the processor prefers speed over energy is not shown to this kernel.", *evidence)
        return fine(f"The driver {clocks.driver.value} has no preference between speed and energy.", *evidence)
    lazy = {name: cpus for name, cpus in clocks.preference.values if name not in EAGER}
    if not lazy:
        return fine("The processor prefers speed over energy.", *evidence)
    named = ", ".join(f"{name} on {cpus_text(cpus)}" for name, cpus in lazy.items())
    title = f"The processor does not prefer speed over energy: {named}."
    fix = _set_all("energy_performance_preference", "performance")
    if set(lazy) <= set(HALF_EAGER):
        return advice(title, *evidence, fix=fix, root=True)
    return problem(title, *evidence, fix=fix, root=True)


def check_boost(facts: Facts) -> Verdict:
    """Whether clocks above the nominal one are switched off."""
    clocks = facts.clocks
    evidence = evidence_of(clocks.boost, clocks.no_turbo)
    if clocks.no_turbo.value == "1":
        fix = (f"echo 0 > {CPU}/intel_pstate/no_turbo",)
        return problem("Turbo clocks are switched off.", *evidence, fix=fix, root=True)
    if clocks.boost.value == "0":
        fix = (f"echo 1 > {CPU}/cpufreq/boost",)
        return problem("Boost clocks are switched off.", *evidence, fix=fix, root=True)
    if clocks.no_turbo.value is None and clocks.boost.value is None:
        return unknown("Whether clocks above the nominal one are allowed is not shown to this kernel.", *evidence)
    return fine("Clocks above the nominal one are allowed.", *evidence)


def check_clock_limit(facts: Facts) -> Verdict:
    """Whether the clock is limited below what the cpu can do."""
    clocks = facts.clocks
    limits, highest = _khz(clocks.limit), _khz(clocks.highest)
    evidence = evidence_of(clocks.limit, clocks.highest)
    known = limits.keys() & highest.keys()
    if not known:
        return unknown("Whether the clock is limited is not shown to this kernel.", *evidence)
    capped = sorted(cpu for cpu in known if limits[cpu] < CLOCK_TOLERANCE * highest[cpu])
    if not capped:
        return fine("The clock is not limited below the highest.", *evidence)
    worst = min(capped, key=lambda cpu: limits[cpu] / highest[cpu])
    title = (
        f"The clock of {cpus_text(capped)} is limited to {limits[worst] / 1e6:.1f} GHz, {highest[worst] / 1e6:.1f} "
        "GHz is possible."
    )
    script = (
        'for d in /sys/devices/system/cpu/cpu*/cpufreq; do cat "$d/cpuinfo_max_freq" > "$d/scaling_max_freq"; done',
    )
    return problem(title, *evidence, fix=script, root=True)


def _khz(reading: PerCpu) -> dict[int, int]:
    return {cpu: int(value) for value, cpus in reading.values if value.isdecimal() for cpu in cpus if int(value)}


def check_thermal_throttling(facts: Facts) -> Verdict:
    """Whether cores have slowed down because they were too hot, since the machine started."""
    heat = facts.clocks.heat
    evidence = evidence_of(heat)
    counts = {value: cpus for value, cpus in heat.values if value.isdecimal()}
    if not counts:
        return unknown("Whether heat has slowed cores down is not shown to this kernel.", *evidence)
    hot = [cpu for value, cpus in counts.items() if int(value) for cpu in cpus]
    if not hot:
        return fine("No core has slowed down because of heat since the machine started.", *evidence)
    most = max(int(value) for value in counts)
    title = f"Heat has slowed down {cpus_text(sorted(hot))}, up to {count(most, 'time')} since the machine started."
    shown = Evidence(heat.source, f"up to {most}")
    return advice(title, shown, fix=("# cooling: fans, air flow, power limits in the firmware",))
