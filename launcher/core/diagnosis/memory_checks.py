"""Checks of memory: NUMA nodes, huge pages, automatic NUMA balancing, swap, and memory pressure."""

from __future__ import annotations

from collections import Counter

from launcher.core.diagnosis.facts import Facts
from launcher.core.diagnosis.finding import (
    Evidence,
    Verdict,
    advice,
    count,
    evidence_of,
    fine,
    nodes_text,
    problem,
    unknown,
)
from launcher.core.machine.cpuset import format_cpu_list
from launcher.core.machine.topology import Node
from launcher.core.planning.memory_check import gib

NODE = "/sys/devices/system/node"
THP = "/sys/kernel/mm/transparent_hugepage"
UNEQUAL = 0.75  # nodes with equal DIMMs still differ by some percent, because of reserved memory
FULL, NEARLY_FULL = 0.04, 0.10
MOST_NODES_SHOWN = 8


def check_nodes(facts: Facts) -> Verdict:
    """Whether the kernel reports the NUMA nodes, and whether every instance of the plan stays within one."""
    machine = facts.machine
    packages = {core.package for core in machine.cores if core.package is not None}
    nodes = {core.node for core in machine.cores if core.node is not None}
    evidence = (
        Evidence(f"{NODE}/node*/cpulist", f"{count(len(nodes), 'node')} with usable cores"),
        Evidence("cpu*/topology/physical_package_id", f"{count(len(packages), 'package')} with usable cores"),
    )
    if len(packages) > max(1, len(nodes)):
        return _hidden_nodes(facts, evidence, len(packages), len(nodes))
    spanning = [instance.id for instance in facts.plan.instances if len(instance.nodes) > 1]
    if spanning:
        who = f"Instance {spanning[0]} spans" if len(spanning) == 1 else f"Instances {format_cpu_list(spanning)} span"
        fix = (f"launch --instances {len(nodes)}",)
        return advice(f"{who} several nodes in the default plan.", *evidence, fix=fix)
    if not nodes:
        return fine("The machine has no NUMA nodes.", *evidence)
    if packages and len(nodes) > len(packages):
        smallest = min(Counter(core.node for core in machine.cores if core.node is not None).values())
        title = f"{count(len(packages), 'package')} with {len(nodes)} nodes (sub-NUMA clustering)"
        return fine(f"{title}; instances of up to {count(smallest, 'core')} fit in any node.", *evidence)
    return fine(f"{count(len(nodes), 'node')}, and no instance of the default plan spans several.", *evidence)


def _hidden_nodes(facts: Facts, evidence: tuple[Evidence, ...], packages: int, nodes: int) -> Verdict:
    where = "no nodes" if not nodes else count(nodes, "node")
    title = (
        f"The kernel reports {where} for {packages} packages, so memory cannot be bound to the package of its cores."
    )
    line = facts.kernel.command_line
    if line.value is not None and "numa=off" in line.value.split():
        fix = ("# kernel command line: remove numa=off; then restart",)
        return problem(title, *evidence, *evidence_of(line), fix=fix, root=True)
    if facts.kernel.virtual:
        return advice(
            title, *evidence, fix=("# on the host: configure NUMA nodes for the guest (QEMU: -numa; libvirt: <numa>)",)
        )
    fix = ("# firmware: turn off node interleaving (AMD: set NPS1 or higher)",)
    return advice(title, *evidence, fix=fix)


def check_node_memory(facts: Facts) -> Verdict:
    """Whether every node with cores has memory that this process may use, and about as much as the others."""
    machine = facts.machine
    cores = Counter(core.node for core in machine.cores if core.node is not None)
    nodes = [node for node in machine.nodes if cores[node.id]]
    if not nodes:
        return fine("The machine has no NUMA nodes.", Evidence(NODE, "no node with usable cores"))
    evidence = tuple(_total(node) for node in nodes[:MOST_NODES_SHOWN])
    empty = [node.id for node in nodes if node.memory_bytes == 0]
    if empty:
        title = f"There are usable cores but no memory in {nodes_text(empty)}."
        return problem(title, *evidence, fix=("# hardware: install memory in the slots of every processor",))
    allowed = machine.limits.memory_nodes
    disallowed = [] if allowed is None else [node.id for node in nodes if node.id not in allowed]
    if disallowed:
        title = f"This process may use the cores of {nodes_text(disallowed)}, but not the memory."
        shown = Evidence("/proc/self/status Mems_allowed_list, cpuset.mems", format_cpu_list(allowed or ()) or "none")
        fix = (f"docker update --cpuset-mems {format_cpu_list(cores)} CONTAINER  # on the host",)
        return problem(title, shown, *evidence, fix=fix)
    if any(node.memory_bytes is None for node in nodes):
        return unknown("The kernel does not report how much memory each node has.", *evidence)
    return _check_equal_memory({node.id: (node.memory_bytes or 0, cores[node.id]) for node in nodes}, evidence)


def _total(node: Node) -> Evidence:
    found = "not reported" if node.memory_bytes is None else gib(node.memory_bytes)
    return Evidence("node*/meminfo, /proc/meminfo", f"node {node.id}: {found}")


def _check_equal_memory(sizes: dict[int, tuple[int, int]], evidence: tuple[Evidence, ...]) -> Verdict:
    """``sizes`` has the bytes and usable cores of each node.

    A node is too small if it has less memory both in total and per core, because usable cores may differ too.
    """
    most = max(total for total, _ in sizes.values())
    richest = max(total / cores for total, cores in sizes.values())
    small = [
        node for node, (total, cores) in sizes.items() if total < UNEQUAL * most and total / cores < UNEQUAL * richest
    ]
    if small:
        least = min(sizes[node][0] for node in small)
        title = f"There is less memory in {nodes_text(small)} than in other nodes: {gib(least)} instead of {gib(most)}."
        return advice(title, *evidence, fix=("# hardware: install the same memory for all processors",))
    least = min(total for total, _ in sizes.values())
    return fine(f"Every node with cores has at least {gib(least)} of memory.", *evidence)


