"""The shape of a guest: the options of QEMU, and the facts expected in that guest.

Pure: a shape determines the arguments of QEMU and the facts to compare with. Nothing here starts a process or reads
this machine.
"""

from __future__ import annotations

import re
from dataclasses import asdict, dataclass
from itertools import pairwise
from typing import Any

LOCAL_DISTANCE = 10
REMOTE_DISTANCE = 21
DESCRIPTION = re.compile(r"(?P<grid>\d+(x\d+){2,3})(@(?P<nodes>\d+:\d+(\+\d+:\d+)*))?")
GRAMMAR = (
    "SOCKETSx[DIESx]CORESxTHREADS[@CORES:MIB+CORES:MIB…], such as 2x4x2@4:2048+4:2048; nodes get the cores in order; "
    "nodes with 0 cores have only memory and come last, nodes with 0 MiB have only cores"
)


class ShapeError(ValueError):
    """An unknown or invalid shape; the message states what is valid."""


@dataclass(frozen=True, slots=True)
class NodeShape:
    """One NUMA node: its number of cores (the next ones in order), and its memory in MiB."""

    cores: int
    mebibytes: int


@dataclass(frozen=True, slots=True)
class Shape:
    """A machine for QEMU to emulate. ``dies`` and ``cores`` are per socket and per die, ``threads`` per core.

    Without ``nodes`` the firmware describes no NUMA at all and ``mebibytes`` is the memory of the machine.
    ``distances`` is the whole SLIT matrix; empty: 10 within a node and 21 between nodes.
    """

    name: str
    sockets: int
    dies: int
    cores: int
    threads: int
    nodes: tuple[NodeShape, ...] = ()
    distances: tuple[tuple[int, ...], ...] = ()
    mebibytes: int = 3072
    why: str = ""

    @property
    def core_count(self) -> int:
        """Physical cores of the whole machine."""
        return self.sockets * self.dies * self.cores

    @property
    def memory(self) -> int:
        """Memory of the whole machine in MiB."""
        return sum(node.mebibytes for node in self.nodes) or self.mebibytes

    def distance(self, a: int, b: int) -> int:
        """SLIT distance from node ``a`` to node ``b``."""
        if self.distances:
            return self.distances[a][b]
        return LOCAL_DISTANCE if a == b else REMOTE_DISTANCE


NAMED = {
    shape.name: shape
    for shape in (
        Shape(
            "two-sockets",
            *(2, 1, 4, 2),
            nodes=(NodeShape(4, 2048), NodeShape(4, 2048)),
            why="a small dual-socket server; siblings have adjacent numbers, as in most virtual machines",
        ),
        Shape(
            "four-unequal-nodes",
            *(2, 1, 7, 1),
            nodes=(NodeShape(5, 1280), NodeShape(2, 768), NodeShape(4, 1280), NodeShape(3, 1024)),
            distances=((10, 12, 21, 21), (12, 10, 21, 21), (21, 21, 10, 12), (21, 21, 12, 10)),
            why="sub-NUMA clusters of unequal size without SMT, and an L3 group that spans two nodes",
        ),
        Shape(
            "odd-nodes",
            *(2, 1, 2, 2),
            nodes=(NodeShape(2, 2048), NodeShape(2, 0), NodeShape(0, 1024)),
            distances=((10, 21, 17), (21, 10, 14), (17, 14, 10)),
            why="a node with memory and no cpus (as CXL or HBM); it is the nearest memory of a node that has none",
        ),
        Shape(
            "two-dies",
            *(1, 2, 3, 2),
            nodes=(NodeShape(6, 2048),),
            why="two L3 groups of three cores inside one node",
        ),
        Shape("one-cpu", 1, 1, 1, 1, mebibytes=2048, why="one core, no SMT, and firmware that knows no NUMA"),
    )
}


