"""Reads the machine: cpus, caches, nodes and limits, as the kernel reports them in `/sys` and `/proc`.

Reading only: what the values mean is decided in ``core.machine.assemble``. Every file is read once, under a given root;
with a root other than ``/``, no fact of the machine this runs on is used. Formats:
``Documentation/admin-guide/cputopology.rst``, ``Documentation/ABI/{stable,testing}/sysfs-devices-*``.
"""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

from launcher.core.machine.assemble import KindHints, RawCpu, RawMachine, build_machine
from launcher.core.machine.cpuset import format_cpu_list
from launcher.core.machine.topology import Limits, Machine, Node
from launcher.errors import MachineError, UsageError
from launcher.host.machine import lscpu
from launcher.host.machine.cgroup import read_bounds
from launcher.host.machine.file_tree import Tree, decimal
from launcher.host.machine.processor import meminfo, read_memory, read_processor
from launcher.options.choices import IsolatedPolicy
from launcher.pinning import allowed_cpus

CPU = "sys/devices/system/cpu"
NODE = "sys/devices/system/node"
# A hybrid machine has a PMU device for each kind of core; older kernels list them only on the bus.
PMU_FOLDERS = ("sys/devices", "sys/bus/event_source/devices")
MEMORY_TOLERANCE = 0.1
EFFICIENCY_PMUS = ("cpu_atom", "cpu_lowpower")


def read_machine(sysroot: Path = Path("/"), *, isolated: IsolatedPolicy = "auto") -> Machine:
    """The machine under ``sysroot``.

    Raises ``UsageError`` when there is none, ``MachineError`` when none of its cpus is usable, or when this machine
    does not run Linux.
    """
    tree = Tree(sysroot)
    if tree.live and sys.platform != "linux":
        raise MachineError(
            f"launch reads and binds cores through the Linux kernel, and this is {sys.platform}; "
            "`launch topology --machine NAME` plans for a Linux machine from here"
        )
    if not tree.exists(CPU) and not tree.live:
        raise UsageError(
            f"{sysroot} is not the root of a machine: it has no directory {CPU}. It must be a directory with a copy of "
            "/sys and /proc, or / for this machine"
        )
    with lscpu.LscpuProcess(tree) as second_opinion:
        raw = _read(tree)
        rows = second_opinion.rows()
    lscpu.compare(rows, raw, lambda cpu: tree.number(f"{CPU}/cpu{cpu}/topology/core_id"), tree.anomalies)
    return build_machine(raw, tree.anomalies, isolated=isolated)


def _read(tree: Tree) -> RawMachine:
    processor = read_processor(tree)
    memory_bytes, free_bytes = read_memory(tree)
    bounds = read_bounds(tree)
    present, online = _present_and_online(tree, bounds.limits.affinity)
    nodes = _with_all_memory(tree, _nodes(tree), memory_bytes, free_bytes)
    return RawMachine(
        arch=processor.arch,
        vendor=processor.vendor,
        model=processor.model,
        isa=processor.isa,
        present=present,
        online=online,
        isolated=tree.cpu_list(f"{CPU}/isolated") or (),
        cpus={cpu: _cpu(tree, cpu) for cpu in online},
        nodes=nodes,
        kinds=_kinds(tree, online),
        cpuset=bounds.cpuset,
        limits=_with_memory_only(bounds.limits, nodes),
        memory_bytes=memory_bytes,
        free_bytes=free_bytes,
        microarchitecture=processor.microarchitecture,
    )


def _present_and_online(tree: Tree, mask: tuple[int, ...] | None) -> tuple[tuple[int, ...], tuple[int, ...]]:
    folders = tuple(tree.numbered(CPU, "cpu"))
    online = tree.cpu_list(f"{CPU}/online")
    if not online:
        online = tuple(cpu for cpu in folders if tree.text(f"{CPU}/cpu{cpu}/online") != "0")
    if not online and tree.live:
        # Some sandboxes have no /sys at all.
        online = allowed_cpus()
        tree.anomalies.add(
            "cpus known only from the affinity mask, because /sys has no data; each is treated as a core: {}",
            f"cpus {format_cpu_list(online)}",
        )
    online = _with_masked(tree, online, mask or ())
    present = tree.cpu_list(f"{CPU}/present") or folders
    return tuple(sorted({*present, *online})), online


