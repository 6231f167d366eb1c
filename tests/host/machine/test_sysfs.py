"""The reader against all recorded machines and their ground truth, described machines, and broken trees."""

from __future__ import annotations

import functools
import json
import os
import subprocess
import sys
import time
from collections import defaultdict
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import psutil
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from launcher.core.machine.cpuset import parse_cpu_list
from launcher.core.machine.topology import Core, Machine, machine_from_json, machine_to_json
from launcher.errors import MachineError, UsageError
from launcher.host.machine.sysfs import read_machine
from launcher.options.choices import IsolatedPolicy
from tests.machines import Described, DescribedCpu, build, each_recorded, recorded, regular, truth

CPU = "sys/devices/system/cpu"

Groups = list[tuple[int, ...]]


@functools.cache
def _read(name: str, isolated: IsolatedPolicy = "auto") -> Machine:
    return read_machine(recorded(name), isolated=isolated)


def _groups(cores: tuple[Core, ...], what: str) -> dict[int, tuple[int, ...]]:
    found: dict[int, list[int]] = defaultdict(list)
    for core in cores:
        label = getattr(core, what)
        if label is not None:
            found[label].extend(core.cpus)
    return {label: tuple(sorted(cpus)) for label, cpus in found.items()}


def _limited(groups: list[list[int]], allowed: set[int]) -> Groups:
    left = (tuple(cpu for cpu in group if cpu in allowed) for group in groups)
    return sorted(group for group in left if group)


def _has_level_3(root: Path) -> bool:
    return any(path.read_text().strip("\0\n ") == "3" for path in root.glob(f"{CPU}/cpu*/cache/index*/level"))


@each_recorded()
def test_cores_are_the_usable_ones_reported_by_the_kernel(name: str) -> None:
    known = truth(name)
    machine = _read(name, isolated="use")
    allowed = set(known["cpus_allowed"])
    assert [core.cpus for core in machine.cores] == _limited(known["kernel_cores"], allowed)
    assert [core.id for core in machine.cores] == list(range(len(machine.cores)))
    first = [core.cpus[0] for core in machine.cores]
    if allowed == set(known["kernel_online"]):
        assert first == sorted(known["kernel_first_pus"])
    if known["hwloc_cores_equal_kernel"]:
        assert first == sorted(known["first_pus_allowed"])


@each_recorded()
def test_online_allowed_and_isolated_cpus_match_the_ground_truth(name: str) -> None:
    known = truth(name)
    machine = _read(name)
    assert list(machine.online) == known["kernel_online"]
    assert list(machine.allowed) == known["cpus_allowed"]
    assert list(machine.isolated) == known["isolated"]
    used = {cpu for core in machine.cores for cpu in core.cpus}
    assert used == set(known["cpus_allowed"]) - set(known["isolated"])


@each_recorded()
def test_packages_and_nodes_are_those_reported_by_the_kernel(name: str) -> None:
    known = truth(name)
    machine = _read(name, isolated="use")
    allowed = set(known["cpus_allowed"])
    packages = {
        int(key): tuple(cpu for cpu in cpus if cpu in allowed) for key, cpus in known["kernel_packages"].items()
    }
    assert _groups(machine.cores, "package") == {key: cpus for key, cpus in packages.items() if key >= 0 and cpus}
    assert {str(node.id): list(node.cpus) for node in machine.nodes} == known["kernel_nodes"]
    assert [node.id for node in machine.nodes if not node.cpus] == known["kernel_cpuless_nodes"]
    listed = {int(key): set(cpus) for key, cpus in known["kernel_nodes"].items()}
    for core in machine.cores:
        homes = [node for node, cpus in sorted(listed.items()) if core.cpus[0] in cpus]
        assert core.node == (homes[0] if homes else None)


