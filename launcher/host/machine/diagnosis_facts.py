"""Reads the facts of the diagnosis: kernel settings under any root, and a sample of this machine.

The facts are evaluated in ``core.diagnosis``. Nothing is changed; the only processes started are the probes of bindings
and allocators. Formats: ``Documentation/admin-guide/pm/cpufreq.rst``, ``admin-guide/mm/transhuge.rst``,
``admin-guide/sysctl/``, ``admin-guide/hw-vuln/``.
"""

from __future__ import annotations

import os
import resource
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from launcher.core.diagnosis.facts import (
    Clocks,
    Cpus,
    Facts,
    Kernel,
    Live,
    Memory,
    MemoryLimit,
    PerCpu,
    Quota,
    Reading,
    Software,
    Throttled,
)
from launcher.core.diagnosis.software_checks import ENVIRONMENT
from launcher.core.planning.plan import PlanRequest, make_plan
from launcher.core.planning.preload import Library
from launcher.host.machine.activity_sample import take_sample
from launcher.host.machine.cgroup import read_bounds, read_memory_use, read_quota_files, read_throttling
from launcher.host.machine.file_tree import Tree, decimal
from launcher.host.machine.processor import meminfo
from launcher.host.machine.sysfs import CPU, read_machine
from launcher.host.process.preload import find_libraries
from launcher.host.process.probe_binding import choose_bindings
from launcher.host.torch_build import read_gpu_packages, read_torch_build
from launcher.options import DoctorOptions

HYPERVISORS = ("QEMU", "KVM", "VMware", "Xen", "innotek", "Microsoft", "Amazon EC2", "Google", "Alibaba", "OpenStack")
ALLOCATORS: tuple[Library, ...] = ("tcmalloc", "jemalloc")
SCHEDULING = {0: "SCHED_OTHER", 1: "SCHED_FIFO", 2: "SCHED_RR", 3: "SCHED_BATCH", 5: "SCHED_IDLE"}  # sched(7)


def read_facts(options: DoctorOptions) -> Facts:
    """The facts of the machine to examine; of this machine, including a sample of its activity.

    Raises what ``read_machine`` raises.
    """
    sysroot = options.machine.sysroot
    machine = read_machine(sysroot)
    tree = Tree(sysroot)
    plan = make_plan(machine, PlanRequest())
    facts = Facts(
        machine,
        plan,
        cpuset=read_bounds(tree).cpuset,
        quotas=_quotas(tree),
        clocks=_clocks(tree, machine.allowed),
        memory=_memory(tree),
        kernel=_kernel(tree),
    )
    facts = replace(facts, siblings=_siblings(tree, facts.planned, machine.online))
    throttled = _throttled(sysroot, None)
    if not tree.live:
        return replace(facts, throttled=throttled)
    # Sample before the probes, which would appear in the sample.
    sample = take_sample(tree, machine.online, options.sample_seconds)
    throttled = _throttled(sysroot, throttled)
    bindings = choose_bindings(plan, strict=False, probe_seconds=options.machine.probe_seconds)
    return replace(facts, throttled=throttled, live=Live(sample, _software(tree), bindings))


def _siblings(tree: Tree, planned: Cpus, online: Cpus) -> Cpus | None:
    """The other online threads of the planned cores, allowed or not; None if siblings are unknown."""
    found: set[int] = set()
    for cpu in planned:
        folder = f"{CPU}/cpu{cpu}/topology"
        shared = tree.cpus(f"{folder}/core_cpus", f"{folder}/core_cpus_list")
        if shared is None:
            shared = tree.cpus(f"{folder}/thread_siblings", f"{folder}/thread_siblings_list")
        found.update(shared or ())
    return tuple(sorted(found & set(online) - set(planned))) if found else None


def _quotas(tree: Tree) -> tuple[Quota, ...] | None:
    found = read_quota_files(tree)
    return None if found is None else tuple(Quota(quota.file, quota.text, quota.cpus) for quota in found)


def _throttled(sysroot: Path, before: Throttled | None) -> Throttled | None:
    found = read_throttling(sysroot)
    if found is None:
        return None
    during_sample = None if before is None else found.throttled - before.throttled
    return Throttled(found.periods, found.throttled, found.seconds, during_sample)


def _reading(tree: Tree, path: str) -> Reading:
    return Reading(f"/{path}", tree.text(path))


def _filled(tree: Tree, reading: Reading) -> Reading:
    """The reading with the content of its file."""
    return replace(reading, value=tree.text(reading.source.lstrip("/")))


def _clocks(tree: Tree, cpus: Cpus) -> Clocks:
    clocks = Clocks()
    driver, governors = (_first(_per_cpu(tree, one.source, cpus)) for one in (clocks.driver, clocks.governors))
    return Clocks(
        driver=replace(clocks.driver, value=driver),
        governors=replace(clocks.governors, value=governors),
        boost=_filled(tree, clocks.boost),
        no_turbo=_filled(tree, clocks.no_turbo),
        governor=_per_cpu(tree, clocks.governor.source, cpus),
        preference=_per_cpu(tree, clocks.preference.source, cpus),
        limit=_per_cpu(tree, clocks.limit.source, cpus),
        highest=_per_cpu(tree, clocks.highest.source, cpus),
        throttle_count=_per_cpu(tree, clocks.throttle_count.source, cpus),
    )


def _first(reading: PerCpu) -> str | None:
    return reading.values[0][0] if reading.values else None


