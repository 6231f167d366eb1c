"""The SVG map: well-formed, each core drawn once, nothing outside the page, readable without colours."""

from __future__ import annotations

import dataclasses
import functools
import itertools
import re
from collections import Counter
from xml.etree import ElementTree

from hypothesis import given, settings

from launcher.core.machine.topology import Machine
from launcher.core.planning.length_classes import parse_classes
from launcher.core.planning.plan import Plan, PlanRequest, make_plan
from launcher.core.report.svg_map import draw_svg, fill_of
from launcher.host.machine.sysfs import read_machine
from tests.core.by_hand import machine, machines
from tests.machines import each_recorded, recorded

SVG = "{http://www.w3.org/2000/svg}"
LAPTOP = machine(((4, 8),), slow=range(4, 12))


@functools.cache
def read(name: str) -> Machine:
    return read_machine(recorded(name))


def check_picture(on: Machine, plan: Plan) -> None:
    root = ElementTree.fromstring(draw_svg(on, plan))
    width, height = float(root.attrib["width"]), float(root.attrib["height"])
    for shape in root.iter(f"{SVG}rect"):
        x, y = float(shape.get("x", 0)), float(shape.get("y", 0))
        assert 0 <= x <= x + float(shape.attrib["width"]) <= width
        assert 0 <= y <= y + float(shape.attrib["height"]) <= height
    cores = root.findall(f"{SVG}g")
    assert len(cores) == len(on.cores)
    squares = {(core[1].get("x"), core[1].get("y")) for core in cores}
    assert len(squares) == len(on.cores), "two cores overlap"
    labels = Counter(label.text for label in root.iter(f"{SVG}text") if label.get("class") == "core")
    assert labels["front"] == len(plan.reserved_cpus)
    if not any(text and text.endswith("+") for text in labels):
        assert all(labels[str(one.id)] == one.threads for one in plan.instances)


@each_recorded()
def test_every_recorded_machine_can_be_drawn(name: str) -> None:
    check_picture(read(name), make_plan(read(name), PlanRequest()))


@settings(deadline=None)
@given(machines())
def test_any_machine_can_be_drawn(on: Machine) -> None:
    check_picture(on, make_plan(on, PlanRequest()))


def test_shared_cores_show_the_first_instance_and_a_plus_sign() -> None:
    on = machine(((2,),))
    assert ">0+<" in draw_svg(on, make_plan(on, PlanRequest(instances=3, oversubscribe=True)))


def test_special_characters_in_names_are_escaped() -> None:
    on = dataclasses.replace(LAPTOP, model="<Core> & 'more'")
    root = ElementTree.fromstring(draw_svg(on, make_plan(on, PlanRequest())))
    assert root.findtext(f"{SVG}title") == "<Core> & 'more' (x86_64)"


def test_the_legend_names_cpus_memory_and_classes() -> None:
    on = machine(((24,), (24,)))
    text = draw_svg(on, make_plan(on, PlanRequest(classes=parse_classes("32:8,max:24"), length_limit=512)))
    assert "0: cpus 24-31, memory on node 1, 1-32 tokens" in text
    assert "1: cpus 0-23, memory on node 0, 33-512 tokens" in text
    assert "front: cpus 32" in text
    assert "unused: cpus 33-47" in text


def test_memory_only_nodes_are_drawn() -> None:
    on = machine(((4,),), memory_only=(1 << 34,))
    assert "node 1, 16.0 GiB, no usable cores" in draw_svg(on, make_plan(on, PlanRequest()))


def test_neighbouring_instances_have_different_colours() -> None:
    fills = [fill_of(instance) for instance in range(200)]
    assert all(re.fullmatch("#[0-9a-f]{6}", fill) for fill in fills)
    assert all(one != other for one, other in itertools.pairwise(fills))


def test_drawing_is_deterministic() -> None:
    plan = make_plan(LAPTOP, PlanRequest())
    assert draw_svg(LAPTOP, plan) == draw_svg(LAPTOP, plan)