@each_recorded()
def test_l3_groups_match_the_ground_truth_if_the_kernel_reports_l3_caches(name: str) -> None:
    known = truth(name)
    root = recorded(name)
    machine = _read(name, isolated="use")
    # If the kernel shows none, the ground truth may still have the memory-side caches of Xeon Phi.
    stated = [group["cpus"] for group in known["l3_groups"]] if _has_level_3(root) else []
    assert sorted(_groups(machine.cores, "l3").values()) == _limited(stated, set(known["cpus_allowed"]))


@each_recorded()
def test_kinds_match_the_kernel_or_else_the_ground_truth(name: str) -> None:
    known = truth(name)
    root = recorded(name)
    machine = _read(name, isolated="use")
    slow = {core.cpus for core in machine.cores if core.kind == "efficiency"}
    counters = root / "sys/devices/cpu_atom/cpus"
    if counters.exists():
        expected = set(parse_cpu_list(counters.read_text()))
    else:
        ranks = {cpu: core["kind"] or 0 for core in known["cores"] for cpu in core["pus"]}
        expected = {cpu for cpu, rank in ranks.items() if rank < max(ranks.values())}
    assert slow == {core.cpus for core in machine.cores if core.cpus[0] in expected}


@each_recorded()
def test_memory_and_distances_of_nodes_are_as_recorded(name: str) -> None:
    known = {node["id"]: node["memory_bytes"] for node in truth(name)["numa_nodes"]}
    root = recorded(name)
    machine = _read(name)
    for node in machine.nodes:
        folder = root / f"sys/devices/system/node/node{node.id}"
        if not (folder / "meminfo").exists():
            assert node.memory_bytes is None
        elif node.id in known:
            assert node.memory_bytes == known[node.id]
        if (folder / "distance").exists():
            assert [distance for _, distance in node.distances] == [
                int(word) for word in (folder / "distance").read_text().split()
            ]
            assert node.distance(node.id) == min(distance for _, distance in node.distances)


@each_recorded()
def test_a_recorded_machine_survives_json(name: str) -> None:
    machine = _read(name)
    again = machine_from_json(json.loads(json.dumps(machine_to_json(machine))))
    forgotten = tuple(replace(node, free_bytes=None) for node in machine.nodes)
    assert again == replace(machine, nodes=forgotten, free_bytes=None)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("hw-8em64t-2s2ca2c-buggynuma", ["several nodes", "cpus 0-7 in nodes 0-7", "node*/cpumap"]),
        ("hw-8ia64-2s2c2t", ["siblings", "different L3 caches", "cpus 0-1", "cpus 6-7"]),
        ("hw-64fake-4n2s2ca2c2t", ["lists", "masks", "shared_cpu_list", "cpu8/"]),
        ("hw-nvidiagpunumanodes", ["cpusets", "effective_cpus", "88-175"]),
        ("ul-sparc64-UltraSparc-T1", ["list offline cpus", "node 0 cpus 24-35"]),
        ("ul-loongarch-kvm_on_loongson_3c6000", ["L3 caches", "span packages", "cpus 0-31 of packages 0-31"]),
    ],
)
def test_a_contradiction_is_named_with_its_cpus_and_files(name: str, words: list[str]) -> None:
    machine = _read(name)
    assert any(all(word in warning for word in words) for warning in machine.warnings), machine.warnings
    assert machine.cores


@pytest.mark.parametrize("name", ["dv-2xEPYC-7763", "dv-2xXeonMax9460", "hw-20em64t-hybrid-1p6c2t+2ca4co1t"])
def test_a_sound_machine_has_no_warnings(name: str) -> None:
    assert _read(name).warnings == ()


def test_isolated_cpus_are_used_only_on_request() -> None:
    root = recorded("nri-server")
    without, with_them = read_machine(root), read_machine(root, isolated="use")
    isolated = set(without.isolated)
    assert isolated == {4, 5, 6, 7, 60, 61, 62, 63}
    assert not any(isolated & set(core.cpus) for core in without.cores)
    assert len(with_them.cores) == len(without.cores) + 4