def _per_cpu(tree: Tree, source: str, cpus: Cpus) -> PerCpu:
    """The file of each cpu, or of its cpufreq policy if cpus have none."""
    head, _, tail = source.lstrip("/").partition("/cpu*/")
    texts = {cpu: tree.text(f"{head}/cpu{cpu}/{tail}") for cpu in cpus}
    if not any(texts.values()) and tail.startswith("cpufreq/"):
        texts = dict(_by_policy(tree, tail.removeprefix("cpufreq/"), cpus))
    by_value: dict[str, list[int]] = {}
    for cpu, text in sorted(texts.items()):
        if text:
            by_value.setdefault(text, []).append(cpu)
    return PerCpu(source, tuple((value, tuple(members)) for value, members in by_value.items()))


def _by_policy(tree: Tree, name: str, cpus: Cpus) -> Iterator[tuple[int, str | None]]:
    wanted = set(cpus)
    for policy in tree.numbered(f"{CPU}/cpufreq", "policy"):
        folder = f"{CPU}/cpufreq/policy{policy}"
        text = tree.text(f"{folder}/{name}")
        for word in (tree.text(f"{folder}/related_cpus") or str(policy)).split():
            if (cpu := decimal(word)) in wanted and cpu is not None:
                yield cpu, text


def _memory(tree: Tree) -> Memory:
    memory = Memory()
    amounts = meminfo(tree.text("proc/meminfo") or "")
    total, free = amounts.get("SwapTotal"), amounts.get("SwapFree")
    use = read_memory_use(tree)
    return Memory(
        huge_pages=_filled(tree, memory.huge_pages),
        compaction=_filled(tree, memory.compaction),
        balancing=_filled(tree, memory.balancing),
        swappiness=_filled(tree, memory.swappiness),
        swap_bytes=total,
        swap_used=None if total is None or free is None else total - free,
        limit=None if use is None else MemoryLimit(use.folder, use.limit, use.used),
    )


def _kernel(tree: Tree) -> Kernel:
    kernel = Kernel()
    fields = _processor_fields(tree)
    flags = fields.get("flags") or fields.get("Features") or fields.get("features")
    virtual, sign = _virtual(tree, fields)
    folder = "sys/devices/system/cpu/vulnerabilities"
    return Kernel(
        release=_release(tree, kernel.release),
        command_line=_filled(tree, kernel.command_line),
        isolated=_filled(tree, kernel.isolated),
        smt=_filled(tree, kernel.smt),
        clock_source=_filled(tree, kernel.clock_source),
        clock_sources=_filled(tree, kernel.clock_sources),
        vulnerabilities=tuple(_reading(tree, f"{folder}/{name}") for name in sorted(tree.names(folder))),
        virtual=virtual,
        virtual_sign=sign,
        flags_known=bool(flags),
        family=decimal(fields.get("cpu family")),
        model=decimal(fields.get("model")),
    )


def _release(tree: Tree, reading: Reading) -> Reading:
    found = _filled(tree, reading)
    if found.value is not None:
        return found
    words = (tree.text("proc/version") or "").split()  # "Linux version 6.1.0 (…"
    return Reading("/proc/version", words[2]) if len(words) > 2 else found


def _processor_fields(tree: Tree) -> dict[str, str]:
    """The fields of the first processor in the file."""
    first, _, _ = (tree.text("proc/cpuinfo") or "").partition("\n\n")
    pairs = (line.partition(":") for line in first.splitlines())
    return {key.strip(): value.strip() for key, _, value in pairs}


def _virtual(tree: Tree, fields: dict[str, str]) -> tuple[bool | None, Reading]:
    """Whether this kernel runs under a hypervisor, and the evidence."""
    flags = fields.get("flags")
    if flags:
        shown = "hypervisor" in flags.split()
        return shown, Reading("/proc/cpuinfo flags", f"{'' if shown else 'no '}hypervisor")
    hypervisor = _reading(tree, "sys/hypervisor/type")
    if hypervisor.value is not None:
        return True, hypervisor
    vendor, product = (_reading(tree, f"sys/class/dmi/id/{name}") for name in ("sys_vendor", "product_name"))
    if (product.value or "").endswith(".metal"):
        return False, product
    if any((vendor.value or "").startswith(name) for name in HYPERVISORS):
        return True, vendor
    return None, Reading(Kernel().virtual_sign.source, vendor.value)


def _software(tree: Tree) -> Software:
    return Software(
        numactl=shutil.which("numactl"),
        allocators=find_libraries(ALLOCATORS, os.environ).searches,
        torch=read_torch_build(),
        gpu_packages=read_gpu_packages(),
        environment=tuple((name, os.environ[name]) for name in ENVIRONMENT if name in os.environ),
        distribution=_distribution(tree),
        open_files=resource.getrlimit(resource.RLIMIT_NOFILE),
        nice=os.getpriority(os.PRIO_PROCESS, 0),
        scheduling=SCHEDULING.get(os.sched_getscheduler(0), "SCHED_OTHER"),
    )


def _distribution(tree: Tree) -> tuple[str, ...]:
    """The ids of `/etc/os-release` (os-release(5)): ID, then ID_LIKE."""
    pairs = (line.partition("=") for line in (tree.text("etc/os-release") or "").splitlines())
    fields = {key: value.strip("\"'") for key, _, value in pairs}
    return tuple(f"{fields.get('ID', '')} {fields.get('ID_LIKE', '')}".split())
