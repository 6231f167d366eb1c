"""A machine as JSON: the documented shape, reading it back, and errors for other files."""

from __future__ import annotations

import copy
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from launcher.core.machine.topology import (
    FROM_A_REPORT,
    Core,
    Limits,
    Machine,
    Node,
    machine_from_json,
    machine_to_json,
)
from launcher.errors import UsageError

MACHINE = Machine(
    arch="x86_64",
    vendor="GenuineIntel",
    model="Fake",
    isa=("amx_bf16", "avx512f"),
    present=(0, 1, 2, 3, 4, 5),
    online=(0, 1, 2, 3),
    allowed=(0, 1, 2, 3),
    isolated=(),
    cores=(Core(0, (0, 2), 0, 0, 0), Core(1, (1, 3), 0, None, None, "efficiency")),
    nodes=(Node(0, (0, 2), 1 << 34, ((0, 10), (7, 17))), Node(7, (), 1 << 33, ((0, 17), (7, 10)))),
    limits=Limits(cpu_quota=1.5, memory_nodes=(0, 7), memory_bytes=1 << 32, affinity=(0, 1, 2, 3)),
    warnings=("something odd",),
    memory_bytes=3 << 33,
)


def test_the_json_has_the_documented_shape() -> None:
    assert MACHINE.to_json() == {
        "arch": "x86_64",
        "vendor": "GenuineIntel",
        "model": "Fake",
        "microarchitecture": None,
        "isa": ["amx_bf16", "avx512f"],
        "cpus": {"present": "0-5", "online": "0-3", "allowed": "0-3", "isolated": ""},
        "cores": [
            {"id": 0, "cpus": [0, 2], "package": 0, "node": 0, "l3": 0, "kind": "performance"},
            {"id": 1, "cpus": [1, 3], "package": 0, "node": None, "l3": None, "kind": "efficiency"},
        ],
        "nodes": [
            {"id": 0, "cpus": "0,2", "memory_bytes": 1 << 34, "distances": {"0": 10, "7": 17}},
            {"id": 7, "cpus": "", "memory_bytes": 1 << 33, "distances": {"0": 17, "7": 10}},
        ],
        "limits": {"cpu_quota": 1.5, "memory_nodes": "0,7", "memory_bytes": 1 << 32, "affinity": "0-3"},
    }


def test_unknown_facts_are_null() -> None:
    core = Core(0, (0,), None, None, None)
    bare = Machine("unknown", None, None, (), (0,), (0,), (0,), (), (core,), (), Limits())
    data = bare.to_json()
    assert (data["arch"], data["vendor"], data["model"], data["nodes"]) == (None, None, None, [])
    assert set(data["limits"].values()) == {None}
    assert Machine.from_json(json.loads(json.dumps(data))) == bare


def test_a_machine_file_gives_the_same_machine() -> None:
    assert machine_from_json(json.loads(json.dumps(machine_to_json(MACHINE)))) == MACHINE


@pytest.mark.parametrize(("warnings", "kept"), [(["of the plan"], (FROM_A_REPORT,)), ([], ())])
def test_a_whole_report_is_also_a_machine_file_without_its_warnings(warnings: list[str], kept: tuple[str, ...]) -> None:
    report = {"schema": 1, "machine": MACHINE.to_json(), "plan": {"instances": []}, "warnings": warnings}
    machine = machine_from_json(json.loads(json.dumps(report)))
    assert (machine.cores, machine.warnings, machine.memory_bytes) == (MACHINE.cores, kept, None)


def _changed(path: list[str | int], value: Any) -> dict[str, Any]:
    data = copy.deepcopy(MACHINE.to_json())
    place: Any = data
    for step in path[:-1]:
        place = place[step]
    if value is KeyError:
        del place[path[-1]]
    else:
        place[path[-1]] = value
    return data


@pytest.mark.parametrize(
    ("path", "value", "words"),
    [
        (["cores"], KeyError, "missing required field `cores`"),
        (["cores", 0, "cpus"], "0-3", r"\$\.cores\[0\]\.cpus"),
        (["cores", 1, "kind"], "fast", r"\$\.cores\[1\]\.kind"),
        (["cores", 1, "cpus"], [2, 3], "cpus 2 are in more than one core"),
        (["cores", 1, "cpus"], [], "at least one cpu"),
        (["cores"], [], "no cores"),
        (["cores", 1, "id"], 0, "core ids must be unique"),
        (["cores", 1, "cpus"], [9], "cpus 9, which are not in cpus.allowed"),
        (["cores", 0, "node"], 3, "nodes 3, which are missing"),
        (["cpus", "online"], "0-x", "0-x"),
        (["nodes", 0, "distances"], {"near": 10}, "distances"),
        (["limits", "cpu_quota"], "much", r"\$\.limits\.cpu_quota"),
        (["limits", "cpu_quota"], 0.0, r"\$\.limits\.cpu_quota"),
        (["limits", "memory_bytes"], -1, r"\$\.limits\.memory_bytes"),
        (["nodes", 1, "id"], 10**9, r"\$\.nodes\[1\]\.id"),
        (["nodes", 1, "id"], 0, "node ids must be unique"),
        (["cores", 1, "package"], -1, r"\$\.cores\[1\]\.package"),
    ],
)
def test_an_invalid_file_is_refused_with_the_location_of_the_error(
    path: list[str | int], value: Any, words: str
) -> None:
    with pytest.raises(UsageError, match=words):
        machine_from_json(_changed(path, value))


@pytest.mark.parametrize("data", [None, [], "machine", 3, {}, {"machine": None}, {"machine": []}, {"plan": {}}])
def test_data_that_is_not_a_machine_is_refused(data: object) -> None:
    with pytest.raises(UsageError, match="launch topology --json"):
        machine_from_json(data)


def test_a_later_schema_is_refused_with_both_numbers() -> None:
    with pytest.raises(UsageError, match="schema 2; this version reads schema 1"):
        machine_from_json({"schema": 2, "machine": MACHINE.to_json()})


json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-5, 5) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)


@given(st.sampled_from(sorted(MACHINE.to_json())), json_values)
def test_any_other_value_is_accepted_or_refused_with_an_error(key: str, value: object) -> None:
    try:
        machine = machine_from_json(_changed([key], value))
    except UsageError:
        return
    assert machine_from_json(json.loads(json.dumps(machine_to_json(machine)))) == machine


def test_without_distances_a_node_is_near_itself_and_far_from_others() -> None:
    node = Node(3, (), None, ((3, 10), (4, 21)))
    assert (node.distance(4), node.distance(5)) == (21, 255)
    assert Node(3, (), None).distance(3) == 10
