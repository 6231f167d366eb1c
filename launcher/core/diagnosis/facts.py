"""What the diagnosis is made of: settings of the kernel, and what was seen by looking for a moment, as frozen values.

``host.machine.doctor`` fills these values, the checks read them. A reading keeps where it comes from, because a
finding that cannot name its evidence is an opinion. Unknown is ``None``, never a guess; no file is opened here.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from launcher.core.machine.topology import Machine
from launcher.core.planning.binding import Binding
from launcher.core.planning.plan import Plan
from launcher.core.planning.preload import LibrarySearch

Cpus = tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Reading:
    """What one file or command said; ``value`` None: it is not there, or could not be read."""

    source: str
    value: str | None = None


@dataclass(frozen=True, slots=True)
class PerCpu:
    """A file that every cpu has: the cpus by its value. Without any values no cpu has that file."""

    source: str
    values: tuple[tuple[str, Cpus], ...] = ()


@dataclass(frozen=True, slots=True)
class Clocks:
    """Files of cpufreq and its drivers, for the allowed cpus; frequencies in kHz."""

    driver: Reading = Reading("/sys/devices/system/cpu/cpu*/cpufreq/scaling_driver")
    governor: PerCpu = PerCpu("/sys/devices/system/cpu/cpu*/cpufreq/scaling_governor")
    governors: Reading = Reading("/sys/devices/system/cpu/cpu*/cpufreq/scaling_available_governors")
    preference: PerCpu = PerCpu("/sys/devices/system/cpu/cpu*/cpufreq/energy_performance_preference")
    boost: Reading = Reading("/sys/devices/system/cpu/cpufreq/boost")
    no_turbo: Reading = Reading("/sys/devices/system/cpu/intel_pstate/no_turbo")
    limit: PerCpu = PerCpu("/sys/devices/system/cpu/cpu*/cpufreq/scaling_max_freq")
    highest: PerCpu = PerCpu("/sys/devices/system/cpu/cpu*/cpufreq/cpuinfo_max_freq")
    heat: PerCpu = PerCpu("/sys/devices/system/cpu/cpu*/thermal_throttle/core_throttle_count")


@dataclass(frozen=True, slots=True)
class MemoryLimit:
    """The limit of a control group and what of it is in use, in bytes."""

    source: str
    limit: int
    used: int


@dataclass(frozen=True, slots=True)
class Memory:
    """Files about memory; bytes."""

    huge_pages: Reading = Reading("/sys/kernel/mm/transparent_hugepage/enabled")
    compaction: Reading = Reading("/sys/kernel/mm/transparent_hugepage/defrag")
    balancing: Reading = Reading("/proc/sys/kernel/numa_balancing")
    swappiness: Reading = Reading("/proc/sys/vm/swappiness")
    swap_bytes: int | None = None
    swap_used: int | None = None
    limit: MemoryLimit | None = None


@dataclass(frozen=True, slots=True)
class Quota:
    """What one control group's file says about its CPU quota, and how many cpus that are; None: no limit."""

    source: str
    value: str
    cpus: float | None


@dataclass(frozen=True, slots=True)
class Throttled:
    """How often a quota stopped this process's control groups: so far, and during the look (None: not looked)."""

    periods: int
    stopped: int
    seconds: float
    now: int | None = None


@dataclass(frozen=True, slots=True)
class Kernel:
    """The kernel and what it says of the processor.

    ``virtual``: runs under a hypervisor. ``flags_known``: `/proc/cpuinfo` lists instruction sets at all. ``family``
    and ``model`` are the processor's numbers on x86.
    """

    release: Reading = Reading("/proc/sys/kernel/osrelease")
    command_line: Reading = Reading("/proc/cmdline")
    isolated: Reading = Reading("/sys/devices/system/cpu/isolated")
    smt: Reading = Reading("/sys/devices/system/cpu/smt/control")
    clock_source: Reading = Reading("/sys/devices/system/clocksource/clocksource0/current_clocksource")
    clock_sources: Reading = Reading("/sys/devices/system/clocksource/clocksource0/available_clocksource")
    vulnerabilities: tuple[Reading, ...] = ()
    virtual: bool | None = None
    virtual_sign: Reading = Reading("/proc/cpuinfo flags, /sys/hypervisor/type, /sys/class/dmi/id")
    flags_known: bool = False
    family: int | None = None
    model: int | None = None


@dataclass(frozen=True, slots=True)
class Program:
    """Another process: ``cpus`` is its mask, ``share`` how many cpus' worth of time it used during the look.

    ``front`` is the process that started it, when it is a worker of a launcher; ``foreign``: it belongs to another
    user, so that changing it needs root.
    """

    pid: int
    name: str
    cpus: Cpus
    share: float
    front: int | None = None
    foreign: bool = False


@dataclass(frozen=True, slots=True)
class Sample:
    """What was seen in ``seconds``: the share (0 to 1) of each online cpu that was in use, and stolen from it.

    ``programs`` are those that ran, and those that are pinned to some of the online cpus. ``swapped`` pages went in
    or out.
    """

    seconds: float
    busy: tuple[tuple[int, float], ...]
    stolen: tuple[tuple[int, float], ...] = ()
    programs: tuple[Program, ...] = ()
    swapped: int | None = None


@dataclass(frozen=True, slots=True)
class Software:
    """What is installed and set. ``allocators`` is what the search for tcmalloc and jemalloc gave.

    ``torch`` is its version as installed, ``cuda_parts`` what of a CUDA build is there. ``distribution`` are the ids
    of `/etc/os-release`, the nearest first. ``environment`` has only what the checks know.
    """

    numactl: str | None = None
    allocators: tuple[LibrarySearch, ...] = ()
    torch: str | None = None
    cuda_parts: tuple[str, ...] = ()
    environment: tuple[tuple[str, str], ...] = ()
    distribution: tuple[str, ...] = ()
    open_files: tuple[int, int] = (0, 0)
    nice: int = 0
    scheduling: str = "SCHED_OTHER"


@dataclass(frozen=True, slots=True)
class Live:
    """What only the machine itself can tell. ``bindings`` were really tried, in the order of the plan."""

    sample: Sample
    software: Software
    bindings: tuple[Binding, ...]


@dataclass(frozen=True, slots=True)
class Facts:
    """Everything that the checks judge by.

    ``plan`` is what ``launch`` would do by default. ``siblings`` are the online cpus that share a planned core and
    are not planned themselves, None where nothing is said of siblings. ``cpuset`` has its cpus, None where there is
    none. ``quotas`` is None where no control group that could have one is visible. ``live`` is None for a recorded
    machine.
    """

    machine: Machine
    plan: Plan
    siblings: Cpus | None = ()
    cpuset: Cpus | None = None
    quotas: tuple[Quota, ...] | None = ()
    throttled: Throttled | None = None
    clocks: Clocks = field(default_factory=Clocks)
    memory: Memory = field(default_factory=Memory)
    kernel: Kernel = field(default_factory=Kernel)
    live: Live | None = None

    @property
    def planned(self) -> Cpus:
        """The cpus that instances and front would use."""
        used = {cpu for instance in self.plan.instances for cpu in instance.cpus}
        return tuple(sorted(used | set(self.plan.reserved_cpus)))
