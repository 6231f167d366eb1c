"""The facts of the doctor: from constructed trees, all recorded machines, and this machine."""

from __future__ import annotations

import os
import resource
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path

import pytest

from launcher.core.diagnosis import CHECKS, diagnose
from launcher.core.diagnosis.facts import Facts, Program, Reading
from launcher.core.diagnosis.finding import Finding
from launcher.core.diagnosis.findings_report import findings_text
from launcher.errors import MachineError, UsageError
from launcher.host.machine.activity_sample import describe, take_sample
from launcher.host.machine.diagnosis_facts import read_facts
from launcher.host.machine.file_tree import Tree
from launcher.options import DoctorOptions, MachineOptions
from tests.machines import build, each_recorded, recorded, regular

CPU = "sys/devices/system/cpu"
MEMINFO = "MemTotal: 1000 kB\nMemAvailable: 900 kB\nSwapTotal: 100 kB\nSwapFree: 60 kB"
CPUINFO = "processor : 0\nvendor_id : GenuineIntel\ncpu family : 6\nmodel : 143\nflags : fpu avx512f hypervisor lm\n"
GROUP = {
    "proc/self/cgroup": "0::/pod/box",
    "proc/self/mountinfo": "30 24 0:26 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw",
    "sys/fs/cgroup/pod/cpu.max": "150000 100000",
    "sys/fs/cgroup/pod/box/cpu.max": "max 100000",
    "sys/fs/cgroup/pod/box/cpu.stat": "nr_periods 100\nnr_throttled 40\nthrottled_usec 2500000",
    "sys/fs/cgroup/pod/box/memory.max": "8000000",
    "sys/fs/cgroup/pod/box/memory.current": "7000000",
    "sys/fs/cgroup/pod/box/memory.stat": "anon 1\ninactive_file 2000000",
}


def facts_of(sysroot: Path) -> Facts:
    return read_facts(DoctorOptions(MachineOptions(sysroot=sysroot)))


def _read(root: Path, **files: str) -> Facts:
    return facts_of(build(root, regular(packages=2, files=files)))


def _finding(facts: Facts, name: str) -> Finding:
    return next(finding for finding in diagnose(facts) if finding.id == name)


def test_settings_are_read_with_their_file_as_evidence(tmp_path: Path) -> None:
    facts = _read(
        tmp_path,
        **{
            f"{CPU}/smt/control": "on",
            f"{CPU}/intel_pstate/no_turbo": "1",
            "sys/kernel/mm/transparent_hugepage/enabled": "always madvise [never]",
            "proc/sys/kernel/numa_balancing": "1",
            "proc/sys/kernel/osrelease": "5.4.0-150-generic",
            "sys/devices/system/clocksource/clocksource0/current_clocksource": "hpet",
            f"{CPU}/vulnerabilities/gather_data_sampling": "Mitigation: Microcode",
            "proc/meminfo": MEMINFO,
            "proc/cpuinfo": CPUINFO,
        },
    )
    assert facts.kernel.smt == Reading(f"/{CPU}/smt/control", "on")
    assert facts.kernel.virtual is True
    assert (facts.kernel.family, facts.kernel.model, facts.kernel.flags_known) == (6, 143, True)
    assert (facts.memory.swap_bytes, facts.memory.swap_used) == (102400, 40960)
    severities = {finding.id: finding.severity for finding in diagnose(facts)}
    assert severities["boost"] == "problem"
    assert severities["instruction-sets"] == "problem"
    asked = ("huge-pages", "numa-balancing", "kernel", "clock-source", "mitigations", "swap")
    assert {severities[name] for name in asked} == {"advice"}
    assert {severities[name] for name in ("governor", "thermal-throttling", "throttling", "cpu-quota")} == {"unknown"}


def test_per_cpu_files_are_grouped_by_value(tmp_path: Path) -> None:
    values = {
        f"{CPU}/cpu{cpu}/cpufreq/scaling_governor": "powersave" if cpu == 3 else "performance" for cpu in range(16)
    }
    facts = _read(tmp_path, **values)
    assert dict(facts.clocks.governor.values)["powersave"] == (3,)
    assert "cpu 3" in _finding(facts, "governor").title


def test_cpufreq_policies_apply_to_their_cpus(tmp_path: Path) -> None:
    folder = f"{CPU}/cpufreq/policy0"
    files = {"related_cpus": "0 1 2 x 3", "scaling_max_freq": "1000000", "cpuinfo_max_freq": "2000000"}
    facts = _read(tmp_path, **{f"{folder}/{name}": text for name, text in files.items()})
    assert facts.clocks.limit.values == (("1000000", (0, 1, 2, 3)),)
    assert "cpus 0-3" in _finding(facts, "clock-limit").title


