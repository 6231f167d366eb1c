"""The choice of bindings, with real tools, kernels and restrictions."""

from __future__ import annotations

import errno
import json
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from launcher.core.machine.cpuset import format_cpu_list, parse_cpu_list
from launcher.core.planning.binding import Binding, Level, command_prefix
from launcher.core.planning.plan import InstancePlan, MemoryPolicy, Plan
from launcher.errors import MachineError
from launcher.host.process.probe_binding import choose_bindings, describe_bindings, requested_level
from launcher.options import MachineOptions

DENY = Path(__file__).parents[1] / "deny.py"
CPUS = tuple(sorted(os.sched_getaffinity(0)))
NO_CPU = 4090  # beyond any machine that runs this
NO_NODE = 1000
SECONDS = MachineOptions().probe_seconds
# (mbind, set_mempolicy, get_mempolicy) in arch/*/entry/syscalls/*.tbl
CALLS = {"x86_64": (237, 238, 239), "aarch64": (235, 237, 236)}

needs_numactl = pytest.mark.skipif(shutil.which("numactl") is None, reason="numactl is not installed")


def own_nodes() -> tuple[int, ...]:
    status = Path("/proc/self/status").read_text()
    line = next(line for line in status.splitlines() if line.startswith("Mems_allowed_list:"))
    return parse_cpu_list(line.split(":")[1])


NODES = own_nodes()


@pytest.fixture(scope="module", autouse=True)
def _memory_can_be_bound_here() -> None:
    if not Path("/proc/self/numa_maps").exists():
        pytest.skip("this kernel knows no NUMA")


def instance(
    number: int = 0,
    cpus: tuple[int, ...] = CPUS[:1],
    nodes: tuple[int, ...] = NODES[:1],
    memory: MemoryPolicy = "bind",
) -> InstancePlan:
    return InstancePlan(number, cpus, cpus, len(cpus), nodes, memory, None, "for a test")


def plan(*instances: InstancePlan) -> Plan:
    return Plan(instances, (), ())


def choose(*instances: InstancePlan, strict: bool = False, requested: Level = "bind") -> tuple[Binding, ...]:
    return choose_bindings(plan(*instances), strict=strict, probe_seconds=SECONDS, requested=requested)


@pytest.fixture
def without_numactl(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))


@needs_numactl
def test_without_restrictions_numactl_binds_cpus_and_memory() -> None:
    each = [instance(number, (cpu,)) for number, cpu in enumerate(CPUS)]
    assert choose(*each, strict=True) == (Binding("bind", "numactl", "as requested"),) * len(CPUS)


@needs_numactl
def test_the_chosen_prefix_really_binds() -> None:
    wished = instance(0, CPUS)
    (binding,) = choose(wished)
    show = subprocess.run(
        [*command_prefix(wished, binding), "numactl", "-s"], capture_output=True, text=True, check=True
    )
    lines = dict(line.split(":", 1) for line in show.stdout.splitlines() if ":" in line)
    assert lines["policy"].strip() == "bind"
    assert format_cpu_list(map(int, lines["physcpubind"].split())) == format_cpu_list(CPUS)
    assert tuple(map(int, lines["membind"].split())) == NODES[:1]


@pytest.mark.usefixtures("without_numactl")
def test_without_numactl_system_calls_reach_the_same_level() -> None:
    assert choose(instance(), strict=True) == (Binding("bind", "syscalls", "numactl is not installed"),)


def test_an_instance_on_several_nodes_is_probed_with_interleaving() -> None:
    (binding,) = choose(instance(memory="interleave", nodes=NODES), strict=True)
    assert binding.level == "bind"


def test_for_an_instance_without_nodes_only_cpus_are_requested() -> None:
    local = instance(nodes=(), memory="local")
    assert requested_level(local, "bind") == "cpus"
    (binding,) = choose(local, strict=True)
    assert binding.level == "cpus"
    assert binding.reason in ("as requested", "numactl is not installed")


@pytest.mark.parametrize("requested", ["preferred", "cpus", "none"])
def test_levels_above_the_requested_one_are_not_tried(requested: Level) -> None:
    (binding,) = choose(instance(), requested=requested, strict=True)
    assert binding.level == requested


