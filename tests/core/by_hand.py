"""Hand-made machines for tests of the planner: as regular or as irregular as a test needs, without files."""

from __future__ import annotations

from collections.abc import Sequence

from hypothesis import strategies as st

from launcher.core.machine.topology import Core, Limits, Machine, Node

GIB = 1 << 30
NODE_BYTES = 64 * GIB


def machine(
    nodes: Sequence[Sequence[int]] = ((24,), (24,)),
    *,
    threads: int = 2,
    slow: Sequence[int] = (),
    memory: Sequence[int] | None = None,
    has_nodes: bool = True,
    limits: Limits | None = None,
    memory_only: Sequence[int] = (),
) -> Machine:
    """A machine whose nodes have L3 groups of these sizes, in cores; each node is a package.

    The second threads of all cores are numbered after the first ones. ``slow`` holds the indices of efficiency cores,
    which have one thread. ``memory`` is in bytes by node, the same for all by default; ``memory_only`` adds nodes
    without cores, each with that many bytes.
    """
    total = sum(map(sum, nodes))
    cores: list[Core] = []
    for node, groups in enumerate(nodes):
        for group in groups:
            l3 = len({core.l3 for core in cores})
            for _ in range(group):
                index = len(cores)
                cpus = (index,) if index in slow else tuple(index + thread * total for thread in range(threads))
                kind = "efficiency" if index in slow else "performance"
                cores.append(Core(index, cpus, node, node if has_nodes else None, l3, kind))
    amounts = [*(memory or [NODE_BYTES] * len(nodes)), *memory_only]
    cpus = tuple(sorted(cpu for core in cores for cpu in core.cpus))
    return Machine(
        arch="x86_64",
        vendor="GenuineIntel",
        model="A processor made by hand",
        isa=("avx512f", "amx_bf16"),
        present=cpus,
        online=cpus,
        allowed=cpus,
        isolated=(),
        cores=tuple(cores),
        nodes=tuple(_node(index, cores, amounts) for index in range(len(amounts))) if has_nodes else (),
        limits=limits or Limits(),
    )


def _node(index: int, cores: Sequence[Core], amounts: Sequence[int]) -> Node:
    cpus = tuple(sorted(cpu for core in cores if core.node == index for cpu in core.cpus))
    distances = tuple((other, 10 if other == index else 20 + abs(other - index)) for other in range(len(amounts)))
    return Node(index, cpus, amounts[index], distances, amounts[index])


L3_GROUPS = st.lists(st.integers(1, 9), min_size=1, max_size=4)


@st.composite
def machines(draw: st.DrawFn) -> Machine:
    """Machines of one to five nodes of any size, with or without SMT, slow cores, nodes without memory, and limits."""
    nodes = draw(st.lists(L3_GROUPS, min_size=1, max_size=5))
    total = sum(map(sum, nodes))
    memory = draw(st.lists(st.sampled_from([0, NODE_BYTES]), min_size=len(nodes), max_size=len(nodes)))
    if not any(memory):
        memory[draw(st.integers(0, len(nodes) - 1))] = NODE_BYTES
    usable = [node for node, amount in enumerate(memory) if amount]
    allowed = draw(st.none() | st.lists(st.sampled_from(usable), min_size=1, unique=True).map(tuple))
    quota = draw(st.none() | st.floats(0.1, total + 1.0))
    return machine(
        nodes,
        threads=draw(st.sampled_from([1, 2, 4])),
        slow=draw(st.lists(st.integers(0, total - 1), max_size=total, unique=True)),
        memory=memory,
        has_nodes=draw(st.booleans()),
        limits=Limits(cpu_quota=quota, memory_nodes=allowed),
        memory_only=draw(st.lists(st.just(NODE_BYTES), max_size=1)),
    )