@st.composite
def described_machines(draw: st.DrawFn) -> Described:
    """Machines with packages, nodes, caches and cores of unequal sizes, numbered at random, some cpus offline."""
    labels = iter(range(10_000))
    shape: list[tuple[int, int | None, int | None, int | None]] = []
    with_nodes = draw(st.booleans())
    for package in range(draw(st.integers(1, 3))):
        for _ in range(draw(st.integers(1, 2))):
            node = next(labels) if with_nodes else None
            for _ in range(draw(st.integers(1, 2))):
                l3 = draw(st.sampled_from([None, next(labels)]))
                for _ in range(draw(st.integers(1, 3))):
                    core, threads = next(labels), draw(st.integers(1, 3))
                    shape.extend([(core, package, node, l3)] * threads)
    ids = draw(st.permutations(range(len(shape))))
    gap = draw(st.integers(0, 2))
    online = draw(st.lists(st.booleans(), min_size=len(shape), max_size=len(shape)).filter(any))
    cpus = {
        place * (gap + 1): DescribedCpu(core, package, node, l3, alive)
        for place, (core, package, node, l3), alive in zip(ids, shape, online, strict=True)
    }
    nodes = sorted({one.node for one in cpus.values() if one.node is not None})
    memory = {node: draw(st.integers(0, 64)) << 30 for node in nodes}
    if nodes and draw(st.booleans()):
        memory[next(labels)] = 4 << 30  # a node without cpus
    distances = {node: [10 if node == other else 20 for other in sorted(memory)] for node in memory}
    forms = draw(st.sampled_from([(True, True), (True, False), (False, True)]))
    return Described(
        dict(sorted(cpus.items())), memory, distances, masks=forms[0], lists=forms[1], nul=draw(st.booleans())
    )


@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(described_machines())
def test_a_described_machine_is_read_as_described(described: Described) -> None:
    with TemporaryDirectory() as folder:
        machine = read_machine(build(Path(folder), described))
    assert machine.present == tuple(described.cpus)
    assert machine.online == machine.allowed == described.online
    assert [core.cpus for core in machine.cores] == sorted(described.grouped("core").values())
    assert _groups(machine.cores, "package") == described.grouped("package")
    assert _groups(machine.cores, "node") == described.grouped("node")
    assert sorted(_groups(machine.cores, "l3").values()) == sorted(described.grouped("l3").values())
    assert {node.id: node.cpus for node in machine.nodes} == described.nodes
    assert {node.id: node.memory_bytes for node in machine.nodes} == described.memory
    assert all(core.kind == "performance" for core in machine.cores)
    assert machine.limits.affinity is None
    assert [one for one in machine.warnings if "memory" not in one] == []


def test_efficiency_cores_of_a_hybrid_machine_are_recognized_by_its_pmu_devices(tmp_path: Path) -> None:
    machine = read_machine(build(tmp_path, regular(cores=4, threads=1, efficiency=(2, 3))))
    assert [core.kind for core in machine.cores] == ["performance", "performance", "efficiency", "efficiency"]


@pytest.mark.parametrize(
    ("file", "values", "slow"),
    [
        ("cpu_capacity", [1024, 1024, 485, 485], [2, 3]),
        # The three core sizes of a phone: only the small one is another kind.
        ("cpu_capacity", [1024, 871, 871, 350], [3]),
        ("cpu_capacity", [1024, 1024, 1000, 1000], []),
        ("cpufreq/cpuinfo_max_freq", [5000000, 5200000, 3900000, 3900000], [2, 3]),
        ("cpufreq/cpuinfo_max_freq", [5200000, 5000000, 5000000, 5000000], []),  # turbo bins
    ],
)
def test_kinds_come_from_capacity_or_clock_if_the_gap_is_wide(
    tmp_path: Path, file: str, values: list[int], slow: list[int]
) -> None:
    files = {f"{CPU}/cpu{cpu}/{file}": str(value) for cpu, value in enumerate(values)}
    machine = read_machine(build(tmp_path, regular(cores=4, threads=1, files=files)))
    assert [core.id for core in machine.cores if core.kind == "efficiency"] == slow


