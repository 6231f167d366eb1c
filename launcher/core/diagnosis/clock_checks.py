"""Checks of the clock: governor, energy preference, boost, clock limits, thermal throttling."""

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

CPU = "/sys/devices/system/cpu"
# With these drivers the processor selects its clock; their governor `powersave` does not mean a low clock, and the
# energy preference controls the clock (kernel: admin-guide/pm/intel_pstate.rst, amd-pstate.rst).
AUTONOMOUS_DRIVERS = ("intel_pstate", "amd-pstate-epp", "amd_pstate_epp")
FASTEST = ("performance", "0")
BALANCED = ("balance_performance", "default", "128")
# Smaller differences from the maximum clock are rounding.
CLOCK_TOLERANCE = 0.98


def check_governor(facts: Facts) -> Verdict:
    """The cpufreq governor, which selects the clock."""
    clocks = facts.clocks
    evidence = evidence_of(clocks.governor, clocks.driver)
    if not clocks.governor.values:
        return unknown("The kernel does not control the clock; the host or the firmware does.", *evidence)
    by_name = dict(clocks.governor.values)
    if clocks.driver.value in AUTONOMOUS_DRIVERS:
        return fine(f"The processor selects its clock itself ({clocks.driver.value}).", *evidence)
    slow = {name: cpus for name, cpus in by_name.items() if name != "performance"}
    if not slow:
        return fine("The governor is performance.", *evidence)
    named = ", ".join(f"{name} on {cpus_text(cpus)}" for name, cpus in slow.items())
    fix = _set_all("scaling_governor", "performance")
    if clocks.governors.value is not None and "performance" not in clocks.governors.value.split():
        evidence = (*evidence, *evidence_of(clocks.governors))
        fix = ("modprobe cpufreq_performance", *fix)
    if "powersave" in slow:
        return problem(f"The governor keeps the clock at its minimum: {named}.", *evidence, fix=fix, root=True)
    return advice(f"The governor makes the clock follow the load: {named}.", *evidence, fix=fix, root=True)


def _set_all(name: str, value: str) -> tuple[str, ...]:
    return (f"echo {value} | tee {CPU}/cpu*/cpufreq/{name}",)


def check_energy_preference(facts: Facts) -> Verdict:
    """The energy preference of processors that select their clock themselves."""
    clocks = facts.clocks
    evidence = evidence_of(clocks.preference, clocks.driver)
    if not clocks.preference.values:
        if clocks.driver.value is None:
            return unknown("The kernel does not report an energy preference.", *evidence)
        return fine(f"The driver {clocks.driver.value} has no energy preference.", *evidence)
    slower = {name: cpus for name, cpus in clocks.preference.values if name not in FASTEST}
    if not slower:
        return fine("The energy preference is performance.", *evidence)
    named = ", ".join(f"{name} on {cpus_text(cpus)}" for name, cpus in slower.items())
    title = f"The energy preference is not performance: {named}."
    fix = _set_all("energy_performance_preference", "performance")
    if set(slower) <= set(BALANCED):
        return advice(title, *evidence, fix=fix, root=True)
    return problem(title, *evidence, fix=fix, root=True)


def check_boost(facts: Facts) -> Verdict:
    """Whether boost clocks (turbo) are turned off."""
    clocks = facts.clocks
    evidence = evidence_of(clocks.boost, clocks.no_turbo)
    if clocks.no_turbo.value == "1":
        fix = (f"echo 0 > {CPU}/intel_pstate/no_turbo",)
        return problem("Turbo is turned off.", *evidence, fix=fix, root=True)
    if clocks.boost.value == "0":
        fix = (f"echo 1 > {CPU}/cpufreq/boost",)
        return problem("Boost is turned off.", *evidence, fix=fix, root=True)
    if clocks.no_turbo.value is None and clocks.boost.value is None:
        return unknown("The kernel does not report whether boost is on.", *evidence)
    return fine("Boost is on.", *evidence)


def check_clock_limit(facts: Facts) -> Verdict:
    """Whether the clock is limited below the maximum of the processor."""
    clocks = facts.clocks
    limits, highest = _khz(clocks.limit), _khz(clocks.highest)
    evidence = evidence_of(clocks.limit, clocks.highest)
    known = limits.keys() & highest.keys()
    if not known:
        return unknown("The kernel does not report clock limits.", *evidence)
    capped = sorted(cpu for cpu in known if limits[cpu] < CLOCK_TOLERANCE * highest[cpu])
    if not capped:
        return fine("The clock is not limited below the maximum.", *evidence)
    worst = min(capped, key=lambda cpu: limits[cpu] / highest[cpu])
    title = (
        f"The clock of {cpus_text(capped)} is limited to {limits[worst] / 1e6:.1f} GHz; the maximum is "
        f"{highest[worst] / 1e6:.1f} GHz."
    )
    script = (
        'for d in /sys/devices/system/cpu/cpu*/cpufreq; do cat "$d/cpuinfo_max_freq" > "$d/scaling_max_freq"; done',
    )
    return problem(title, *evidence, fix=script, root=True)


def _khz(reading: PerCpu) -> dict[int, int]:
    return {cpu: int(value) for value, cpus in reading.values if value.isdecimal() for cpu in cpus if int(value)}


def check_thermal_throttling(facts: Facts) -> Verdict:
    """Whether cores were throttled because of heat since the machine started."""
    heat = facts.clocks.throttle_count
    evidence = evidence_of(heat)
    counts = {value: cpus for value, cpus in heat.values if value.isdecimal()}
    if not counts:
        return unknown("The kernel does not report thermal throttling.", *evidence)
    hot = [cpu for value, cpus in counts.items() if int(value) for cpu in cpus]
    if not hot:
        return fine("No core was throttled because of heat since the machine started.", *evidence)
    most = max(int(value) for value in counts)
    title = f"Heat has throttled {cpus_text(sorted(hot))}, up to {count(most, 'time')} since the machine started."
    shown = Evidence(heat.source, f"up to {most}")
    return advice(title, shown, fix=("# check cooling (fans, air flow) and power limits in the firmware",))
