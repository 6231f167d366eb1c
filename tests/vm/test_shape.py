"""Shapes: descriptions become QEMU options, and invalid ones are refused with a remedy."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest


def _load() -> ModuleType:
    path = Path(__file__).parents[2] / "scripts/vm.d/shape.py"
    spec = importlib.util.spec_from_file_location("vm_shape", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


shape = _load()


def test_a_description_gives_the_cpus_nodes_and_memory_of_qemu() -> None:
    arguments = " ".join(shape.qemu_arguments(shape.parse_shape("2x2x2@2:1024+1:512+1:0+0:512")))
    assert "-smp 8,sockets=2,dies=1,cores=2,threads=2 -m 2048M" in arguments
    assert "memory-backend-ram,id=memory0,size=1024M -numa node,nodeid=0,cpus=0-3,memdev=memory0" in arguments
    assert "-numa node,nodeid=1,cpus=4-5,memdev=memory1" in arguments
    assert "-numa node,nodeid=2,cpus=6-7 " in arguments
    assert "-numa node,nodeid=3,memdev=memory3" in arguments
    assert "-numa dist,src=0,dst=0,val=10" in arguments
    assert "-numa dist,src=3,dst=1,val=21" in arguments


def test_without_nodes_qemu_gets_no_numa_options_and_the_kernel_shows_one_node() -> None:
    plain = shape.parse_shape("1x3x1")
    assert "-numa" not in shape.qemu_arguments(plain)
    assert [node["cpus"] for node in shape.asked(plain)["nodes"]] == [[0, 1, 2]]


def test_the_expected_facts_of_a_guest_include_every_core_with_its_cpus_package_node_and_cache() -> None:
    cores = shape.asked(shape.parse_shape("1x2x2x2@3:1024+1:1024"))["cores"]
    assert [core["cpus"] for core in cores] == [[0, 1], [2, 3], [4, 5], [6, 7]]
    assert [core["package"] for core in cores] == [0, 0, 0, 0]
    assert [core["l3"] for core in cores] == [0, 0, 1, 1]
    assert [core["node"] for core in cores] == [0, 0, 0, 1]


@pytest.mark.parametrize("named", shape.NAMED.values(), ids=lambda named: str(named.name))
def test_named_shapes_are_consistent(named: object) -> None:
    told = shape.asked(named)
    in_nodes = [cpu for node in told["nodes"] for cpu in node["cpus"]]
    assert sorted(in_nodes) == [cpu for core in told["cores"] for cpu in core["cpus"]]
    for node in told["nodes"]:
        assert node["distances"][str(node["id"])] == 10
        for other in told["nodes"]:
            assert node["distances"][str(other["id"])] == other["distances"][str(node["id"])]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("nonsense", "must be one of two-sockets"),
        ("2x2", "SOCKETSx"),
        ("2x2x2@2:1024", "the nodes have 2 cores, but the sockets have 4"),
        ("1x2x1@0:1024+2:1024", "nodes without cores must come last"),
        ("8x8x2", "128 cpus; must be 1 to 64"),
        ("1x1x1@1:128", "must be 1024 to 6144"),
        ("0x1x1", "0 cpus"),
    ],
)
def test_an_invalid_shape_is_refused_with_a_remedy(text: str, says: str) -> None:
    with pytest.raises(shape.ShapeError, match=says):
        shape.parse_shape(text)


def test_the_script_exits_with_a_usage_error_for_an_unknown_shape() -> None:
    script = Path(__file__).parents[2] / "scripts/vm"
    done = subprocess.run([script, "run", "nonsense", "--", "true"], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "unknown shape 'nonsense'" in done.stderr