@pytest.mark.parametrize(("favoured", "kinds"), [(3_900_000, "ppee"), (4_300_000, "pppp")])
def test_base_clocks_make_kinds_only_if_the_highest_clocks_are_equal(tmp_path: Path, favoured: int, kinds: str) -> None:
    files = {f"{CPU}/cpu{cpu}/cpufreq/cpuinfo_max_freq": str(favoured if cpu == 0 else 3_900_000) for cpu in range(4)}
    files |= {f"{CPU}/cpu{cpu}/cpufreq/base_frequency": str(2_800_000 - 700_000 * (cpu > 1)) for cpu in range(4)}
    machine = read_machine(build(tmp_path, regular(cores=4, threads=1, files=files)))
    assert "".join(core.kind[0] for core in machine.cores) == kinds


def test_siblings_of_which_only_one_lists_the_other_are_two_cores_and_reported(tmp_path: Path) -> None:
    files = {f"{CPU}/cpu0/topology/thread_siblings{form}": text for form, text in (("", "5"), ("_list", "0,2"))}
    machine = read_machine(build(tmp_path, regular(cores=4, threads=1, files=files)))
    assert [core.cpus for core in machine.cores] == [(0,), (1,), (2,), (3,)]
    assert any("cpu 0 lists 2" in warning for warning in machine.warnings)


def test_a_cpu_without_files_joins_the_cpus_that_list_it(tmp_path: Path) -> None:
    build(tmp_path, regular(cores=2, threads=2))
    for file in (tmp_path / CPU / "cpu2/topology").iterdir():
        file.unlink()
    assert [core.cpus for core in read_machine(tmp_path).cores] == [(0, 2), (1, 3)]


def test_cpus_without_any_topology_are_cores_of_their_own(tmp_path: Path) -> None:
    folder = tmp_path / CPU
    folder.mkdir(parents=True)
    (folder / "online").write_text("0-2\n")
    machine = read_machine(tmp_path)
    assert [(core.cpus, core.package, core.node, core.l3) for core in machine.cores] == [
        ((cpu,), None, None, None) for cpu in range(3)
    ]
    assert machine.nodes == ()
    assert machine.present == machine.online == (0, 1, 2)
    assert (machine.arch, machine.vendor, machine.model, machine.isa) == ("unknown", None, None, ())
    assert machine.to_json()["arch"] is None


def test_without_a_list_of_online_cpus_the_file_of_each_cpu_is_read(tmp_path: Path) -> None:
    described = regular(cores=4, threads=1)
    cpus = {cpu: replace(one, online=cpu != 1) for cpu, one in described.cpus.items()}
    build(tmp_path, replace(described, cpus=cpus))
    (tmp_path / CPU / "online").unlink()
    (tmp_path / CPU / "present").unlink()
    machine = read_machine(tmp_path)
    assert machine.online == (0, 2, 3)
    assert machine.present == (0, 1, 2, 3)


def test_a_core_with_an_offline_cpu_keeps_the_other_one(tmp_path: Path) -> None:
    described = regular(cores=4, threads=2)
    cpus = {cpu: replace(one, online=cpu not in (0, 6)) for cpu, one in described.cpus.items()}
    machine = read_machine(build(tmp_path, replace(described, cpus=cpus)))
    assert [core.cpus for core in machine.cores] == [(1, 5), (2,), (3, 7), (4,)]


def test_malformed_files_are_ignored_and_reported(tmp_path: Path) -> None:
    files = {
        f"{CPU}/isolated": "(null)",
        f"{CPU}/cpu0/topology/physical_package_id": "many",
        f"{CPU}/cpu1/topology/thread_siblings": "xyz",
        f"{CPU}/cpu1/topology/thread_siblings_list": "1-",
        "sys/devices/system/node/node0/distance": "10 far",
    }
    machine = read_machine(build(tmp_path, regular(cores=2, threads=2, files=files)))
    assert machine.isolated == ()
    assert [core.cpus for core in machine.cores] == [(0, 2), (1, 3)]
    text = "\n".join(machine.warnings)
    for sign in ("physical_package_id", "'many'", "cpu1/topology/thread_siblings", "'xyz'", "'1-'", "distance"):
        assert sign in text