def _with_masked(tree: Tree, online: tuple[int, ...], mask: tuple[int, ...]) -> tuple[int, ...]:
    """The online cpus; where the affinity mask contradicts ``cpu/online``, which lxcfs makes up, the mask wins.

    The live mask (``sched_getaffinity``) has online cpus only. A recorded one may also have cpus that are offline or do
    not exist, so only those count that have a folder of an online cpu. Then every such folder counts.
    """
    missing = set(mask) - set(online)
    if not tree.live:
        missing = {cpu for cpu in missing if _looks_online(tree, cpu)}
    if not missing:
        return online
    tree.anomalies.add(
        "cpus that the affinity mask has and cpu/online lacks (lxcfs renumbers that file), so the mask is used: {}",
        f"cpus {format_cpu_list(missing)}",
    )
    others = {cpu for cpu in tree.numbered(CPU, "cpu") if _looks_online(tree, cpu)}
    return tuple(sorted({*online, *missing, *others}))


def _looks_online(tree: Tree, cpu: int) -> bool:
    """Whether the folder of a cpu is that of an online one: the kernel removes ``topology`` when a cpu goes offline."""
    folder = f"{CPU}/cpu{cpu}"
    return tree.exists(f"{folder}/topology") and tree.text(f"{folder}/online") != "0"


def _cpu(tree: Tree, cpu: int) -> RawCpu:
    folder = f"{CPU}/cpu{cpu}/topology"
    siblings = tree.cpus(f"{folder}/core_cpus", f"{folder}/core_cpus_list")
    if siblings is None:
        siblings = tree.cpus(f"{folder}/thread_siblings", f"{folder}/thread_siblings_list")  # Linux before 5.3
    package = tree.number(f"{folder}/physical_package_id")
    return RawCpu(siblings, None if package is None or package < 0 else package, _l3(tree, cpu))


def _l3(tree: Tree, cpu: int) -> tuple[int, ...] | None:
    """The cpus that share the L3 cache of this one, including itself."""
    folder = f"{CPU}/cpu{cpu}/cache"
    for index in reversed(tree.numbered(folder, "index")):
        if tree.number(f"{folder}/index{index}/level") == 3:
            place = f"{folder}/index{index}"
            if tree.text(f"{place}/type") == "Instruction":
                continue
            shared = tree.cpus(f"{place}/shared_cpu_map", f"{place}/shared_cpu_list")
            return shared if shared and cpu in shared else tuple(sorted({cpu, *(shared or ())}))
    return None


def _nodes(tree: Tree) -> tuple[Node, ...]:
    ids = tree.numbered(NODE, "node")
    online = tree.cpu_list(f"{NODE}/online") or tuple(ids)
    return tuple(_node(tree, node, online if len(online) >= len(ids) else tuple(ids)) for node in ids)


def _node(tree: Tree, node: int, order: tuple[int, ...]) -> Node:
    folder = f"{NODE}/node{node}"
    cpus = tree.cpus(f"{folder}/cpumap", f"{folder}/cpulist")
    if cpus is None:
        cpus = tuple(tree.numbered(folder, "cpu"))
    memory = meminfo(tree.text(f"{folder}/meminfo") or "")
    free = [memory[name] for name in ("MemFree", "Active(file)", "Inactive(file)", "SReclaimable") if name in memory]
    return Node(
        id=node,
        cpus=cpus,
        memory_bytes=memory.get("MemTotal"),
        distances=_distances(tree, folder, order),
        free_bytes=sum(free) if "MemFree" in memory else None,
    )


