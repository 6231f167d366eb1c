"""Checks of interference with the planned cores: other programs, other launchers, the hypervisor."""

from __future__ import annotations

from collections.abc import Sequence

from launcher.core.diagnosis.facts import Cpus, Facts, Program, Sample
from launcher.core.diagnosis.finding import (
    Evidence,
    Verdict,
    advice,
    count,
    cpus_text,
    fine,
    only_live,
    problem,
    unknown,
)
from launcher.core.machine.cpuset import format_cpu_list

BUSY = 0.2  # of a cpu; less is normal background activity
RAN = 0.05  # cpus; a program that uses less is idle
SOME_STEAL, MUCH_STEAL = 0.01, 0.05
MOST_NAMED = 4


def check_busy_cpus(facts: Facts) -> Verdict:
    """Whether other programs use the planned cpus at the moment."""
    if facts.live is None:
        return only_live("The load of the planned cpus")
    return _check_use(facts, facts.live.sample, facts.planned, "planned cpus")


def check_busy_siblings(facts: Facts) -> Verdict:
    """Whether other programs use the sibling threads of the planned cpus at the moment."""
    source = "cpu*/topology/core_cpus_list"
    if facts.siblings is None:
        return unknown("The kernel does not report which cpus share a core.", Evidence(source, "not found"))
    if not facts.siblings:
        title = "The planned cores have no second hardware thread that is online."
        return fine(title, Evidence(source, "no online siblings"))
    if facts.live is None:
        return only_live("The load of the siblings of the planned cpus")
    return _check_use(facts, facts.live.sample, facts.siblings, "siblings of planned cpus")


def _check_use(facts: Facts, sample: Sample, cpus: Cpus, what: str) -> Verdict:
    use = {cpu: share for cpu, share in sample.busy if cpu in cpus}
    taken = sorted(cpu for cpu, share in use.items() if share >= BUSY)
    most = max(use.values(), default=0.0)
    seen = Evidence(f"/proc/stat for {sample.seconds:.1f} s", f"{what} at most {most:.0%} busy")
    if not taken:
        return fine(f"No other program uses {what} noticeably.", seen)
    shares = ", ".join(f"cpu {cpu} {use[cpu]:.0%}" for cpu in taken[:8]) + (", …" if len(taken) > 8 else "")
    programs = [one for one in sample.programs if one.share >= RAN and set(one.cpus) & set(taken)]
    evidence = (Evidence(seen.source, shares), *_program_evidence(programs))
    if not programs:
        evidence += (Evidence("/proc/PID/stat", "no program visible; it may be in another container, or the kernel"),)
    which = f"{len(taken)} of the {len(cpus)} {what}" if len(cpus) > 1 else cpus_text(taken)
    title = f"Other programs use {which}."
    return problem(title, *evidence, fix=_remedies(facts, programs, taken), root=any(one.foreign for one in programs))


def _program_evidence(programs: Sequence[Program]) -> tuple[Evidence, ...]:
    ranked = sorted(programs, key=lambda one: (-one.share, one.pid))
    named = tuple(
        Evidence(f"/proc/{one.pid}", f"{one.name}: {one.share:.0%} of a cpu, affinity {format_cpu_list(one.cpus)}")
        for one in ranked[:MOST_NAMED]
    )
    more = len(ranked) - MOST_NAMED
    return (*named, Evidence("/proc", f"and {more} more")) if more > 0 else named


def _remedies(facts: Facts, programs: Sequence[Program], taken: Sequence[int]) -> tuple[str, ...]:
    """Move the programs to cpus that are neither planned nor siblings; else lower their priority, or plan without."""
    wanted = {*facts.planned, *(facts.siblings or ()), *facts.machine.isolated}
    free = sorted(set(facts.machine.online) - wanted)
    pids = [one.pid for one in sorted(programs, key=lambda one: (-one.share, one.pid))[:MOST_NAMED]]
    if pids and free:
        return tuple(f"taskset -a -p -c {format_cpu_list(free)} {pid}" for pid in pids)
    lower_priority: tuple[str, ...] = ()
    # Priority matters only on the same cpu, and no instance runs on the sibling.
    if set(taken) & set(facts.planned):
        # `renice -p PID` changes the priority of a single thread.
        lower_priority = tuple(f"renice -n 19 -p $(ls /proc/{pid}/task)" for pid in pids)
    return (*lower_priority, *_plan_without(facts, taken))


