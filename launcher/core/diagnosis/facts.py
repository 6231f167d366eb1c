"""The facts of the diagnosis, as immutable values: settings of the kernel, and a short sample of the running machine.

``host.machine.diagnosis_facts`` fills these values and the checks read them. Every value keeps its source, because a
finding must name its evidence. Unknown values are ``None``, never a guess. No file is opened here.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from launcher.core.diagnosis.torch_build import TorchBuild
from launcher.core.machine.topology import Machine
from launcher.core.planning.binding import Binding
from launcher.core.planning.plan import Plan
from launcher.core.planning.preload import LibrarySearch

Cpus = tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Reading:
    """The content of a file or output of a command; ``value`` is None when it is missing or unreadable."""

    source: str
    value: str | None = None


@dataclass(frozen=True, slots=True)
class PerCpu:
    """A file that exists once per cpu: each value with its cpus. No values: no cpu has that file."""

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
    throttle_count: PerCpu = PerCpu("/sys/devices/system/cpu/cpu*/thermal_throttle/core_throttle_count")


@dataclass(frozen=True, slots=True)
class MemoryLimit:
    """The memory limit of a control group and its use, in bytes."""

    source: str
    limit: int
    used: int


@dataclass(frozen=True, slots=True)
class Memory:
    """Settings of memory management; sizes in bytes."""

    huge_pages: Reading = Reading("/sys/kernel/mm/transparent_hugepage/enabled")
    compaction: Reading = Reading("/sys/kernel/mm/transparent_hugepage/defrag")
    balancing: Reading = Reading("/proc/sys/kernel/numa_balancing")
    swappiness: Reading = Reading("/proc/sys/vm/swappiness")
    swap_bytes: int | None = None
    swap_used: int | None = None
    limit: MemoryLimit | None = None


@dataclass(frozen=True, slots=True)
class Quota:
    """The CPU quota file of one control group; ``cpus`` is the quota in cpus, None without a limit."""

    source: str
    value: str
    cpus: float | None


@dataclass(frozen=True, slots=True)
class Throttled:
    """How often a quota throttled the control groups of this process; ``during_sample`` is None without a sample."""

    periods: int
    throttled: int
    seconds: float
    during_sample: int | None = None


@dataclass(frozen=True, slots=True)
class Kernel:
    """The kernel, and what it reports about the processor.

    ``virtual``: it runs under a hypervisor. ``flags_known``: `/proc/cpuinfo` lists instruction sets. ``family`` and
    ``model`` are the numbers of an x86 processor.
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
    """Another process: ``cpus`` is its affinity mask, ``share`` the cpu time it used during the sample, in cpus.

    ``front`` is the process that started it, if it is a worker of a launcher; ``foreign``: it belongs to another user,
    so changing it requires root.
    """

    pid: int
    name: str
    cpus: Cpus
    share: float
    front: int | None = None
    foreign: bool = False


@dataclass(frozen=True, slots=True)
class Sample:
    """What happened in ``seconds``: for each online cpu, the share of time (0 to 1) in use, and stolen by a hypervisor.

    ``programs`` are those that ran, and those pinned to a subset of the online cpus. ``swapped`` is the number of pages
    swapped in or out.
    """

    seconds: float
    busy: tuple[tuple[int, float], ...]
    steal: tuple[tuple[int, float], ...] = ()
    programs: tuple[Program, ...] = ()
    swapped: int | None = None


@dataclass(frozen=True, slots=True)
class Software:
    """Installed software and the environment. ``allocators`` is the result of the search for tcmalloc and jemalloc.

    ``torch`` is the installed build, ``gpu_packages`` are installed packages that only its CUDA build needs.
    ``distribution`` has the ids of `/etc/os-release`, the most specific first. ``environment`` has only the variables
    that the checks use.
    """

    numactl: str | None = None
    allocators: tuple[LibrarySearch, ...] = ()
    torch: TorchBuild | None = None
    gpu_packages: tuple[str, ...] = ()
    environment: tuple[tuple[str, str], ...] = ()
    distribution: tuple[str, ...] = ()
    open_files: tuple[int, int] = (0, 0)
    nice: int = 0
    scheduling: str = "SCHED_OTHER"


@dataclass(frozen=True, slots=True)
class Live:
    """Facts that are known only on the machine itself. ``bindings`` were tested, in the order of the plan."""

    sample: Sample
    software: Software
    bindings: tuple[Binding, ...]


@dataclass(frozen=True, slots=True)
class Facts:
    """All facts that the checks use.

    ``plan`` is the default plan of ``launch``. ``siblings`` are the online cpus that share a core with a planned cpu
    and are not planned themselves, None if siblings are unknown. ``cpuset`` has its cpus, None without a cpuset.
    ``quotas`` is None if no control group with quotas is visible. ``live`` is None for a recorded machine.
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
        """The cpus of instances and front in the plan."""
        used = {cpu for instance in self.plan.instances for cpu in instance.cpus}
        return tuple(sorted(used | set(self.plan.reserved_cpus)))