def test_a_missing_node_costs_only_its_own_instance_the_memory_binding() -> None:
    good, bad = choose(instance(0), instance(1, nodes=(NO_NODE,)))
    assert good.level == "bind"
    assert bad.level == "cpus"
    assert "bind" in bad.reason
    assert str(NO_NODE) in bad.reason or "Invalid argument" in bad.reason


def test_a_missing_cpu_costs_the_binding_and_is_named_in_the_reason() -> None:
    good, bad = choose(instance(0), instance(1, (CPUS[0], NO_CPU)))
    assert good.level == "bind"
    assert bad.level == "none"
    assert str(NO_CPU) in bad.reason


@pytest.fixture
def cpuset_of_one_cpu() -> Iterator[Path]:
    """A cpuset with only the first cpu, v1 or v2; skips if it cannot be created or there is only one cpu."""
    if len(CPUS) < 2:
        pytest.skip("needs two cpus")
    root = Path("/sys/fs/cgroup")
    folder = (root / "cpuset" if (root / "cpuset").is_dir() else root) / f"launcher-test-{os.getpid()}"
    try:
        folder.mkdir()
        (folder / "cpuset.cpus").write_text(str(CPUS[0]))
        (folder / "cpuset.mems").write_text(format_cpu_list(NODES))
    except OSError as error:
        pytest.skip(f"a cpuset cannot be made here: {error}")
    yield folder
    folder.rmdir()


def test_a_cpuset_that_shrank_after_planning_is_named_in_the_reason(cpuset_of_one_cpu: Path) -> None:
    join = ["sh", "-c", f'echo $$ > {cpuset_of_one_cpu}/cgroup.procs; exec "$@"', "sh"]
    kept, taken = in_child([instance(0, CPUS[:1]), instance(1, CPUS)], before=join)
    assert kept["level"] == "bind"
    assert taken["level"] == "none"
    assert str(CPUS[1]) in taken["reason"]


def test_strict_refuses_less_than_requested_and_names_the_instance() -> None:
    with pytest.raises(MachineError) as caught:
        choose(instance(0), instance(1, nodes=(NO_NODE,)), strict=True)
    message = str(caught.value)
    assert f"instance 1 (cpus {CPUS[0]}, nodes {NO_NODE}): bind was requested, only cpus is possible" in message
    assert "instance 0" not in message
    assert "--strict" in message
    assert caught.value.exit_code == 3


CHILD = """
import json, sys
from launcher.core.planning.plan import InstancePlan, Plan
from launcher.host.process.probe_binding import choose_bindings
instances = [InstancePlan(i, tuple(cpus), tuple(cpus), len(cpus), tuple(nodes), memory, None, '')
             for i, cpus, nodes, memory in json.loads(sys.argv[1])]
bindings = choose_bindings(Plan(tuple(instances), (), ()), strict=False, probe_seconds=20)
print(json.dumps([{'level': b.level, 'tool': b.tool, 'reason': b.reason} for b in bindings]))
"""


def in_child(instances: list[InstancePlan], *, before: list[str], path: str | None = None) -> list[dict[str, str]]:
    """The bindings chosen in a process that runs under ``before``."""
    wish = json.dumps([[one.id, one.cpus, one.nodes, one.memory] for one in instances])
    env = {**os.environ, **({} if path is None else {"PATH": path})}
    command = [*before, sys.executable, "-c", CHILD, wish]
    ran = subprocess.run(command, capture_output=True, text=True, env=env, timeout=100, check=False)
    assert ran.returncode == 0, ran.stderr
    chosen: list[dict[str, str]] = json.loads(ran.stdout)
    return chosen


def denying(*calls: int) -> list[str]:
    if platform.machine() not in CALLS:
        pytest.skip(f"the numbers of the system calls on {platform.machine()} are not known to this test")
    numbers = ",".join(f"{CALLS[platform.machine()][call]}:{errno.EPERM}" for call in calls)
    return [sys.executable, str(DENY), numbers]


MBIND, SET_MEMPOLICY, GET_MEMPOLICY = 0, 1, 2


