"""Checks of memory: nodes, huge pages, automatic balancing, swap, and room."""

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
from launcher.core.planning.memory import gib

NODE = "/sys/devices/system/node"
THP = "/sys/kernel/mm/transparent_hugepage"
UNEQUAL = 0.75  # reserved memory and holes make nodes that are filled alike differ by some percent
FULL, NEARLY_FULL = 0.04, 0.10
MOST_NODES_SHOWN = 8


def check_nodes(facts: Facts) -> Verdict:
    """Whether the kernel tells which memory is near, and whether the plan stays near it."""
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
        who = f"Instance {spanning[0]}" if len(spanning) == 1 else f"Each of instances {format_cpu_list(spanning)}"
        fix = (f"launch --instances {len(nodes)}",)
        return advice(f"{who} of the default plan spans several nodes.", *evidence, fix=fix)
    if not nodes:
        return fine("The machine has no NUMA nodes.", *evidence)
    if packages and len(nodes) > len(packages):
        smallest = min(Counter(core.node for core in machine.cores if core.node is not None).values())
        title = f"{count(len(packages), 'package')} split into {len(nodes)} nodes (sub-NUMA clusters)"
        return fine(f"{title}; instances of up to {count(smallest, 'core')} fit into any of them.", *evidence)
    return fine(f"{count(len(nodes), 'node')}, and no instance of the default plan spans several.", *evidence)


def _hidden_nodes(facts: Facts, evidence: tuple[Evidence, ...], packages: int, nodes: int) -> Verdict:
    where = "no nodes" if not nodes else count(nodes, "node")
    title = f"{packages} packages are shown as {where}, so memory cannot be kept near its cores."
    line = facts.kernel.command_line
    if line.value is not None and "numa=off" in line.value.split():
        fix = ("# kernel command line: remove numa=off; then restart",)
        return problem(title, *evidence, *evidence_of(line), fix=fix, root=True)
    if facts.kernel.virtual:
        return advice(title, *evidence, fix=("# at the host: give the guest its nodes (QEMU: -numa; libvirt: <numa>)",))
    fix = ("# firmware: node interleaving off (AMD: NPS1 or more), where the processor has nodes at all",)
    return advice(title, *evidence, fix=fix)


def check_node_memory(facts: Facts) -> Verdict:
    """Whether every node with cores has memory, may use it, and has about as much as the others."""
    machine = facts.machine
    cores = Counter(core.node for core in machine.cores if core.node is not None)
    nodes = [node for node in machine.nodes if cores[node.id]]
    if not nodes:
        return fine("The machine has no NUMA nodes.", Evidence(NODE, "no node with usable cores"))
    evidence = tuple(_total(node) for node in nodes[:MOST_NODES_SHOWN])
    empty = [node.id for node in nodes if node.memory_bytes == 0]
    if empty:
        title = f"There are usable cores, but no memory, in {nodes_text(empty)}."
        return problem(title, *evidence, fix=("# hardware: fill the memory slots next to every processor",))
    allowed = machine.limits.memory_nodes
    barred = [] if allowed is None else [node.id for node in nodes if node.id not in allowed]
    if barred:
        title = f"Cores of {nodes_text(barred)} may be used, but not its memory."
        shown = Evidence("/proc/self/status Mems_allowed_list, cpuset.mems", format_cpu_list(allowed or ()) or "none")
        fix = (f"docker update --cpuset-mems {format_cpu_list(cores)} CONTAINER  # on the host",)
        return problem(title, shown, *evidence, fix=fix)
    if any(node.memory_bytes is None for node in nodes):
        return unknown("How much memory each node has is not stated.", *evidence)
    return _check_equal_memory({node.id: (node.memory_bytes or 0, cores[node.id]) for node in nodes}, evidence)


def _total(node: Node) -> Evidence:
    found = "not stated" if node.memory_bytes is None else gib(node.memory_bytes)
    return Evidence("node*/meminfo, /proc/meminfo", f"node {node.id} has {found}")


def _check_equal_memory(filled: dict[int, tuple[int, int]], evidence: tuple[Evidence, ...]) -> Verdict:
    """``filled`` has bytes and usable cores of each node.

    Poor is who has less both in all and per core: nodes may have unequal cores, or some that cannot be used.
    """
    most = max(total for total, _ in filled.values())
    richest = max(total / cores for total, cores in filled.values())
    poor = [
        node for node, (total, cores) in filled.items() if total < UNEQUAL * most and total / cores < UNEQUAL * richest
    ]
    if poor:
        least = min(filled[node][0] for node in poor)
        title = f"There is less memory in {nodes_text(poor)} than in others: {gib(least)} against {gib(most)}."
        return advice(title, *evidence, fix=("# hardware: fill the memory slots of all processors alike",))
    least = min(total for total, _ in filled.values())
    return fine(f"Every node with cores has memory, {gib(least)} or more.", *evidence)