def test_an_l3_cache_over_whole_nodes_is_plausible_and_one_that_splits_a_node_is_reported(tmp_path: Path) -> None:
    clusters = regular(nodes=2, cores=4, threads=1)
    whole = replace(clusters, cpus={cpu: replace(one, l3=0) for cpu, one in clusters.cpus.items()})
    assert read_machine(build(tmp_path / "whole", whole)).warnings == ()
    cut = replace(clusters, cpus={cpu: replace(one, l3=int(cpu > 5)) for cpu, one in clusters.cpus.items()})
    warnings = read_machine(build(tmp_path / "cut", cut)).warnings
    assert any(
        "only part of a node" in warning and "cpus 0-5 and node 1 of cpus 4-7" in warning for warning in warnings
    )


def test_the_only_node_has_all_memory_of_the_machine(tmp_path: Path) -> None:
    described = regular(files={"proc/meminfo": "MemTotal: 67108864 kB\nMemAvailable: 33554432 kB"})
    machine = read_machine(build(tmp_path, described))
    assert (machine.nodes[0].memory_bytes, machine.nodes[0].free_bytes) == (64 << 30, 32 << 30)
    assert any("16.0 GiB and 64.0 GiB" in warning for warning in machine.warnings)


def test_free_memory_of_a_node_includes_the_page_cache(tmp_path: Path) -> None:
    machine = read_machine(build(tmp_path, regular()))
    assert machine.nodes[0].free_bytes == (16 << 30) * 5 // 8


@pytest.mark.parametrize("kind", ["missing", "empty", "file", "proc only"])
def test_a_root_without_a_machine_is_refused_with_the_missing_directory(tmp_path: Path, kind: str) -> None:
    root = tmp_path / "root"
    if kind == "file":
        root.write_text("no tree")
    elif kind != "missing":
        (root / "proc").mkdir(parents=True)
    with pytest.raises(UsageError, match=r"is not the root of a machine.*sys/devices/system/cpu"):
        read_machine(root)


def test_a_machine_without_usable_cpus_is_refused_with_its_limits(tmp_path: Path) -> None:
    build(tmp_path, regular(cores=2, threads=1, isolated=(0, 1)))
    with pytest.raises(MachineError, match=r"online 0-1.*isolated 0-1.*use the isolated cpus with --isolated use"):
        read_machine(tmp_path, isolated="avoid")
    assert len(read_machine(tmp_path).cores) == 2
    assert len(read_machine(tmp_path, isolated="use").cores) == 2


@pytest.mark.parametrize(
    ("online", "mask", "cores"),
    [
        ("0", "5", [(5,)]),  # lxcfs with one cpu
        ("0-1", "4,6", [(4,), (6,)]),  # renumbered
        ("0-3", "2-5", [(2,), (3,), (4,), (5,)]),  # overlapping
        ("0-7", "0-63", [(0, 4), (1, 5), (2, 6), (3, 7)]),  # not contradicted: the mask has cpus that do not exist
    ],
)
def test_the_affinity_mask_wins_over_a_virtual_list_of_online_cpus(
    tmp_path: Path, online: str, mask: str, cores: list[tuple[int, ...]]
) -> None:
    build(tmp_path, regular(cores=4, threads=2))
    (tmp_path / CPU / "online").write_text(online)
    (tmp_path / "proc/self").mkdir(parents=True)
    (tmp_path / "proc/self/status").write_text(f"Cpus_allowed_list:\t{mask}\n")
    machine = read_machine(tmp_path)
    assert sorted(cpu for core in machine.cores for cpu in core.cpus) == sorted(cpu for core in cores for cpu in core)
    assert any("lxcfs" in warning for warning in machine.warnings) == (online != "0-7")