def _distances(tree: Tree, folder: str, order: tuple[int, ...]) -> tuple[tuple[int, int], ...]:
    """Distance to each online node; the file has one number per node, in the order of their ids."""
    text = tree.text(f"{folder}/distance")
    if not text:
        return ()
    found = [value for word in text.split() if (value := decimal(word)) is not None]
    if len(found) != len(order) or len(text.split()) != len(order):
        tree.anomalies.add(
            f"distances that do not have one number for each of {len(order)} nodes, which are ignored: {{}}",
            f"{folder}/distance: {text[:40]!r}",
        )
        return ()
    return tuple(zip(order, found, strict=True))


def _with_all_memory(
    tree: Tree, nodes: tuple[Node, ...], memory_bytes: int | None, free_bytes: int | None
) -> tuple[Node, ...]:
    """The nodes; if only one has memory and `/proc/meminfo` reports more, that node gets the amount of the machine.

    This happens in guests after memory was added or a balloon deflated: the kernel counts the memory for the machine,
    but not for the node.
    """
    known = sum(node.memory_bytes or 0 for node in nodes)
    if not memory_bytes or not known or abs(known - memory_bytes) <= MEMORY_TOLERANCE * memory_bytes:
        return nodes
    only = [node for node in nodes if node.memory_bytes]
    used = "node*/meminfo" if len(only) > 1 or known > memory_bytes else "/proc/meminfo"
    tree.anomalies.add(
        f"different amounts of memory in node*/meminfo and /proc/meminfo: {{}}; the plan uses {used}",
        f"{known / 2**30:.1f} GiB and {memory_bytes / 2**30:.1f} GiB",
    )
    if used == "node*/meminfo":
        return nodes
    return tuple(
        replace(node, memory_bytes=memory_bytes, free_bytes=free_bytes) if node in only else node for node in nodes
    )


def _with_memory_only(limits: Limits, nodes: tuple[Node, ...]) -> Limits:
    """Allowed nodes may include nodes that do not exist; only nodes with memory can be bound to."""
    if limits.memory_nodes is None or not nodes:
        return replace(limits, memory_nodes=None)
    with_memory = {node.id for node in nodes if node.memory_bytes != 0}
    return replace(limits, memory_nodes=tuple(sorted(with_memory & set(limits.memory_nodes))))


def _kinds(tree: Tree, online: tuple[int, ...]) -> KindHints:
    for folder in PMU_FOLDERS:
        slow = [tree.cpu_list(f"{folder}/{name}/cpus") for name in EFFICIENCY_PMUS]
        if any(found is not None for found in slow):
            return KindHints(efficiency_cpus=tuple(sorted({cpu for found in slow for cpu in found or ()})))
    capacity = _each(tree, online, "cpu_capacity")
    if capacity:
        return KindHints(capacity=capacity)
    return KindHints(max_khz=_clock(tree, online, "cpuinfo_max_freq"), base_khz=_clock(tree, online, "base_frequency"))


def _each(tree: Tree, online: tuple[int, ...], name: str) -> dict[int, int]:
    """A number for each cpu; empty if any cpu has none, because kinds are found by comparing all cpus."""
    found: dict[int, int] = {}
    for cpu in online:
        value = tree.number(f"{CPU}/cpu{cpu}/{name}")
        if value is None:
            return {}
        found[cpu] = value
    return found


def _clock(tree: Tree, online: tuple[int, ...], name: str) -> dict[int, int]:
    """A frequency in kHz for each cpu, from the policies if cpus share them."""
    found: dict[int, int] = {}
    for policy in tree.numbered(f"{CPU}/cpufreq", "policy"):
        folder = f"{CPU}/cpufreq/policy{policy}"
        value = tree.number(f"{folder}/{name}")
        if value is not None:
            text = tree.text(f"{folder}/related_cpus") or str(policy)
            found.update((cpu, value) for word in text.split() if (cpu := decimal(word)) is not None)
    return found or _each(tree, online, f"cpufreq/{name}")