def _plan_without(facts: Facts, taken: Sequence[int]) -> tuple[str, ...]:
    """A command that plans without the cores of these cpus; disallowed siblings are in no core of the machine."""
    rest = [cpu for core in facts.machine.cores if not set(taken) & set(core.cpus) for cpu in core.cpus]
    known = set(taken) <= {cpu for core in facts.machine.cores for cpu in core.cpus}
    if not rest or not known:
        return ("# or stop these programs",)
    return ("# or stop these programs, or plan without their cores:", f"taskset -c {format_cpu_list(rest)} launch")


def check_pinned_programs(facts: Facts) -> Verdict:
    """Whether other programs than launchers are pinned to planned cpus."""
    if facts.live is None:
        return only_live("Pinning of other programs")
    planned = set(facts.planned)
    online = set(facts.machine.online)
    fronts = {one.front for one in facts.live.sample.programs}
    others = [one for one in facts.live.sample.programs if one.front is None and one.pid not in fronts]
    pinned = [one for one in others if online - set(one.cpus) and planned & set(one.cpus)]
    looked = Evidence("/proc/PID, sched_getaffinity", f"{count(len(pinned), 'program')} pinned to planned cpus")
    if not pinned:
        return fine("No other program is pinned to planned cpus.", looked)
    held = sorted(planned & {cpu for one in pinned for cpu in one.cpus})
    on = cpus_text(held)
    root = any(one.foreign for one in pinned)
    fix = _remedies(facts, pinned, held)
    who = "Another program is" if len(pinned) == 1 else f"{len(pinned)} other programs are"
    if any(one.share >= RAN for one in pinned):
        return problem(
            f"{who} pinned to planned {on}, and running.", looked, *_program_evidence(pinned), fix=fix, root=root
        )
    return advice(f"{who} pinned to planned {on}, but idle.", looked, *_program_evidence(pinned), fix=fix, root=root)


def check_other_launchers(facts: Facts) -> Verdict:
    """Whether another launcher has instances on planned cpus."""
    if facts.live is None:
        return only_live("The presence of other launchers")
    workers = [one for one in facts.live.sample.programs if one.front is not None]
    looked = Evidence("/proc/PID/cmdline", f"{count(len(workers), 'worker')} of other launchers")
    if not workers:
        return fine("No other launcher is running.", looked)
    fronts = sorted({one.front for one in workers if one.front is not None})
    used = {cpu for one in workers for cpu in one.cpus}
    named = tuple(Evidence(f"/proc/{front}", f"instances on {cpus_text(_cpus_of(workers, front))}") for front in fronts)
    shared = sorted(used & set(facts.planned))
    if not shared:
        return fine("Another launcher is running, on other cpus.", looked, *named)
    title = f"Another launcher has instances on planned {cpus_text(shared)}."
    rest = sorted(cpu for core in facts.machine.cores for cpu in core.cpus if not used & set(core.cpus))
    fix: tuple[str, ...] = (f"kill -TERM {' '.join(map(str, fronts))}  # stops it, or:",) if fronts else ()
    fix += (
        (f"taskset -c {format_cpu_list(rest)} launch",) if rest else ("# or do not run two launchers at the same time",)
    )
    return problem(title, looked, *named, fix=fix, root=any(one.foreign for one in workers))


def _cpus_of(workers: Sequence[Program], front: int) -> list[int]:
    return sorted({cpu for one in workers if one.front == front for cpu in one.cpus})


def check_cpu_steal(facts: Facts) -> Verdict:
    """Whether the hypervisor takes cpu time from the planned cpus (steal)."""
    if facts.live is None:
        return only_live("CPU steal")
    sample = facts.live.sample
    steal = {cpu: share for cpu, share in sample.steal if cpu in facts.planned}
    mean = sum(steal.values()) / len(steal) if steal else 0.0
    evidence = Evidence(f"/proc/stat steal for {sample.seconds:.1f} s", f"{mean:.1%} of the time of the planned cpus")
    if mean < SOME_STEAL:
        return fine("No cpu time is stolen by a hypervisor.", evidence)
    title = f"The hypervisor steals {mean:.0%} of the time of the planned cpus."
    fix = ("# on the host, or at the provider: use dedicated or pinned cpus instead of shared ones",)
    return problem(title, evidence, fix=fix) if mean >= MUCH_STEAL else advice(title, evidence, fix=fix)
