"""Known machines, described by their published facts, so that a plan can be made without having the machine.

Separate from ``topology``, which defines the structure of a machine: this module is data, one entry per machine, each
with its source. ``machine_of`` builds a ``Machine`` from an entry by the same rules as from `/sys`. No file is opened
here. To add a machine, add an entry; facts that differ between machines of one name, such as the memory size, are
marked as typical in ``typical``.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import accumulate, pairwise
from typing import Literal

from launcher.core.machine.assemble import Cpus, KindHints, RawCpu, RawMachine, build_machine
from launcher.core.machine.topology import Limits, Machine, Node

GIB = 1 << 30
LOCAL_DISTANCE = 10  # of a node to itself (ACPI, System Locality Information Table)
NEAREST_NAMES = 3


@dataclass(frozen=True, slots=True)
class Processor:
    """One package. ``nodes`` and ``l3`` have the number of cores in each NUMA node and in each L3 group, in order.

    ``l3`` is empty if the kernel reports no L3 cache. ``efficiency_cores`` are the last of the cores; each has one
    hardware thread, the others ``threads``. ``vendor`` and ``model`` are as in `/proc/cpuinfo`, or, on Arm, the names
    of implementer and part; ``microarchitecture`` is archspec's name.
    """

    vendor: str
    model: str
    microarchitecture: str
    isa: tuple[str, ...]
    nodes: tuple[int, ...]
    l3: tuple[int, ...]
    threads: int = 1
    efficiency_cores: int = 0
    arch: str = "x86_64"

    @property
    def cores(self) -> int:
        """The number of cores of the package."""
        return sum(self.nodes)


@dataclass(frozen=True, slots=True)
class KnownMachine:
    """An entry of the catalogue. ``near`` is the distance between nodes of one package, ``far`` that of others.

    ``distances`` overrides both with the full matrix. ``siblings``: ``split`` numbers the first threads of all cores
    before the second ones (cpu n and n + cores), ``adjacent`` numbers the threads of each core in sequence.
    ``typical`` names the facts that are typical of such a machine rather than fixed.
    """

    name: str
    summary: str
    source: str
    packages: int
    processor: Processor
    node_gib: int
    near: int = 12
    far: int = 21
    distances: tuple[tuple[int, ...], ...] = ()
    siblings: Literal["split", "adjacent"] = "split"
    typical: str = ""


# -- instruction sets, in the order of host.machine.processor ------------------------------------------------------

AVX2 = ("avx2", "avx", "fma", "f16c", "sse4_2")
AVX2_VNNI = ("avx2", "avx_vnni", "avx", "fma", "f16c", "sse4_2")
AVX512_VNNI = ("avx512_vnni", "avx512f", *AVX2)
AVX512_BF16 = ("avx512_bf16", *AVX512_VNNI)
ZEN5 = ("avx512_bf16", "avx512_vnni", "avx512f", *AVX2_VNNI)
AMX = ("amx_bf16", "amx_int8", "amx_tile", "avx512_bf16", "avx512_fp16", "avx512_vnni", "avx512f", *AVX2_VNNI)
AMX_FP16 = ("amx_bf16", "amx_int8", "amx_fp16", *AMX[2:])
NEOVERSE_N1 = ("asimd", "asimddp", "asimdhp")
NEOVERSE_V1 = ("bf16", "i8mm", "svebf16", "svei8mm", "sve", "asimd", "asimddp", "asimdhp", "asimdfhm")
NEOVERSE_V2 = ("bf16", "i8mm", "sve2", "svebf16", "svei8mm", "sve", "asimd", "asimddp", "asimdhp", "asimdfhm")

# -- processors ----------------------------------------------------------------------------------------------------


def _xeon(model: str, microarchitecture: str, isa: tuple[str, ...], *nodes: int) -> Processor:
    """A Xeon with SMT; its L3 cache is one for all cores of the package, with sub-NUMA clustering too."""
    return Processor("GenuineIntel", f"Intel(R) Xeon(R) {model}", microarchitecture, isa, nodes, (sum(nodes),), 2)


def _epyc(model: str, microarchitecture: str, isa: tuple[str, ...], cores: int, l3: int, nodes: int = 1) -> Processor:
    """An EPYC with SMT and ``cores`` cores, of which each ``l3`` share a cache, in ``nodes`` equal nodes (NPS)."""
    name = f"AMD EPYC {model} {cores}-Core Processor"
    return Processor(
        "AuthenticAMD", name, microarchitecture, isa, (cores // nodes,) * nodes, (l3,) * (cores // l3), threads=2
    )


def _neoverse(model: str, isa: tuple[str, ...], cores: int, *, has_l3: bool = True) -> Processor:
    name = f"neoverse_{model.lower()}"
    return Processor("ARM", f"Neoverse-{model}", name, isa, (cores,), (cores,) if has_l3 else (), arch="aarch64")


# -- the entries ---------------------------------------------------------------------------------------------------

TYPICAL_MEMORY = "the memory size"
TYPICAL_MEMORY_AND_DISTANCES = "the memory size and the NUMA distances"
TYPICAL_DISTANCES = "the NUMA distances"
EC2 = "AWS EC2 instance type specifications"
GRAVITON = "github.com/aws/aws-graviton-getting-started (cores, caches, NUMA nodes)"
SNC = "github.com/gramineproject/gramine/pull/530 (hwloc and lscpu of 2 x 56 cores with SNC4), published numactl -H"
AMD_TUNING = "AMD EPYC {} processor data sheet (cores, CCDs) and BIOS tuning guide (NPS); published numactl -H"

CATALOGUE: tuple[KnownMachine, ...] = (
    KnownMachine(
        name="c5.metal",
        summary="AWS, 2 x Xeon Platinum 8275CL (Cascade Lake), 48 cores",
        source=f"{EC2}; lscpu in huggingface.co/blog/bert-cpu-scaling-part-1",
        packages=2,
        processor=_xeon("Platinum 8275CL CPU @ 3.00GHz", "cascadelake", AVX512_VNNI, 24),
        node_gib=96,
        typical=TYPICAL_DISTANCES,
    ),
    KnownMachine(
        name="m6i.metal",
        summary="AWS, 2 x Xeon Platinum 8375C (Ice Lake), 64 cores",
        source=EC2,
        packages=2,
        processor=_xeon("Platinum 8375C CPU @ 2.90GHz", "icelake", AVX512_VNNI, 32),
        node_gib=256,
        typical=TYPICAL_DISTANCES,
    ),
    KnownMachine(
        name="m7i.metal-48xl",
        summary="AWS, 2 x Xeon Platinum 8488C (Sapphire Rapids), 96 cores",
        source=f"{EC2}; lscpu of c7i.metal-48xl in github.com/szilard/GBM-perf/issues/59",
        packages=2,
        processor=_xeon("Platinum 8488C", "sapphirerapids", AMX, 48),
        node_gib=384,
        typical=TYPICAL_DISTANCES,
    ),
    KnownMachine(
        name="c3-standard-176",
        summary="Google Cloud VM, 2 x Xeon Platinum 8481C (Sapphire Rapids), 88 cores in 4 nodes",
        source="Google Compute Engine C3 machine types; lscpu in alamb/datafusion-duckdb-benchmark, machine_details.md",
        packages=2,
        processor=_xeon("Platinum 8481C CPU @ 2.70GHz", "sapphirerapids", AMX, 22, 22),
        node_gib=176,
        typical=TYPICAL_DISTANCES,
    ),
    KnownMachine(
        name="HB176rs_v4",
        summary="Azure VM, 2 x EPYC 9V33X (Genoa-X), 176 cores without SMT in 4 nodes",
        source="learn.microsoft.com, HBv4-series virtual machine overview; published lscpu of HB176rs_v4",
        packages=2,
        processor=Processor(
            vendor="AuthenticAMD",
            model="AMD EPYC 9V33X 96-Core Processor",
            microarchitecture="zen4",
            isa=AVX512_BF16,
            nodes=(44, 44),
            # The host keeps two cores of two of the six dies of each node.
            l3=(6, 8, 8, 6, 8, 8) * 2,
        ),
        node_gib=176,
        far=32,
        typical="the memory size, the NUMA distances, and which dies of a node have 6 cores",
    ),
    KnownMachine(
        name="c6g.metal",
        summary="AWS, Graviton2 (Neoverse N1), 64 cores",
        source=f"{EC2}; {GRAVITON}",
        packages=1,
        processor=_neoverse("N1", NEOVERSE_N1, 64),
        node_gib=128,
    ),
    KnownMachine(
        name="c7g.metal",
        summary="AWS, Graviton3 (Neoverse V1), 64 cores",
        source=f"{EC2}; {GRAVITON}",
        packages=1,
        processor=_neoverse("V1", NEOVERSE_V1, 64),
        node_gib=128,
    ),
    KnownMachine(
        name="c8g.metal-24xl",
        summary="AWS, Graviton4 (Neoverse V2), 96 cores",
        source=f"{EC2}; {GRAVITON}; lscpu in github.com/vllm-project/vllm/pull/36487",
        packages=1,
        processor=_neoverse("V2", NEOVERSE_V2, 96),
        node_gib=192,
    ),
    KnownMachine(
        name="c8g.metal-48xl",
        summary="AWS, 2 x Graviton4 (Neoverse V2), 192 cores",
        source=f"{EC2}; {GRAVITON}; chipsandcheese.com on Graviton4 (two sockets, L3 cache)",
        packages=2,
        processor=_neoverse("V2", NEOVERSE_V2, 96),
        node_gib=192,
        far=20,
        typical=TYPICAL_DISTANCES,
    ),
    KnownMachine(
        name="xeon-8480-2s",
        summary="2 x Xeon Platinum 8480+ (Sapphire Rapids), 112 cores",
        source="Intel ARK, Xeon Platinum 8480+",
        packages=2,
        processor=_xeon("Platinum 8480+", "sapphirerapids", AMX, 56),
        node_gib=256,
        typical=TYPICAL_MEMORY,
    ),
    KnownMachine(
        name="xeon-8480-2s-snc4",
        summary="2 x Xeon Platinum 8480+ with sub-NUMA clustering, 112 cores in 8 nodes",
        source=f"Intel ARK, Xeon Platinum 8480+; {SNC}",
        packages=2,
        processor=_xeon("Platinum 8480+", "sapphirerapids", AMX, 14, 14, 14, 14),
        node_gib=64,
        typical=TYPICAL_MEMORY,
    ),
    KnownMachine(
        name="xeon-8592-2s",
        summary="2 x Xeon Platinum 8592+ (Emerald Rapids), 128 cores",
        source="Intel ARK, Xeon Platinum 8592+",
        packages=2,
        processor=_xeon("Platinum 8592+", "sapphirerapids", AMX, 64),
        node_gib=512,
        typical=TYPICAL_MEMORY,
    ),
    KnownMachine(
        name="xeon-6980p-2s",
        summary="2 x Xeon 6980P (Granite Rapids), 256 cores",
        source="Intel ARK, Xeon 6980P",
        packages=2,
        processor=_xeon("6980P", "sapphirerapids", AMX_FP16, 128),
        node_gib=768,
        typical=TYPICAL_MEMORY_AND_DISTANCES,
    ),
    KnownMachine(
        name="xeon-6980p-2s-snc3",
        summary="2 x Xeon 6980P with sub-NUMA clustering, 256 cores in 6 nodes",
        source="Intel ARK, Xeon 6980P; SGLang documentation, CPU servers (cores 0-42, 43-85, 86-127)",
        packages=2,
        processor=_xeon("6980P", "sapphirerapids", AMX_FP16, 43, 43, 42),
        node_gib=256,
        # Published numactl -H of a Xeon 6975P-C, which has the same arrangement of dies.
        distances=(
            (10, 15, 17, 21, 28, 26),
            (15, 10, 15, 23, 26, 23),
            (17, 15, 10, 26, 23, 21),
            (21, 28, 26, 10, 15, 17),
            (23, 26, 23, 15, 10, 15),
            (26, 23, 21, 17, 15, 10),
        ),
        typical=TYPICAL_MEMORY_AND_DISTANCES,
    ),
    *(
        KnownMachine(
            name=f"epyc-{model}-2s{suffix}",
            summary=f"2 x EPYC {model} ({codename}), {2 * cores} cores{where}",
            source=AMD_TUNING.format(series),
            packages=2,
            processor=_epyc(model, microarchitecture, isa, cores, l3, nodes),
            node_gib=gib // nodes,
            far=32,
            typical=TYPICAL_MEMORY,
        )
        for model, codename, series, microarchitecture, isa, cores, l3, gib in (
            ("7742", "Rome", "7002", "zen2", AVX2, 64, 4, 256),
            ("7763", "Milan", "7003", "zen3", AVX2, 64, 8, 256),
            ("9654", "Genoa", "9004", "zen4", AVX512_BF16, 96, 8, 384),
            ("9755", "Turin", "9005", "zen5", ZEN5, 128, 8, 768),
            ("9965", "Turin Dense", "9005", "zen5", ZEN5, 192, 16, 768),
        )
        for suffix, nodes, where in (("", 1, ""), ("-nps4", 4, " in 8 nodes"))
    ),
    KnownMachine(
        name="altra-max-m128-2s",
        summary="2 x Ampere Altra Max M128-30 (Neoverse N1), 256 cores",
        source="Ampere Altra Max product brief; lscpu of Altra in github.com/vllm-project/vllm/pull/39191 (no L3)",
        packages=2,
        processor=_neoverse("N1", NEOVERSE_N1, 128, has_l3=False),
        node_gib=256,
        far=20,
        typical=TYPICAL_MEMORY_AND_DISTANCES,
    ),
    KnownMachine(
        name="grace-superchip",
        summary="NVIDIA Grace CPU Superchip (Neoverse V2), 144 cores in 2 nodes",
        source="NVIDIA Grace CPU Superchip data sheet; lscpu in the NVIDIA Grace CPU benchmarking guide",
        packages=2,
        processor=_neoverse("V2", NEOVERSE_V2, 72),
        node_gib=240,
        far=40,
        typical=TYPICAL_MEMORY_AND_DISTANCES,
    ),
    KnownMachine(
        name="core-i9-12900k",
        summary="desktop, Core i9-12900K (Alder Lake), 8 performance and 8 efficiency cores",
        source="Intel ARK, Core i9-12900K; published lscpu -a -e",
        packages=1,
        processor=Processor(
            vendor="GenuineIntel",
            model="12th Gen Intel(R) Core(TM) i9-12900K",
            microarchitecture="alderlake",
            isa=AVX2_VNNI,
            nodes=(16,),
            l3=(16,),
            threads=2,
            efficiency_cores=8,
        ),
        node_gib=64,
        siblings="adjacent",
        typical=TYPICAL_MEMORY,
    ),
)


def find(name: str) -> KnownMachine | None:
    """The entry of that name, in upper or lower case; None when there is none."""
    return next((known for known in CATALOGUE if known.name.lower() == name.lower()), None)


def nearest_names(name: str) -> tuple[str, ...]:
    """Names of entries that resemble ``name``, the most similar first; empty when none does."""
    by_lower = {known.name.lower(): known.name for known in CATALOGUE}
    return tuple(by_lower[one] for one in difflib.get_close_matches(name.lower(), by_lower, NEAREST_NAMES))


def catalogue_text() -> str:
    """The names of all entries with their summaries, one per line."""
    width = max(len(known.name) for known in CATALOGUE)
    return "\n".join(f"{known.name:<{width}}  {known.summary}" for known in CATALOGUE)


def machine_of(known: KnownMachine) -> Machine:
    """The machine of an entry, with all cpus online and allowed. A warning names the facts that are only typical."""
    processor = known.processor
    cores = _core_cpus(known)
    nodes = list(_by_sizes(cores, processor.nodes * known.packages))
    cpus = tuple(sorted(cpu for core in cores for cpu in core))
    raw = RawMachine(
        arch=processor.arch,
        vendor=processor.vendor,
        model=processor.model,
        isa=processor.isa,
        microarchitecture=processor.microarchitecture,
        present=cpus,
        online=cpus,
        isolated=(),
        cpus=_raw_cpus(known, cores),
        nodes=tuple(Node(one, nodes[one], known.node_gib * GIB, _distances(known, one)) for one in range(len(nodes))),
        kinds=KindHints(efficiency_cpus=_efficiency_cpus(processor, cores) if processor.efficiency_cores else None),
        cpuset=None,
        limits=Limits(),
        memory_bytes=len(nodes) * known.node_gib * GIB,
    )
    machine = build_machine(raw)
    if not known.typical:
        return machine
    warning = (
        f"{known.name} is an entry of the built-in catalogue. These values are typical and may differ on your machine: "
        f"{known.typical}."
    )
    return replace(machine, warnings=(*machine.warnings, warning))


def _core_cpus(known: KnownMachine) -> list[Cpus]:
    """The cpus of each core, package by package."""
    processor = known.processor
    performance = processor.cores - processor.efficiency_cores
    threads = [processor.threads] * performance + [1] * processor.efficiency_cores
    if known.siblings == "split":
        total = processor.cores * known.packages
        return [tuple(core + thread * total for thread in range(processor.threads)) for core in range(total)]
    ends = list(accumulate(threads * known.packages, initial=0))
    return [tuple(range(*pair)) for pair in pairwise(ends)]


def _by_sizes(cores: list[Cpus], sizes: tuple[int, ...]) -> Iterator[Cpus]:
    """The cpus of the cores in groups of ``sizes`` cores, in order."""
    start = 0
    for size in sizes:
        yield tuple(sorted(cpu for core in cores[start : start + size] for cpu in core))
        start += size


def _raw_cpus(known: KnownMachine, cores: list[Cpus]) -> dict[int, RawCpu]:
    processor = known.processor
    l3_of = {cpu: group for group in _by_sizes(cores, processor.l3 * known.packages) for cpu in group}
    return {
        cpu: RawCpu(core, index // processor.cores, l3_of.get(cpu)) for index, core in enumerate(cores) for cpu in core
    }


def _efficiency_cpus(processor: Processor, cores: list[Cpus]) -> Cpus:
    performance = processor.cores - processor.efficiency_cores
    return tuple(cpu for index, core in enumerate(cores) if index % processor.cores >= performance for cpu in core)


def _distances(known: KnownMachine, node: int) -> tuple[tuple[int, int], ...]:
    """Distance from ``node`` to each node."""
    if known.distances:
        return tuple(enumerate(known.distances[node]))
    per_package = len(known.processor.nodes)

    def distance(other: int) -> int:
        if other == node:
            return LOCAL_DISTANCE
        return known.near if other // per_package == node // per_package else known.far

    return tuple((other, distance(other)) for other in range(per_package * known.packages))