def test_an_offline_cpu_of_the_mask_stays_offline(tmp_path: Path) -> None:
    build(tmp_path, regular(cores=4, threads=1))
    (tmp_path / CPU / "online").write_text("0-2")
    (tmp_path / CPU / "cpu3/online").write_text("0")
    (tmp_path / "proc/self").mkdir(parents=True)
    (tmp_path / "proc/self/status").write_text("Cpus_allowed_list:\t0-3\n")
    assert read_machine(tmp_path).online == (0, 1, 2)


def test_links_out_of_the_root_are_not_followed(tmp_path: Path) -> None:
    root = build(tmp_path / "root", regular(cores=2, threads=1))
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "cpuinfo").write_text("vendor_id : GenuineIntel\nmodel name : not this one\n")
    (outside / "isolated").write_text("0\n")
    (root / "proc").symlink_to(outside)
    (root / CPU / "isolated").unlink()
    (root / CPU / "isolated").symlink_to("../../../../../outside/isolated")
    machine = read_machine(root)
    assert (machine.model, machine.isolated) == (None, ())


def test_links_inside_the_root_are_followed(tmp_path: Path) -> None:
    root = build(tmp_path, regular(cores=2, threads=1))
    (root / "sys/devices/system/cpu").rename(root / "sys/devices/system/elsewhere")
    (root / "sys/devices/system/cpu").symlink_to("elsewhere")
    assert len(read_machine(root).cores) == 2


def test_no_fact_of_this_machine_is_read_for_another_one(tmp_path: Path) -> None:
    machine = read_machine(build(tmp_path, regular(cores=2, threads=1)))
    assert (machine.arch, machine.model, machine.isa) == ("unknown", None, ())
    assert (machine.memory_bytes, machine.free_bytes) == (None, None)
    assert machine.limits.affinity is machine.limits.cpu_quota is machine.limits.memory_nodes is None


def test_this_machine_agrees_with_the_operating_system() -> None:
    machine = read_machine()
    affinity = os.sched_getaffinity(0)
    assert set(machine.allowed) <= affinity
    assert machine.limits.affinity == tuple(sorted(affinity))
    assert machine.memory_bytes == psutil.virtual_memory().total
    assert machine.arch == os.uname().machine
    assert len(machine.online) == psutil.cpu_count()


def test_the_affinity_mask_limits_what_is_usable() -> None:
    cpu = max(os.sched_getaffinity(0))
    machine = _read_in_child(f"os.sched_setaffinity(0, [{cpu}])")
    assert machine.allowed == (cpu,)
    assert [core.cpus for core in machine.cores] == [(cpu,)]


def test_if_sys_is_hidden_each_cpu_of_the_mask_is_a_core() -> None:
    code = (
        "from launcher.host.machine.sysfs import read_machine as r; m = r(); print(len(m.cores), m.nodes, m.warnings)"
    )
    script = 'umount -R /sys && mount -t tmpfs none /sys && exec "$0" -c "$1"'
    command = ["unshare", "--mount", "sh", "-c", script, sys.executable, code]
    result = subprocess.run(command, capture_output=True, text=True, timeout=100, check=False)
    if result.returncode and "Traceback" not in result.stderr:
        pytest.skip(f"/sys cannot be hidden here: {result.stderr.strip()}")
    assert result.returncode == 0, result.stderr
    assert result.stdout.startswith(f"{len(os.sched_getaffinity(0))} () (")
    assert "cpus known only from the affinity mask" in result.stdout
    assert "so its cpu quota, cpuset and memory limit are unknown" in result.stdout


def _read_in_child(before: str) -> Machine:
    code = (
        f"import json, os; {before}; from launcher.host.machine.sysfs import read_machine; "
        "from launcher.core.machine.topology import machine_to_json; "
        "print(json.dumps(machine_to_json(read_machine())))"
    )
    output = subprocess.run(
        [sys.executable, "-c", code], check=True, capture_output=True, text=True, timeout=100
    ).stdout
    return machine_from_json(json.loads(output))