def check_memory_pressure(facts: Facts) -> Verdict:
    """Whether the memory of the machine, or of the control group, is nearly exhausted."""
    machine, limit = facts.machine, facts.memory.limit
    total, free = machine.memory_bytes, machine.free_bytes
    rooms: list[tuple[int, int]] = []
    evidence: tuple[Evidence, ...] = ()
    if total and free is not None:
        rooms.append((free, total))
        evidence += (Evidence("/proc/meminfo", f"MemAvailable {gib(free)} of {gib(total)}"),)
    if limit is not None and limit.limit < (total or limit.limit + 1):
        rooms.append((max(0, limit.limit - limit.used), limit.limit))
        evidence += (Evidence(limit.source, f"limit {gib(limit.limit)}, {gib(limit.used)} in use"),)
    if not rooms:
        return unknown("The kernel does not report the available memory.", Evidence("/proc/meminfo", "no MemAvailable"))
    room, of = min(rooms, key=lambda pair: pair[0] / pair[1])
    fix = ("ps -eo pid,rss,args --sort=-rss | head  # the largest processes",)
    if room < FULL * of:
        return problem(f"Memory is almost exhausted: {gib(room)} of {gib(of)} available.", *evidence, fix=fix)
    if room < NEARLY_FULL * of:
        return advice(f"Little memory is available: {gib(room)} of {gib(of)}.", *evidence, fix=fix)
    least, whole = min(rooms)
    return fine(f"{gib(least)} of {gib(whole)} of memory is available.", *evidence)


def check_huge_pages(facts: Facts) -> Verdict:
    """Whether programs get transparent huge pages, and whether allocations stall for them."""
    memory = facts.memory
    enabled, compaction = selected(memory.huge_pages.value), selected(memory.compaction.value)
    evidence = evidence_of(memory.huge_pages, memory.compaction)
    if enabled is None:
        return unknown("The kernel does not report the setting of transparent huge pages.", *evidence)
    if enabled == "never":
        fix = (f"echo madvise > {THP}/enabled",)
        return advice("Transparent huge pages are turned off.", *evidence, fix=fix, root=True)
    if compaction == "always":
        fix = (f"echo defer+madvise > {THP}/defrag",)
        title = "Memory allocations may stall while the kernel compacts memory into huge pages."
        return advice(title, *evidence, fix=fix, root=True)
    which = "every program" if enabled == "always" else "programs that request them"
    return fine(f"Transparent huge pages are on for {which}.", *evidence)


def selected(text: str | None) -> str | None:
    """The word in brackets of a file such as ``always [madvise] never``; None without one."""
    words = [word[1:-1] for word in (text or "").split() if word.startswith("[") and word.endswith("]")]
    return words[0] if words else None


def check_numa_balancing(facts: Facts) -> Verdict:
    """Whether automatic NUMA balancing is on, and whether it affects instances."""
    value = facts.memory.balancing.value
    evidence = evidence_of(facts.memory.balancing)
    if len([node for node in facts.machine.nodes if node.memory_bytes != 0]) < 2:
        return fine("The machine has at most one node with memory.", *evidence)
    if value is None:
        return unknown("The kernel does not report whether automatic NUMA balancing is on.", *evidence)
    if value == "0":
        return fine("Automatic NUMA balancing is off.", *evidence)
    levels = {binding.level for binding in facts.live.bindings} if facts.live else set()
    if levels and levels <= {"bind", "preferred"}:
        title = "Automatic NUMA balancing is on, but does not affect instances, whose memory is bound."
        return fine(title, *evidence, Evidence("tested bindings", ", ".join(sorted(levels))))
    fix = ("sysctl -w kernel.numa_balancing=0",)
    return advice("Automatic NUMA balancing is on.", *evidence, fix=fix, root=True)


def check_swap(facts: Facts) -> Verdict:
    """Whether memory is swapped out, and whether pages are being swapped at the moment."""
    memory = facts.memory
    total, used = memory.swap_bytes, memory.swap_used
    if total is None or used is None:
        return unknown(
            "It is unknown whether there is swap.", Evidence("/proc/meminfo SwapTotal, SwapFree", "not found")
        )
    evidence: tuple[Evidence, ...] = (
        Evidence("/proc/meminfo SwapTotal, SwapFree", f"{gib(used)} of {gib(total)} in use"),
    )
    if not total:
        return fine("The machine has no swap.", *evidence)
    evidence += evidence_of(memory.swappiness)
    fix: tuple[str, ...] = ("sysctl -w vm.swappiness=1",)
    if facts.machine.free_bytes is not None and used < facts.machine.free_bytes // 2:
        fix += ("swapoff -a && swapon -a  # moves swapped pages back into memory",)
    swapped = facts.live.sample.swapped if facts.live else None
    if swapped and facts.live:
        shown = Evidence("/proc/vmstat pswpin + pswpout", f"{swapped} pages in {facts.live.sample.seconds:.1f} s")
        return problem("Memory is being swapped at the moment.", shown, *evidence, fix=fix, root=True)
    if used:
        return advice(f"{gib(used)} of memory is swapped out.", *evidence, fix=fix, root=True)
    return fine("No memory is swapped out.", *evidence)