def test_limits_of_control_groups_are_named_by_file(tmp_path: Path) -> None:
    facts = _read(tmp_path, **GROUP, **{"proc/meminfo": MEMINFO})
    quota, memory = _finding(facts, "cpu-quota"), _finding(facts, "memory-pressure")
    assert quota.severity == "problem"
    assert "/sys/fs/cgroup/pod/cpu.max" in {one.source for one in quota.evidence}
    assert quota.fix is not None
    assert quota.fix[0].startswith("echo max > /sys/fs/cgroup/pod/cpu.max")
    assert facts.memory.limit is not None
    assert (facts.memory.limit.limit, facts.memory.limit.used) == (8000000, 5000000)
    assert memory.severity == "fine"
    throttling = _finding(facts, "throttling")
    assert throttling.severity == "advice"
    assert "40 of nr_periods 100, 2.5 s" in throttling.evidence[0].found


def test_siblings_outside_the_cpuset_belong_to_others(tmp_path: Path) -> None:
    group = {
        **GROUP,
        "sys/fs/cgroup/pod/box/cpuset.cpus.effective": "0-7",
        "sys/fs/cgroup/pod/cpu.max": "max 100000",
    }
    facts = _read(tmp_path, **group)
    assert facts.siblings == tuple(range(8, 16))
    assert _finding(facts, "smt").severity == "advice"
    assert "8 of 16" in _finding(facts, "allowed-cpus").title


@pytest.mark.parametrize(
    ("files", "virtual"),
    [
        ({"sys/hypervisor/type": "xen"}, True),
        ({"sys/class/dmi/id/sys_vendor": "QEMU"}, True),
        ({"sys/class/dmi/id/sys_vendor": "Amazon EC2", "sys/class/dmi/id/product_name": "c7g.metal"}, False),
        ({"sys/class/dmi/id/sys_vendor": "Amazon EC2", "sys/class/dmi/id/product_name": "c7g.large"}, True),
        ({"sys/class/dmi/id/sys_vendor": "GIGABYTE"}, None),
        ({"proc/cpuinfo": CPUINFO.replace(" hypervisor", "")}, False),
        ({}, None),
    ],
)
def test_a_virtual_machine_is_recognized_with_the_evidence(
    tmp_path: Path, files: dict[str, str], virtual: bool | None
) -> None:
    assert _read(tmp_path, **files).kernel.virtual is virtual


def test_malformed_files_are_not_evidence(tmp_path: Path) -> None:
    names = (
        "proc/meminfo", "proc/cpuinfo", "proc/cmdline", "proc/sys/kernel/osrelease", "proc/sys/vm/swappiness",
        f"{CPU}/smt/control", f"{CPU}/cpufreq/boost", f"{CPU}/cpu0/cpufreq/scaling_max_freq",
        f"{CPU}/cpu0/cpufreq/cpuinfo_max_freq", f"{CPU}/cpu0/thermal_throttle/core_throttle_count",
        "sys/kernel/mm/transparent_hugepage/enabled",
    )  # fmt: skip
    findings = diagnose(_read(tmp_path, **dict.fromkeys(names, "\x01 ?\n???")))
    assert len(findings) == len(CHECKS)
    unknown = {finding.id for finding in findings if finding.severity == "unknown"}
    assert unknown >= {
        "huge-pages",
        "clock-limit",
        "thermal-throttling",
        "swap",
        "kernel",
        "memory-pressure",
        "instruction-sets",
    }


@each_recorded()
def test_every_recorded_machine_is_diagnosed(name: str) -> None:
    facts = facts_of(recorded(name))
    findings = diagnose(facts)
    assert len(findings) == len(CHECKS)
    assert facts.live is None
    live_only = {
        "busy-cpus",
        "other-launchers",
        "pinned-programs",
        "numactl",
        "torch-build",
        "open-files",
        "priority",
    }
    assert {finding.severity for finding in findings if finding.id in live_only} == {"unknown"}
    assert "busy-cpus" in findings_text(facts.machine, findings, 80).plain


@pytest.mark.parametrize(
    ("name", "check", "severity", "words"),
    [
        ("dv-chimera-Threadripper", "node-memory", "problem", "nodes 1,3"),
        ("hw-16amd64-8n2c-cpusets", "node-memory", "problem", "cores of nodes"),
        ("hw-16amd64-8n2c-cpusets", "offline-cpus", "problem", "4"),
        ("hw-16em64t-4s2ca2c-cpusetreorder", "allowed-cpus", "advice", "11 of 16"),
        ("nri-server", "isolated-cpus", "advice", "4-7,60-63"),
        ("pc-galaxy-s9-global", "clock-limit", "problem", "1.8 GHz"),
        ("ul-aarch64_Apple_Icestorm-M1-Pro", "boost", "problem", "Boost"),
        ("hw-20em64t-hybrid-1p6c2t+2ca4co1t", "kernel", "fine", "new enough"),
        ("hw-fakememinitiators-1npc+1npc", "virtual-cores", "unknown", "share a core"),
        ("dv-2xXeonMax9460", "instruction-sets", "unknown", "does not report"),
        ("lv-subcores3", "offline-cpus", "unknown", "threads of cores"),
        ("hw-8em64t-2s2ca2c-buggynuma", "inconsistent-topology", "advice", "inconsistent"),
    ],
)
def test_findings_for_recorded_machines_match_the_known_facts(name: str, check: str, severity: str, words: str) -> None:
    finding = _finding(facts_of(recorded(name)), check)
    assert finding.severity == severity
    assert words in finding.title