SMALL = regular(
    nodes=2,
    cores=2,
    threads=2,
    files={
        "proc/cpuinfo": "vendor_id : GenuineIntel\nmodel name : Fake\nflags : fpu lm avx2",
        "proc/meminfo": "MemTotal: 33554432 kB",
        "proc/self/status": "Cpus_allowed_list: 0-7\nMems_allowed_list: 0-1",
        "proc/self/cgroup": "0::/a",
        "proc/self/mountinfo": "30 24 0:26 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw",
        "sys/fs/cgroup/a/cpu.max": "400000 100000",
        "sys/fs/cgroup/a/memory.max": "1073741824",
        "sys/fs/cgroup/a/cpuset.cpus.effective": "0-7",
        f"{CPU}/cpu0/cpu_capacity": "1024",
        f"{CPU}/cpufreq/policy0/cpuinfo_max_freq": "1000",
        f"{CPU}/cpufreq/policy0/related_cpus": "0 1 2",
    },
)
garbage = st.one_of(
    st.binary(max_size=40),
    st.text("0123456789,-: \n\0abcdefx²", max_size=30).map(str.encode),
    st.sampled_from([b"", b"\0", b"(null)\n", b"9" * 5000, b"-1", b"0-2000", b"ffffffff," * 3000, b"0-3:1/2", b"1e9"]),
)


@settings(max_examples=15, deadline=None)
@given(st.data())
def test_any_file_contents_give_a_machine_or_a_clear_error(data: st.DataObject) -> None:
    with TemporaryDirectory() as folder:
        root = build(Path(folder), SMALL)
        files = sorted(path for path in root.rglob("*") if path.is_file())
        for path in data.draw(st.lists(st.sampled_from(files), min_size=1, max_size=4, unique=True)):
            if data.draw(st.booleans()):
                path.write_bytes(data.draw(garbage))
            else:
                path.unlink()
        try:
            machine = read_machine(root)
        except MachineError:
            return  # the garbage excludes every cpu
        cpus = [cpu for core in machine.cores for cpu in core.cpus]
        assert len(cpus) == len(set(cpus))
        assert set(cpus) <= set(machine.allowed) <= set(machine.online) <= set(machine.present)
        assert {core.node for core in machine.cores} - {None} <= {node.id for node in machine.nodes}


def test_the_reader_imports_no_slow_module() -> None:
    slow = "print([one for one in ('torch', 'cpuinfo', 'numpy') if one in sys.modules])"
    code = f"import sys, launcher.host.machine.sysfs; {slow}"
    result = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True, timeout=100)
    assert result.stdout.strip() == "[]"


@pytest.mark.slow
def test_4096_cpus_are_read_in_two_seconds_of_cpu_time(tmp_path: Path) -> None:
    root = build(tmp_path, regular(packages=16, nodes=2, cores=64, threads=2, l3_cores=8))
    seconds = []
    for _ in range(3):
        start = time.process_time()
        machine = read_machine(root)
        seconds.append(time.process_time() - start)
    assert len(machine.cores) == 2048
    assert len(machine.nodes) == 32
    assert len({core.l3 for core in machine.cores}) == 256
    assert min(seconds) < 2, seconds


def test_the_processor_of_a_recorded_machine_is_read() -> None:
    machine: Any = read_machine(recorded("ul-x86_64-64cpu-linux6.2"))
    assert (machine.arch, machine.vendor) == ("x86_64", "GenuineIntel")
    assert machine.model == "11th Gen Intel(R) Core(TM) i7-1165G7 @ 2.80GHz"
    assert machine.isa == ("avx512_vnni", "avx512f", "avx2", "avx", "fma", "f16c", "sse4_2")


def test_systems_other_than_linux_are_refused_with_what_is_possible_there() -> None:
    """In a process of its own, in which Python says that it runs on macOS."""
    code = (
        "import sys; from launcher.host.machine.sysfs import read_machine; from launcher.errors import MachineError\n"
        "sys.platform = 'darwin'\n"
        "try: read_machine()\n"
        "except MachineError as error: print(error)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=100)
    assert "Linux kernel, and this is darwin" in done.stdout
    assert "launch topology --machine NAME" in done.stdout
