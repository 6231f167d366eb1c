"""Checks of the limits of this process: CPU quota, throttling, open files, priority."""

from __future__ import annotations

from launcher.core.diagnosis.facts import Facts
from launcher.core.diagnosis.finding import Evidence, Verdict, advice, count, fine, only_live, problem, unknown

QUOTA = "cpu.max, cpu.cfs_quota_us"
OFTEN = 0.01  # share of periods
FEW_FILES = 4096
ENOUGH_FILES = 65536


def check_cpu_quota(facts: Facts) -> Verdict:
    """Whether a CPU quota is smaller than the number of cores; the plan stays within it, so some cores stay idle."""
    cores = len(facts.machine.cores)
    if facts.quotas is None:
        return unknown("It is unknown whether there is a CPU quota.", Evidence(QUOTA, "no control group is visible"))
    limits = [(quota.cpus, quota) for quota in facts.quotas if quota.cpus is not None]
    if not limits:
        files = tuple(Evidence(quota.source, quota.value) for quota in facts.quotas)
        return fine("This process has no CPU quota.", *(files or (Evidence(QUOTA, "not found; this is a root group"),)))
    cpus, tightest = min(limits, key=lambda pair: pair[0])
    evidence = (
        *(Evidence(quota.source, f"{quota.value} ({limit:g} cpus)") for limit, quota in limits),
        Evidence("usable cores", str(cores)),
    )
    if cpus >= cores:
        return fine(f"The CPU quota of {cpus:g} cpus covers all {count(cores, 'core')}.", *evidence)
    title = f"The CPU quota of {cpus:g} cpus leaves {int(cpus)} of {count(cores, 'core')} for the plan."
    if cpus < 1:
        title = f"The CPU quota of {cpus:g} cpus throttles even a single busy core."
    lift = "max" if tightest.source.endswith("cpu.max") else "-1"
    fix = (
        f"echo {lift} > {tightest.source}  # if this file is writable, or:",
        f"docker update --cpus {cores} CONTAINER  # on the host",
    )
    return problem(title, *evidence, fix=fix, root=True)


def check_throttling(facts: Facts) -> Verdict:
    """Whether a quota has throttled the control groups of this process."""
    found = facts.throttled
    source = "cpu.stat of the control groups"
    if found is None:
        return unknown("It is unknown whether a quota has throttled this process.", Evidence(source, "no nr_throttled"))
    evidence = Evidence(source, f"nr_throttled {found.throttled} of nr_periods {found.periods}, {found.seconds:.1f} s")
    fix = ("launch topology  # shows the plan within the quota, which other programs of the control group also use",)
    if found.during_sample:
        now = Evidence(f"{source}, during the check", count(found.during_sample, "more time", "more times"))
        return problem("The CPU quota is throttling this control group at the moment.", evidence, now, fix=fix)
    if found.throttled > OFTEN * found.periods:
        title = (
            f"The CPU quota has throttled this control group in {found.throttled / found.periods:.0%} of its periods."
        )
        return advice(title, evidence, fix=fix)
    return fine("No quota has throttled this process noticeably.", evidence)


def check_open_files(facts: Facts) -> Verdict:
    """Whether the hard limit on open files allows many connections; the server raises its soft limit to it."""
    if facts.live is None:
        return only_live("The limit on open files")
    soft, hard = facts.live.software.open_files
    evidence = Evidence("ulimit -n, ulimit -Hn", f"{_files(soft)}, {_files(hard)}")
    if hard < 0 or hard >= FEW_FILES:
        return fine(f"The limit on open files is {_files(hard)}.", evidence)
    title = f"The limit on open files is {hard}, and each connection uses one."
    return advice(title, evidence, fix=(f"prlimit --nofile={ENOUGH_FILES} --pid $$",), root=True)


def _files(limit: int) -> str:
    return "unlimited" if limit < 0 else str(limit)


def check_priority(facts: Facts) -> Verdict:
    """Whether programs started from this shell have a low priority."""
    if facts.live is None:
        return only_live("The priority of programs started from this shell")
    software = facts.live.software
    evidence = Evidence("nice, sched_getscheduler", f"{software.nice}, {software.scheduling}")
    if software.scheduling in ("SCHED_IDLE", "SCHED_BATCH"):
        fix = ("chrt --other --pid 0 $$",)
        return problem(f"Programs started from this shell run as {software.scheduling}.", evidence, fix=fix, root=True)
    if software.nice > 0:
        title = f"Programs started from this shell have a low priority: nice {software.nice}."
        return problem(title, evidence, fix=("renice -n 0 -p $$",), root=True)
    return fine("Programs started from this shell have normal or higher priority.", evidence)
