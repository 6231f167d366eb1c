"""Limits of cgroups: every layout as a tree, and real groups of this machine with a child process inside."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from launcher.core.machine.topology import Limits
from launcher.errors import MachineError
from launcher.host.machine.cgroup import MemoryUse, Throttling, read_bounds, read_memory_use, read_throttling
from launcher.host.machine.file_tree import Tree
from launcher.host.machine.sysfs import read_machine
from tests.machines import build, recorded, regular

# Run by a process inside a control group.
READ_BOUNDS = (
    "from pathlib import Path; from launcher.host.machine.cgroup import read_bounds; "
    "from launcher.host.machine.file_tree import Tree; bounds = read_bounds(Tree(Path('/')))"
)
V2_MOUNT = "30 24 0:26 / /sys/fs/cgroup rw,nosuid - cgroup2 cgroup2 rw,nsdelegate"


def _v1_mount(controller: str, top: str = "/", folder: str | None = None) -> str:
    place = folder or f"/sys/fs/cgroup/{controller}"
    return f"31 24 0:27 {top} {place} rw,nosuid shared:9 - cgroup cgroup rw,{controller}"


def _tree(root: Path, files: dict[str, str]) -> Tree:
    for path, text in files.items():
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_text(text + "\n")
    return Tree(root)


def _v2(own: str, files: dict[str, str], mounts: str = V2_MOUNT) -> dict[str, str]:
    return {"proc/self/cgroup": f"0::{own}", "proc/self/mountinfo": mounts} | {
        f"sys/fs/cgroup/{path}": text for path, text in files.items()
    }


def test_the_cpuset_of_version_1_is_that_of_the_own_group(tmp_path: Path) -> None:
    files = {
        "proc/self/cgroup": "2:cpuset:/job/step",
        "proc/self/mountinfo": _v1_mount("cpuset"),
        "sys/fs/cgroup/cpuset/cpuset.cpus": "0-7",
        "sys/fs/cgroup/cpuset/job/cpuset.cpus": "0",
        "sys/fs/cgroup/cpuset/job/step/cpuset.cpus": "0-5",
    }
    assert read_bounds(_tree(tmp_path / "own", files)).cpuset == tuple(range(6))
    del files["sys/fs/cgroup/cpuset/job/step/cpuset.cpus"]
    assert read_bounds(_tree(tmp_path / "above", files)).cpuset == (0,)


def test_a_copy_without_a_mount_table_keeps_the_limits_at_their_usual_places(tmp_path: Path) -> None:
    unified = {
        "proc/self/cgroup": "0::/pod/box",
        "sys/fs/cgroup/cgroup.controllers": "cpuset cpu memory",
        "sys/fs/cgroup/pod/box/cpu.max": "700000 100000",
        "sys/fs/cgroup/pod/box/cpuset.cpus.effective": "0-23",
        "sys/fs/cgroup/pod/memory.max": "1000000",
    }
    bounds = read_bounds(_tree(tmp_path / "v2", unified))
    assert (bounds.limits.cpu_quota, bounds.cpuset) == (7.0, tuple(range(24)))
    assert bounds.limits.memory_bytes == 1_000_000
    old = {
        "proc/self/cgroup": "4:memory:/box\n3:cpu,cpuacct:/box\n2:cpuset:/box",
        "sys/fs/cgroup/cpu,cpuacct/box/cpu.cfs_quota_us": "250000",
        "sys/fs/cgroup/cpu,cpuacct/box/cpu.cfs_period_us": "100000",
        "sys/fs/cgroup/cpuset/box/cpuset.cpus": "2-3",
        "sys/fs/cgroup/memory/box/memory.limit_in_bytes": "2000000",
    }
    bounds = read_bounds(_tree(tmp_path / "v1", old))
    assert (bounds.limits.cpu_quota, bounds.cpuset) == (2.5, (2, 3))
    assert bounds.limits.memory_bytes == 2_000_000


def test_a_group_without_any_hierarchy_is_reported(tmp_path: Path) -> None:
    tree = _tree(tmp_path, {"proc/self/cgroup": "0::/pod/box"})
    assert read_bounds(tree).limits == Limits()
    assert any("memory limit are unknown: /pod/box" in sentence for sentence in tree.anomalies.sentences())


def test_without_cgroup_files_no_limit_is_known(tmp_path: Path) -> None:
    assert read_bounds(Tree(tmp_path)).limits == Limits()
    assert read_throttling(tmp_path) is None


@pytest.mark.parametrize(
    ("files", "quota"),
    [
        ({"a/b/cpu.max": "max 100000", "a/cpu.max": "max 100000"}, None),
        ({"a/b/cpu.max": "150000 100000", "a/cpu.max": "max 100000"}, 1.5),
        ({"a/b/cpu.max": "max 100000", "a/cpu.max": "250000 100000"}, 2.5),
        ({"a/b/cpu.max": "400000 100000", "a/cpu.max": "50000 20000"}, 2.5),
        ({"a/b/cpu.max": "5000 10000", "a/cpu.max": "50000 20000"}, 0.5),
        ({"cpu.max": "100000 100000"}, 1.0),  # a container's own root shows its limit
        ({"a/b/cpu.max": "100000"}, None),
        ({"a/b/cpu.max": "nonsense 1"}, None),
        ({"a/b/cpu.max": "100000 0"}, None),
        ({"a/other/cpu.max": "1000 100000"}, None),
    ],
)
def test_the_lowest_quota_of_all_ancestors_applies(tmp_path: Path, files: dict[str, str], quota: float | None) -> None:
    (tmp_path / "sys/fs/cgroup/a/b").mkdir(parents=True)
    assert read_bounds(_tree(tmp_path, _v2("/a/b", files))).limits.cpu_quota == quota


@pytest.mark.parametrize(
    ("own", "above", "quota"),
    [(-1, -1, None), (50000, -1, 0.5), (-1, 150000, 1.5), (300000, 200000, 2.0), (0, -1, None)],
)
def test_quotas_of_version_1_are_nested_too(tmp_path: Path, own: int, above: int, quota: float | None) -> None:
    folder = "sys/fs/cgroup/cpu,cpuacct"
    tree = _tree(
        tmp_path,
        {
            "proc/self/cgroup": "5:cpuset:/\n4:cpu,cpuacct:/x/y\n0::/elsewhere",
            "proc/self/mountinfo": _v1_mount("cpu,cpuacct"),
            f"{folder}/x/y/cpu.cfs_quota_us": str(own),
            f"{folder}/x/y/cpu.cfs_period_us": "100000",
            f"{folder}/x/cpu.cfs_quota_us": str(above),
            f"{folder}/x/cpu.cfs_period_us": "100000",
        },
    )
    assert read_bounds(tree).limits.cpu_quota == quota


@pytest.mark.parametrize(
    ("own", "top", "folder"),
    [
        ("/docker/abc", "/docker/abc", ""),  # the host's path, with only the container's part mounted
        ("/docker/abc/sub", "/docker/abc", "sub/"),
        ("/", "/", ""),  # a cgroup namespace
        ("/docker/abc", "/", ""),  # the host's path, which is not visible
        ("/sub", "/", "sub/"),
        ("/", "/../..", ""),  # mounted from above the namespace of the process
    ],
)
def test_the_group_of_the_process_is_found_if_only_part_of_the_hierarchy_is_visible(
    tmp_path: Path, own: str, top: str, folder: str
) -> None:
    mounts = V2_MOUNT.replace(" / ", f" {top} ", 1)
    tree = _tree(tmp_path, _v2(own, {f"{folder}cpu.max": "50000 100000"}, mounts))
    assert read_bounds(tree).limits.cpu_quota == 0.5


@pytest.mark.parametrize(("own", "top"), [("/mine", "/other"), ("/mine2", "/mine"), ("/../other", "/")])
def test_limits_of_other_groups_do_not_apply(tmp_path: Path, own: str, top: str) -> None:
    mounts = V2_MOUNT.replace(" / ", f" {top} ", 1)
    tree = _tree(tmp_path, _v2(own, {"cpu.max": "50000 100000"}, mounts))
    assert read_bounds(tree).limits.cpu_quota is None


def test_with_both_versions_mounted_each_controller_is_read_from_its_own_hierarchy(tmp_path: Path) -> None:
    mounts = "\n".join(
        [_v1_mount("cpu"), _v1_mount("cpuset"), V2_MOUNT.replace("/sys/fs/cgroup", "/sys/fs/cgroup/unified")]
    )
    tree = _tree(
        tmp_path,
        {
            "proc/self/cgroup": "2:cpuset:/s\n1:cpu:/c\n0::/u",
            "proc/self/mountinfo": mounts,
            "sys/fs/cgroup/cpu/c/cpu.cfs_quota_us": "300000",
            "sys/fs/cgroup/cpu/c/cpu.cfs_period_us": "100000",
            "sys/fs/cgroup/cpuset/s/cpuset.cpus": "2-3",
            "sys/fs/cgroup/cpuset/s/cpuset.mems": "1",
            "sys/fs/cgroup/unified/u/memory.max": "1073741824",
        },
    )
    bounds = read_bounds(tree)
    assert bounds.cpuset == (2, 3)
    assert bounds.limits == Limits(cpu_quota=3.0, memory_nodes=(1,), memory_bytes=1 << 30)


def test_a_mount_point_with_a_space_is_found(tmp_path: Path) -> None:
    mounts = V2_MOUNT.replace("/sys/fs/cgroup", "/odd\\040place")
    tree = _tree(tmp_path, _v2("/", {}, mounts) | {"odd place/cpu.max": "50000 100000"})
    assert read_bounds(tree).limits.cpu_quota == 0.5


@pytest.mark.parametrize(
    ("files", "cpus"),
    [
        ({"a/b/cpuset.cpus.effective": "2-3", "a/cpuset.cpus.effective": "0-5"}, (2, 3)),
        (
            {"a/cpuset.cpus.effective": "0-5", "cpuset.cpus.effective": "0-7"},
            (0, 1, 2, 3, 4, 5),
        ),  # not enabled below a
        ({"a/b/cpuset.cpus": "", "a/cpuset.cpus": "1"}, (1,)),
        ({"a/b/cpuset.cpus.effective": "", "a/cpuset.cpus.effective": "1"}, ()),
        ({}, None),
    ],
)
def test_the_effective_cpuset_is_the_nearest_one_restricted_by_its_ancestors(
    tmp_path: Path, files: dict[str, str], cpus: tuple[int, ...] | None
) -> None:
    (tmp_path / "sys/fs/cgroup/a/b").mkdir(parents=True)
    assert read_bounds(_tree(tmp_path, _v2("/a/b", files))).cpuset == cpus


@pytest.mark.parametrize(
    ("files", "size"),
    [
        ({"a/memory.max": "max", "a/memory.high": "max"}, None),
        ({"a/memory.max": "4294967296"}, 4 << 30),
        ({"a/memory.max": "4294967296", "a/memory.high": "2147483648"}, 2 << 30),
        ({"a/memory.max": "4294967296", "memory.max": "1073741824"}, 1 << 30),
    ],
)
def test_memory_limits_of_version_2(tmp_path: Path, files: dict[str, str], size: int | None) -> None:
    (tmp_path / "sys/fs/cgroup/a").mkdir(parents=True)
    assert read_bounds(_tree(tmp_path, _v2("/a", files))).limits.memory_bytes == size


@pytest.mark.parametrize(
    ("limit", "stat", "size"),
    [
        ("9223372036854771712", "cache 0\nhierarchical_memory_limit 9223372036854771712", None),
        ("2147483648", "cache 0", 2 << 30),
        ("9223372036854771712", "hierarchical_memory_limit 1073741824", 1 << 30),  # of a group that is not visible
    ],
)
def test_memory_limits_of_version_1(tmp_path: Path, limit: str, stat: str, size: int | None) -> None:
    tree = _tree(
        tmp_path,
        {
            "proc/self/cgroup": "7:memory:/",
            "proc/self/mountinfo": _v1_mount("memory"),
            "sys/fs/cgroup/memory/memory.limit_in_bytes": limit,
            "sys/fs/cgroup/memory/memory.stat": stat,
        },
    )
    assert read_bounds(tree).limits.memory_bytes == size


def test_memory_nodes_are_limited_by_mems_allowed_the_cpuset_and_node_memory(tmp_path: Path) -> None:
    described = regular(packages=4, cores=1, threads=1)
    memory = {**described.memory, 2: 0}
    root = build(tmp_path, type(described)(described.cpus, memory))
    files = _v2("/", {"cpuset.mems.effective": "1-3"})
    status = "Cpus_allowed:\tf\nCpus_allowed_list:\t1-3\nMems_allowed_list:\t0-2,7"
    _tree(root, files | {"proc/self/status": status})
    machine = read_machine(root)
    assert machine.limits.memory_nodes == (1,)
    assert machine.limits.affinity == machine.allowed == (1, 2, 3)


def test_an_empty_cpuset_is_a_machine_error(tmp_path: Path) -> None:
    root = build(tmp_path, regular(cores=2, threads=1))
    _tree(root, _v2("/", {"cpuset.cpus.effective": ""}))
    with pytest.raises(MachineError, match=r"online 0-1; cpuset empty.*Widen the cpuset"):
        read_machine(root)


@pytest.mark.parametrize(
    ("name", "cpuset", "nodes"),
    [
        ("hw-16amd64-8n2c-cpusets", (0, 1, 2, 3, 4, 5, 6, 12, 13, 14, 15), (1, 2, 3, 4)),  # a mount of type cpuset
        (
            "hw-16em64t-4s2ca2c-cpusetreorder",
            (2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 13),
            (0,),
        ),  # cgroup, files without prefix
        ("hw-32amd64-4s2n4c-cgroup2", (0, 1, 2, 3, 4, 5), (0, 1, 2, 3, 4, 5)),
    ],
)
def test_recorded_cpusets_of_each_kind_are_read(name: str, cpuset: tuple[int, ...], nodes: tuple[int, ...]) -> None:
    bounds = read_bounds(Tree(recorded(name)))
    assert (bounds.cpuset, bounds.limits.memory_nodes) == (cpuset, nodes)


def test_throttling_is_summed_over_all_ancestors(tmp_path: Path) -> None:
    (tmp_path / "sys/fs/cgroup/a").mkdir(parents=True)
    stat = "usage_usec 9\nnr_periods {}\nnr_throttled {}\nthrottled_usec {}"
    files = {"a/cpu.stat": stat.format(10, 2, 1_500_000), "cpu.stat": stat.format(100, 1, 500_000)}
    _tree(tmp_path, _v2("/a", files))
    assert read_throttling(tmp_path) == Throttling(periods=110, throttled=3, seconds=2.0)


@dataclass(frozen=True)
class _Group:
    """A real group of version 1 in each controller, with the same name."""

    name: str

    def folder(self, controller: str) -> Path:
        return Path("/sys/fs/cgroup") / controller / self.name

    def set(self, file: str, value: str) -> None:
        (self.folder(file.partition(".")[0]) / file).write_text(value)

    def run(self, code: str, *, prefix: str = "") -> str:
        """Run Python in the group: a shell enters it first, so that the whole program is inside."""
        enter = "; ".join(f"echo $$ > {self.folder(one)}/cgroup.procs" for one in CONTROLLERS)
        script = f'set -e; {enter}; {prefix} "$0" -c "$1"'
        command = ["sh", "-c", script, sys.executable, code]
        result = subprocess.run(command, capture_output=True, text=True, timeout=100, check=False)
        assert result.returncode == 0, result.stderr
        return result.stdout


CONTROLLERS = ("cpu", "cpuset", "memory")


@pytest.fixture
def group() -> Iterator[_Group]:
    made: list[Path] = []
    group = _Group(f"launcher-test-{os.getpid()}")
    try:
        for controller in CONTROLLERS:
            group.folder(controller).mkdir()
            made.append(group.folder(controller))
        for what in ("cpus", "mems"):
            group.set(f"cpuset.{what}", (Path("/sys/fs/cgroup/cpuset") / f"cpuset.effective_{what}").read_text())
    except OSError as error:
        for folder in reversed(made):
            folder.rmdir()
        pytest.skip(f"no cgroups of version 1 can be made here: {error}")
    yield group
    for folder in reversed(made):
        for nested in folder.glob("*/"):
            nested.rmdir()
        folder.rmdir()


READ = (
    "import json; from launcher.host.machine.sysfs import read_machine; m = read_machine(); "
    "print(json.dumps([m.to_json(), list(m.warnings)]))"
)


def test_a_real_cpuset_quota_and_memory_limit_are_obeyed(group: _Group) -> None:
    last = max(os.sched_getaffinity(0))
    group.set("cpuset.cpus", str(last))
    group.set("cpu.cfs_quota_us", "150000")
    group.set("memory.limit_in_bytes", str(2 << 30))
    machine, _ = json.loads(group.run(READ))
    assert machine["cpus"]["allowed"] == machine["limits"]["affinity"] == str(last)
    assert [core["cpus"] for core in machine["cores"]] == [[last]]
    assert machine["limits"]["cpu_quota"] == 1.5
    assert machine["limits"]["memory_bytes"] == 2 << 30
    assert machine["limits"]["memory_nodes"] == "0"


def test_a_real_nested_quota_applies_if_it_is_lower(group: _Group) -> None:
    group.set("cpu.cfs_quota_us", "120000")
    inner = _Group(f"{group.name}/inner")
    inner.folder("cpu").mkdir()
    enter = f"echo $$ > {inner.folder('cpu')}/cgroup.procs;"
    code = f"{READ_BOUNDS}; print(bounds.limits.cpu_quota)"
    assert float(group.run(code, prefix=enter)) == 1.2
    inner.set("cpu.cfs_quota_us", "30000")
    assert float(group.run(code, prefix=enter)) == 0.3


def test_real_throttling_is_counted(group: _Group) -> None:
    group.set("cpu.cfs_quota_us", "10000")
    group.set("cpu.cfs_period_us", "50000")
    code = (
        "import time; from launcher.host.machine.cgroup import read_throttling as read; before = read()\n"
        "while time.process_time() < 0.25: pass\n"
        "after = read(); print(after.throttled - before.throttled, after.seconds - before.seconds)"
    )
    times, seconds = group.run(code).split()
    assert int(times) > 0
    assert float(seconds) > 0


def test_in_a_real_cgroup_namespace_the_limit_of_the_namespace_root_is_found(group: _Group, tmp_path: Path) -> None:
    group.set("cpu.cfs_quota_us", "70000")
    probe = subprocess.run(["unshare", "--cgroup", "--mount", "true"], capture_output=True, text=True, check=False)
    if probe.returncode:
        pytest.skip(f"no namespaces can be made here: {probe.stderr.strip()}")
    # As container engines do: the hierarchy is mounted again inside, so that only the container's own part is visible.
    inside = f'mount -t cgroup -o cpu none {tmp_path}; exec "$0" "$@"'
    code = f"{READ_BOUNDS}; print(open('/proc/self/cgroup').read(), bounds.limits.cpu_quota)"
    output = group.run(code, prefix=f"exec unshare --cgroup --mount sh -c '{inside}'")
    assert group.name not in output
    assert output.split()[-1] == "0.7"


def test_the_memory_use_of_version_2_is_that_of_the_ancestor_closest_to_its_limit(tmp_path: Path) -> None:
    files = {
        "pod/memory.max": "1000",
        "pod/memory.current": "950",
        "pod/memory.stat": "anon 100\ninactive_file 30\nactive_file 500",
        "pod/box/memory.max": "700",
        "pod/box/memory.current": "400",
        "pod/box/memory.stat": "inactive_file 0",
    }
    assert read_memory_use(_tree(tmp_path / "pod", _v2("/pod/box", files))) == MemoryUse(
        "/sys/fs/cgroup/pod", 1000, 920
    )
    files["pod/box/memory.high"] = "450"
    assert read_memory_use(_tree(tmp_path / "box", _v2("/pod/box", files))) == MemoryUse(
        "/sys/fs/cgroup/pod/box", 450, 400
    )


def test_the_memory_use_of_version_1_is_without_reclaimable_page_cache_of_all_descendants(tmp_path: Path) -> None:
    files = {
        "proc/self/cgroup": "4:memory:/box",
        "proc/self/mountinfo": _v1_mount("memory"),
        "sys/fs/cgroup/memory/box/memory.limit_in_bytes": "2000",
        "sys/fs/cgroup/memory/box/memory.usage_in_bytes": "1900",
        "sys/fs/cgroup/memory/box/memory.stat": "inactive_file 1\ntotal_inactive_file 600",
    }
    assert read_memory_use(_tree(tmp_path, files)) == MemoryUse("/sys/fs/cgroup/memory/box", 2000, 1300)


def test_without_a_limit_there_is_no_memory_use(tmp_path: Path) -> None:
    files = {"a/memory.max": "max", "a/memory.current": "400", "a/memory.stat": "inactive_file 0"}
    assert read_memory_use(_tree(tmp_path, _v2("/a", files))) is None
