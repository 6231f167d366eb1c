"""Checks of what bounds this process: CPU quota, throttling, open files, priority."""

from __future__ import annotations

from launcher.core.diagnosis.facts import Facts
from launcher.core.diagnosis.finding import Evidence, Verdict, advice, count, fine, only_live, problem, unknown

QUOTA = "cpu.max, cpu.cfs_quota_us"
OFTEN = 0.01  # share of periods
FEW_FILES = 4096
ENOUGH_FILES = 65536


def check_cpu_quota(facts: Facts) -> Verdict:
    """Whether a CPU quota allows fewer cpus than there are cores; the plan heeds it, the other cores stay idle."""
    cores = len(facts.machine.cores)
    if facts.quotas is None:
        return unknown("Whether there is a CPU quota is not stated.", Evidence(QUOTA, "no control group is visible"))
    limits = [(quota.cpus, quota) for quota in facts.quotas if quota.cpus is not None]
    if not limits:
        files = tuple(Evidence(quota.source, quota.value) for quota in facts.quotas)
        return fine("No CPU quota is set on this process.", *(files or (Evidence(QUOTA, "none in a root group"),)))
    cpus, tightest = min(limits, key=lambda pair: pair[0])
    evidence = (
        *(Evidence(quota.source, f"{quota.value} ({limit:g} cpus)") for limit, quota in limits),
        Evidence("usable cores", str(cores)),
    )
    if cpus >= cores:
        return fine(f"The CPU quota of {cpus:g} cpus covers all {count(cores, 'core')}.", *evidence)
    title = f"The CPU quota of {cpus:g} cpus leaves {int(cpus)} of {count(cores, 'core')} for the plan."
    if cpus < 1:
        title = f"The CPU quota of {cpus:g} cpus stops even a single busy core."
    lift = "max" if tightest.source.endswith("cpu.max") else "-1"
    fix = (
        f"echo {lift} > {tightest.source}  # where this may be written, or:",
        f"docker update --cpus {cores} CONTAINER  # on the host",
    )
    return problem(title, *evidence, fix=fix, root=True)


def check_throttling(facts: Facts) -> Verdict:
    """Whether a quota has stopped this process's control groups."""
    found = facts.throttled
    source = "cpu.stat of the control groups"
    if found is None:
        return unknown("Whether a quota has stopped this process is not stated.", Evidence(source, "no nr_throttled"))
    evidence = Evidence(source, f"nr_throttled {found.stopped} of nr_periods {found.periods}, {found.seconds:.1f} s")
    fix = ("launch topology  # plans within the quota; other programs of the control group use it too",)
    if found.now:
        now = Evidence("the same while looking", count(found.now, "more time", "more times"))
        return problem("The CPU quota is stopping programs of this control group now.", evidence, now, fix=fix)
    if found.stopped > OFTEN * found.periods:
        title = f"The CPU quota has stopped this control group in {found.stopped / found.periods:.0%} of its periods."
        return advice(title, evidence, fix=fix)
    return fine("No quota has stopped this process to speak of.", evidence)


def check_open_files(facts: Facts) -> Verdict:
    """Whether the front can hold many connections; each is an open file. It raises its soft limit to the hard one."""
    if facts.live is None:
        return only_live("The limit of open files")
    soft, hard = facts.live.software.open_files
    evidence = Evidence("ulimit -n, ulimit -Hn", f"{_files(soft)}, {_files(hard)}")
    if hard < 0 or hard >= FEW_FILES:
        return fine(f"The front may have {_files(hard)} open files.", evidence)
    title = f"Only {hard} open files can be allowed, and each connection is one."
    return advice(title, evidence, fix=(f"prlimit --nofile={ENOUGH_FILES} --pid $$",), root=True)


def _files(limit: int) -> str:
    return "unlimited" if limit < 0 else str(limit)


def check_priority(facts: Facts) -> Verdict:
    """Whether what is started from here yields to other programs."""
    if facts.live is None:
        return only_live("The priority of programs started from a shell")
    software = facts.live.software
    evidence = Evidence("nice, sched_getscheduler", f"{software.nice}, {software.scheduling}")
    if software.scheduling in ("SCHED_IDLE", "SCHED_BATCH"):
        fix = ("chrt --other --pid 0 $$",)
        return problem(f"Programs started here run as {software.scheduling}.", evidence, fix=fix, root=True)
    if software.nice > 0:
        title = f"Programs started here yield to others: nice {software.nice}."
        return problem(title, evidence, fix=("renice -n 0 -p $$",), root=True)
    return fine("Programs started here have at least the usual priority.", evidence)