def parse_shape(text: str) -> Shape:
    """The named shape, or the one that ``text`` describes according to ``GRAMMAR``. Raises ``ShapeError``."""
    if text in NAMED:
        return NAMED[text]
    match = DESCRIPTION.fullmatch(text)
    if match is None:
        raise ShapeError(f"unknown shape {text!r}; must be one of {', '.join(NAMED)}, or a description: {GRAMMAR}")
    grid = [int(number) for number in match["grid"].split("x")]
    sockets, dies, cores, threads = grid if len(grid) == 4 else (grid[0], 1, *grid[1:])
    nodes = tuple(NodeShape(*map(int, node.split(":"))) for node in (match["nodes"] or "").split("+") if node)
    shape = Shape(text, sockets, dies, cores, threads, nodes)
    _check(shape)
    return shape


def qemu_arguments(shape: Shape) -> list[str]:
    """QEMU's arguments for this shape: cpus, memory, nodes and their distances."""
    cpus = shape.core_count * shape.threads
    smp = f"{cpus},sockets={shape.sockets},dies={shape.dies},cores={shape.cores},threads={shape.threads}"
    arguments = ["-smp", smp, "-m", f"{shape.memory}M"]
    for node, (cores, told) in enumerate(zip(_node_cores(shape), shape.nodes, strict=True)):
        option = f"node,nodeid={node}"
        if cores:
            option += f",cpus={cores[0] * shape.threads}-{(cores[-1] + 1) * shape.threads - 1}"
        if told.mebibytes:
            arguments += ["-object", f"memory-backend-ram,id=memory{node},size={told.mebibytes}M"]
            option += f",memdev=memory{node}"
        arguments += ["-numa", option]
    for a in range(len(shape.nodes)):
        for b in range(len(shape.nodes)):
            arguments += ["-numa", f"dist,src={a},dst={b},val={shape.distance(a, b)}"]
    return arguments


def asked(shape: Shape) -> dict[str, Any]:
    """The facts expected in the guest: every core with its cpus, package, node and L3 group, every node.

    Ids of L3 groups and cores are names, not facts of the shape: compare which cores share one. A machine without NUMA
    has one node with all cpus, as the kernel shows it.
    """
    owner = {core: node for node, cores in enumerate(_node_cores(shape)) for core in cores}
    cores = [_asked_core(shape, core, owner.get(core, 0)) for core in range(shape.core_count)]
    nodes = [_asked_node(shape, node, cores) for node in range(max(1, len(shape.nodes)))]
    return {"shape": asdict(shape), "cores": cores, "nodes": nodes}


def _asked_core(shape: Shape, core: int, node: int) -> dict[str, Any]:
    cpus = list(range(core * shape.threads, (core + 1) * shape.threads))
    return {"cpus": cpus, "package": core // (shape.dies * shape.cores), "node": node, "l3": core // shape.cores}


def _asked_node(shape: Shape, node: int, cores: list[dict[str, Any]]) -> dict[str, Any]:
    count = max(1, len(shape.nodes))
    return {
        "id": node,
        "cpus": [cpu for core in cores if core["node"] == node for cpu in core["cpus"]],
        "mebibytes": shape.nodes[node].mebibytes if shape.nodes else shape.memory,
        "distances": {str(other): shape.distance(node, other) for other in range(count)},
    }


def _node_cores(shape: Shape) -> list[range]:
    starts = [sum(node.cores for node in shape.nodes[:index]) for index in range(len(shape.nodes))]
    return [range(start, start + node.cores) for start, node in zip(starts, shape.nodes, strict=True)]


def _check(shape: Shape) -> None:
    if not 1 <= shape.core_count * shape.threads <= 64:
        raise ShapeError(
            f"{shape.name}: {shape.core_count * shape.threads} cpus; must be 1 to 64, to be emulated in time"
        )
    held = sum(node.cores for node in shape.nodes)
    if shape.nodes and held != shape.core_count:
        raise ShapeError(
            f"{shape.name}: the nodes have {held} cores, but the sockets have {shape.core_count}; they must be equal"
        )
    if any(a.cores == 0 < b.cores for a, b in pairwise(shape.nodes)):
        # The kernel gives the first ids to nodes with cpus; it would renumber another order.
        raise ShapeError(f"{shape.name}: nodes without cores must come last")
    if not 1024 <= shape.memory <= 6144 or (shape.nodes and shape.nodes[0].mebibytes < 512):
        raise ShapeError(f"{shape.name}: {shape.memory} MiB; must be 1024 to 6144, at least 512 of them in node 0")