@needs_numactl
def test_with_set_mempolicy_refused_cpus_are_still_bound() -> None:
    (binding,) = in_child([instance()], before=denying(SET_MEMPOLICY, MBIND))
    assert (binding["level"], binding["tool"]) == ("cpus", "numactl")
    assert "bind, preferred by numactl" not in binding["reason"], "the two levels are refused with different messages"
    assert "set_mempolicy: Operation not permitted; setting membind: Operation not permitted" in binding["reason"]
    assert "bind by syscalls: memory bind on node" in binding["reason"]


@needs_numactl
def test_with_all_memory_policy_calls_refused_cpus_are_still_bound() -> None:
    (binding,) = in_child([instance()], before=denying(SET_MEMPOLICY, MBIND, GET_MEMPOLICY))
    assert binding["level"] == "cpus"
    assert "Operation not permitted" in binding["reason"] or "NUMA" in binding["reason"]


def test_without_numactl_and_set_mempolicy_cpus_are_still_bound(tmp_path: Path) -> None:
    (binding,) = in_child([instance()], before=denying(SET_MEMPOLICY, MBIND), path=str(tmp_path))
    assert (binding["level"], binding["tool"]) == ("cpus", "syscalls")
    assert binding["reason"].startswith("numactl is not installed; bind by syscalls: memory bind on node")
    assert "was refused by set_mempolicy: Operation not permitted" in binding["reason"]


def fake_numactl(folder: Path, script: str) -> str:
    """A PATH on which ``numactl`` is this shell script."""
    tool = folder / "numactl"
    tool.write_text(f"#!/bin/sh\n{script}\n")
    tool.chmod(0o755)
    return f"{folder}:{os.environ['PATH']}"


def test_a_numactl_that_silently_binds_nothing_is_detected(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A wrapper script on PATH, or a sandbox that answers every call with success."""
    if len(CPUS) < 2:
        pytest.skip("needs two cpus")
    ignore = 'while [ "${1#/}" = "$1" ]; do shift; done; exec "$@"'
    monkeypatch.setenv("PATH", fake_numactl(tmp_path, ignore))
    (binding,) = choose(instance(0, CPUS[:1]))
    assert (binding.level, binding.tool) == ("bind", "syscalls")
    assert f"no error, but the process got cpus {format_cpu_list(CPUS)} instead of {CPUS[0]}" in binding.reason


def test_a_numactl_that_crashes_is_reported_with_its_output(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", fake_numactl(tmp_path, "echo 'libnuma.so.1: cannot open shared object' >&2; exit 127"))
    (binding,) = choose(instance())
    assert (binding.level, binding.tool) == ("bind", "syscalls")
    assert binding.reason == "bind by numactl: libnuma.so.1: cannot open shared object"


def test_a_failure_without_output_is_reported_with_its_status(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", fake_numactl(tmp_path, "exit 7"))
    (binding,) = choose(instance())
    assert "the probe exited with status 7 and no output" in binding.reason


def test_a_probe_that_hangs_is_ended_after_the_timeout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", fake_numactl(tmp_path, "exec sleep 60"))
    (binding,) = choose_bindings(plan(instance()), strict=False, probe_seconds=1.0)
    assert "by numactl: the probe did not exit within 1 s" in binding.reason


@needs_numactl
def test_the_usage_that_numactl_prints_is_omitted() -> None:
    (binding,) = choose(instance(cpus=(NO_CPU,)))
    assert "usage" not in binding.reason
    assert "numactl: libnuma: Warning: cpu argument" in binding.reason
    assert len(binding.reason) < 400


def test_bindings_are_described_once_for_all_instances_that_share_them() -> None:
    refused = Binding("cpus", "numactl", "bind by numactl: set_mempolicy: Operation not permitted")
    missing = Binding("bind", "syscalls", "numactl is not installed")
    each = plan(*[instance(number) for number in range(5)])
    said = describe_bindings(each, [refused, refused, Binding("bind", "numactl", "as requested"), missing, refused])
    assert said == (
        "Each of instances 0-1,4 is bound to its cpus only; the kernel chooses the nodes of its memory: "
        "bind by numactl: set_mempolicy: Operation not permitted.",
        "Instance 3 is bound to its cpus and nodes (by system calls): numactl is not installed.",
    )