def test_a_tree_without_a_machine_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="not the root of a machine"):
        facts_of(tmp_path)


def test_a_machine_without_usable_cpus_is_refused(tmp_path: Path) -> None:
    with pytest.raises(MachineError, match="No cpu of this machine is usable"):
        _read(tmp_path, **{"proc/self/status": "Cpus_allowed_list: 99"})


# -- the machine the tests run on -----------------------------------------------------------------------------


@contextmanager
def _running(*command: str, **more: object) -> Iterator[subprocess.Popen[bytes]]:
    process = subprocess.Popen(command, stdout=subprocess.PIPE, **more)  # type: ignore[call-overload]
    try:
        yield process
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


def _online() -> tuple[int, ...]:
    return tuple(sorted(os.sched_getaffinity(0)))


def _seen(pid: int, seconds: float) -> Program | None:
    sample = take_sample(Tree(Path("/")), (*_online(), max(_online()) + 1), seconds)
    return next((one for one in sample.programs if one.pid == pid), None)


def test_a_program_that_spins_is_seen_with_its_share_and_its_cpus() -> None:
    cpu = str(_online()[-1])
    spin = "print(flush=True)\nwhile True: pass"
    with _running("taskset", "-c", cpu, sys.executable, "-S", "-c", spin) as process:
        assert process.stdout is not None
        process.stdout.readline()
        # Other programs on its cpu may take most of some of the samples.
        samples = (_seen(process.pid, 0.3) for _ in range(10))
        seen = next((one for one in samples if one is not None and one.share > 0.05), None)
    assert seen is not None
    assert seen.cpus == (int(cpu),)
    assert seen.name.startswith("python")
    assert seen.front is None


def test_an_idle_program_is_reported_only_if_it_is_pinned() -> None:
    """``_seen`` pretends that one more cpu is online, so that every program on this machine is pinned."""
    with _running("sleep", "60") as process:
        deadline = time.monotonic() + 60
        while (seen := _seen(process.pid, 0.0)) is None or seen.name != "sleep":
            assert time.monotonic() < deadline
        sample = take_sample(Tree(Path("/")), _online(), 0.05)
    assert seen.cpus == _online()
    assert not [one for one in sample.programs if one.pid == process.pid]


def test_this_process_and_its_ancestors_are_not_other_programs() -> None:
    sample = take_sample(Tree(Path("/")), (*_online(), max(_online()) + 1), 0.0)
    assert not {os.getpid(), os.getppid()} & {one.pid for one in sample.programs}
    assert sample.swapped is not None
    assert {cpu for cpu, _ in sample.busy} >= set(_online())


def test_a_worker_of_another_launcher_is_recognized_by_its_command() -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs, _running(
        sys.executable, "-m", "launcher.worker", "--instance", "0", "--threads", "1", stdin=theirs
    ) as process:  # fmt: skip
        deadline = time.monotonic() + 60
        while (seen := _seen(process.pid, 0.0)) is None or seen.front is None:
            assert time.monotonic() < deadline
    assert seen.front == os.getpid()


@pytest.mark.parametrize(
    ("words", "name"),
    [
        (["/usr/bin/python3", "-u", "-m", "pytest", "--token=secret", ""], "python3 -m pytest"),
        (["/opt/python3.11", "/srv/train.py", "secret"], "python3.11 train.py"),
        (["python", "-c", "secret"], "python -c"),
        (["/usr/sbin/nginx", "-g", "secret"], "nginx"),
        (["nginx: worker process"], "nginx: worker process"),
        ([""], "kworker"),
        ([], "kworker"),
    ],
)
def test_programs_are_named_without_their_arguments(words: list[str], name: str) -> None:
    assert describe(words, "kworker") == name


def test_on_this_machine_bindings_are_tried_and_no_fact_is_missing() -> None:
    facts = facts_of(Path("/"))
    assert facts.live is not None
    assert len(facts.live.bindings) == len(facts.plan.instances)
    assert facts.live.software.torch is not None
    assert facts.live.software.torch.version.partition("+")[0] == version("torch").partition("+")[0]
    assert facts.live.software.open_files == resource.getrlimit(resource.RLIMIT_NOFILE)
    assert facts.throttled is None or facts.throttled.during_sample is not None
    findings = diagnose(facts)
    assert len(findings) == len(CHECKS)
    assert not [finding.id for finding in findings if "can be checked only on the machine itself" in finding.title]