def check_memory_pressure(facts: Facts) -> Verdict:
    """Whether memory is nearly full: the machine's, or that of the control group."""
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
        return unknown("How much memory is free is not stated.", Evidence("/proc/meminfo", "no MemAvailable"))
    room, of = min(rooms, key=lambda pair: pair[0] / pair[1])
    fix = ("ps -eo pid,rss,args --sort=-rss | head  # who has it",)
    if room < FULL * of:
        return problem(f"Memory is full: {gib(room)} of {gib(of)} are left.", *evidence, fix=fix)
    if room < NEARLY_FULL * of:
        return advice(f"Memory is nearly full: {gib(room)} of {gib(of)} are left.", *evidence, fix=fix)
    least, whole = min(rooms)
    return fine(f"{gib(least)} of {gib(whole)} of memory can be had.", *evidence)


def check_huge_pages(facts: Facts) -> Verdict:
    """Whether programs can get huge pages, and whether they stall for them."""
    memory = facts.memory
    enabled, compaction = selected(memory.huge_pages.value), selected(memory.compaction.value)
    evidence = evidence_of(memory.huge_pages, memory.compaction)
    if enabled is None:
        return unknown("Whether huge pages are given is not stated by this kernel.", *evidence)
    if enabled == "never":
        fix = (f"echo madvise > {THP}/enabled",)
        return advice("Transparent huge pages are switched off.", *evidence, fix=fix, root=True)
    if compaction == "always":
        fix = (f"echo defer+madvise > {THP}/defrag",)
        title = "A program that allocates memory may stall while the kernel makes huge pages for it."
        return advice(title, *evidence, fix=fix, root=True)
    to = "to every program" if enabled == "always" else "to programs that ask for them"
    return fine(f"Huge pages are given {to}.", *evidence)


def selected(text: str | None) -> str | None:
    """The word in brackets of a file such as ``always [madvise] never``; None when there is none."""
    words = [word[1:-1] for word in (text or "").split() if word.startswith("[") and word.endswith("]")]
    return words[0] if words else None


def check_numa_balancing(facts: Facts) -> Verdict:
    """Whether the kernel unmaps pages to find out who uses them, in programs whose memory is not bound."""
    value = facts.memory.balancing.value
    evidence = evidence_of(facts.memory.balancing)
    if len([node for node in facts.machine.nodes if node.memory_bytes != 0]) < 2:
        return fine("There is one node at most, so there is nothing to balance.", *evidence)
    if value is None:
        return unknown("Whether the kernel moves memory between nodes is not stated.", *evidence)
    if value == "0":
        return fine("The kernel does not move memory between nodes by itself.", *evidence)
    levels = {binding.level for binding in facts.live.bindings} if facts.live else set()
    if levels and levels <= {"bind", "preferred"}:
        title = "The kernel moves memory between nodes, but not that of instances, which is bound."
        return fine(title, *evidence, Evidence("bindings tried", ", ".join(sorted(levels))))
    fix = ("sysctl -w kernel.numa_balancing=0",)
    return advice("The kernel moves memory between nodes by itself.", *evidence, fix=fix, root=True)


def check_swap(facts: Facts) -> Verdict:
    """Whether memory is swapped out, and whether pages go to and fro right now."""
    memory = facts.memory
    total, used = memory.swap_bytes, memory.swap_used
    if total is None or used is None:
        return unknown(
            "Whether there is swap is not stated.", Evidence("/proc/meminfo SwapTotal, SwapFree", "not there")
        )
    evidence: tuple[Evidence, ...] = (
        Evidence("/proc/meminfo SwapTotal, SwapFree", f"{gib(used)} of {gib(total)} in use"),
    )
    if not total:
        return fine("There is no swap.", *evidence)
    evidence += evidence_of(memory.swappiness)
    fix: tuple[str, ...] = ("sysctl -w vm.swappiness=1",)
    if facts.machine.free_bytes is not None and used < facts.machine.free_bytes // 2:
        fix += ("swapoff -a && swapon -a  # brings what is swapped out back into memory",)
    swapped = facts.live.sample.swapped if facts.live else None
    if swapped and facts.live:
        shown = Evidence("/proc/vmstat pswpin + pswpout", f"{swapped} pages in {facts.live.sample.seconds:.1f} s")
        return problem("Memory is being swapped right now.", shown, *evidence, fix=fix, root=True)
    if used:
        return advice(f"{gib(used)} of memory are swapped out.", *evidence, fix=fix, root=True)
    return fine("There is swap, and nothing in it.", *evidence)
