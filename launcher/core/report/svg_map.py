"""The map of a machine and its plan as an SVG image of packages, nodes, L3 groups and cores, for documents.

Separate from the report because an image consists of boxes, not lines. No file is written here. Each core shows the
number of its instance, so that the image is readable without colours.
"""

from __future__ import annotations

import colorsys
import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from html import escape

from launcher.core.machine.cpuset import format_cpu_list
from launcher.core.machine.topology import Core, Machine
from launcher.core.planning.memory_check import gib
from launcher.core.planning.plan import InstancePlan, Plan
from launcher.core.report.ascii_map import or_last
from launcher.core.report.text_format import shorten

CELL, GAP, PAD, HEAD = 26.0, 4.0, 8.0, 20.0
CORES_IN_ROW = 8
NODE_WIDTH = 560.0
PAGE_WIDTH = 1180.0
MIN_WIDTH = 760.0  # two legend columns, and room for the title
LEGEND_COLUMN = 380.0
LEGEND_LINE = 20.0
MAX_LEGEND = 60
MAX_CPU_LIST = 24  # characters
LETTER = 6.8  # approximate width of a 12 px letter: fonts differ between viewers

RESERVED_FILL, UNUSED_FILL = "#4a4a4a", "#ffffff"
GOLDEN = 0.618033988749895  # hue steps of this fraction of the circle stay distinct for any number of instances

STYLE = (
    "text{font-family:Helvetica,Arial,'DejaVu Sans',sans-serif;font-size:12px;fill:#222}"
    ".title{font-size:17px;font-weight:bold}.head{font-weight:bold}.note{fill:#666}"
    ".core{font-size:11px;text-anchor:middle}.package{fill:#f4f4f4;stroke:#777}.node{fill:#fff;stroke:#999}"
    ".l3{fill:#eef1f5;stroke:none}"
)


@dataclass(frozen=True, slots=True)
class Box:
    """A core, or a frame with a heading and inner boxes at positions relative to it."""

    width: float
    height: float
    css_class: str = ""
    head: str = ""
    core: Core | None = None
    inside: tuple[tuple[float, float, Box], ...] = ()


def draw_svg(machine: Machine, plan: Plan) -> str:
    """An SVG document of the machine with the plan in it."""
    boxes = [_package_box(machine, package) for package in _packages(machine)]
    body = _flow([*boxes, *_nodes_without_cores(machine)], PAGE_WIDTH)
    legend = list(_legend(plan))
    columns = max(1, int(max(body.width, MIN_WIDTH) // LEGEND_COLUMN))
    rows = -(-len(legend) // columns)
    top = 64.0
    width = max(body.width, min(len(legend), columns) * LEGEND_COLUMN, MIN_WIDTH) + 2 * PAD
    height = top + body.height + 2 * PAD + rows * LEGEND_LINE + PAD
    marks = _Fills(plan)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width:.0f}" height="{height:.0f}" '
        f'viewBox="0 0 {width:.0f} {height:.0f}" role="img">',
        f"<title>{escape(machine.title, quote=False)}</title>",
        f"<style>{STYLE}</style>",
        f'<rect width="{width:.0f}" height="{height:.0f}" fill="#fff"/>',
        _text(PAD, 26, machine.title, "title"),
        _text(PAD, 48, _subtitle(machine, plan), "note"),
        *_draw(body, PAD, top, marks),
    ]
    below = top + body.height + 2 * PAD + LEGEND_LINE / 2
    for index, (fill, words) in enumerate(legend):
        column, row = divmod(index, rows)
        parts += _legend_entry(PAD + column * LEGEND_COLUMN, below + row * LEGEND_LINE, fill, words)
    return "\n".join([*parts, "</svg>", ""])


def _subtitle(machine: Machine, plan: Plan) -> str:
    count = len(plan.instances)
    cores = len(machine.cores)
    text = f"{count} instance{'' if count == 1 else 's'} on {cores} usable core{'' if cores == 1 else 's'}"
    if any(len(core.cpus) > 1 for core in machine.cores):
        text += "; each square is a core, the strips below it are its cpus, of which the first is used"
    return text


# -- boxes ------------------------------------------------------------------------------------------------------


def _packages(machine: Machine) -> list[list[Core]]:
    in_order = sorted(machine.cores, key=lambda core: (or_last(core.package), core.cpus[0]))
    return [list(cores) for _, cores in itertools.groupby(in_order, key=lambda core: core.package)]


def _nodes_without_cores(machine: Machine) -> list[Box]:
    used = {core.node for core in machine.cores}
    return [
        _framed([], NODE_WIDTH, "node", f"{_node_head(machine, node.id)}, no usable cores")
        for node in machine.nodes
        if node.id not in used
    ]


def _package_box(machine: Machine, cores: Sequence[Core]) -> Box:
    in_order = sorted(cores, key=lambda core: (or_last(core.node), core.cpus[0]))
    nodes = [list(here) for _, here in itertools.groupby(in_order, key=lambda core: core.node)]
    package = cores[0].package
    head = "cores in no package" if package is None else f"package {package}"
    return _framed([_node_box(machine, here) for here in nodes], NODE_WIDTH, "package", head)


def _node_box(machine: Machine, cores: Sequence[Core]) -> Box:
    in_order = sorted(cores, key=lambda core: (core.kind == "efficiency", or_last(core.l3), core.cpus[0]))
    groups = [list(here) for _, here in itertools.groupby(in_order, key=lambda core: (core.kind, core.l3))]
    kinds = len({core.kind for core in machine.cores}) > 1
    return _framed([_l3_box(here, kinds) for here in groups], NODE_WIDTH, "node", _node_head(machine, cores[0].node))


def _node_head(machine: Machine, node_id: int | None) -> str:
    if node_id is None:
        return "no node"
    node = machine.node(node_id)
    memory = node.memory_bytes if node else None
    return f"node {node_id}" + ("" if memory is None else f", {gib(memory)}" if memory else ", no memory")


def _l3_box(cores: Sequence[Core], kinds: bool) -> Box:
    cells = [Box(CELL, CELL + _strips(cores), core=core) for core in cores]
    head = "" if cores[0].l3 is None else f"L3 {cores[0].l3}"
    if kinds:
        head = f"{cores[0].kind} {head}".strip()
    return _framed(cells, _row_width(len(cores)), "l3", head)


def _strips(cores: Sequence[Core]) -> float:
    return 7.0 if any(len(core.cpus) > 1 for core in cores) else 0.0


def _row_width(count: int) -> float:
    columns = CORES_IN_ROW if count <= 32 else 2 * CORES_IN_ROW
    return columns * CELL + (columns - 1) * GAP


def _framed(boxes: Sequence[Box], width: float, css_class: str, head: str) -> Box:
    """The boxes in rows, inside a frame with a heading."""
    body = _flow(boxes, width)
    above = HEAD if head else PAD
    least = len(head) * LETTER
    return Box(
        max(body.width, least) + 2 * PAD, body.height + above + PAD, css_class, head, inside=((PAD, above, body),)
    )


def _flow(boxes: Sequence[Box], width: float) -> Box:
    """The boxes from left to right, in rows of at most ``width``."""
    placed: list[tuple[float, float, Box]] = []
    x = y = row = widest = 0.0
    for box in boxes:
        if x and x + box.width > width:
            x, y, row = 0.0, y + row + GAP, 0.0
        placed.append((x, y, box))
        widest, row = max(widest, x + box.width), max(row, box.height)
        x += box.width + GAP
    return Box(widest, y + row, inside=tuple(placed))


# -- drawing -----------------------------------------------------------------------------------------------------


class _Fills:
    """The colour and label of each core."""

    def __init__(self, plan: Plan) -> None:
        self._owners: dict[int, list[int]] = {}
        for instance in plan.instances:
            for cpu in instance.cpus:
                self._owners.setdefault(cpu, []).append(instance.id)
        self._reserved = set(plan.reserved_cpus)

    def of(self, core: Core) -> tuple[str, str, str]:
        """Fill colour, label and label colour."""
        owners = self._owners.get(core.cpus[0], [])
        if owners:
            return fill_of(owners[0]), str(owners[0]) if len(owners) == 1 else f"{owners[0]}+", "#111"
        return (RESERVED_FILL, "front", "#fff") if core.cpus[0] in self._reserved else (UNUSED_FILL, "", "#111")


def fill_of(instance: int) -> str:
    """The colour of an instance, light enough for a dark label."""
    hue = (0.55 + instance * GOLDEN) % 1.0
    lightness = (0.78, 0.68, 0.86)[instance % 3]
    red, green, blue = (round(255 * part) for part in colorsys.hls_to_rgb(hue, lightness, 0.75))
    return f"#{red:02x}{green:02x}{blue:02x}"


def _draw(box: Box, x: float, y: float, fills: _Fills) -> Iterator[str]:
    if box.core is not None:
        yield from _draw_core(box.core, x, y, fills)
        return
    if box.css_class:
        yield f'<rect class="{box.css_class}" {_place(x, y, box.width, box.height)} rx="4"/>'
    if box.head:
        yield _text(x + PAD, y + HEAD - 6, box.head, "note" if box.css_class == "l3" else "head")
    for right, down, inner in box.inside:
        yield from _draw(inner, x + right, y + down, fills)


def _draw_core(core: Core, x: float, y: float, fills: _Fills) -> Iterator[str]:
    fill, label, ink = fills.of(core)
    size = 8 if len(label) > 3 else 11
    yield f"<g><title>core {core.id}, cpus {format_cpu_list(core.cpus)}</title>"
    yield f'<rect {_place(x, y, CELL, CELL)} rx="3" fill="{fill}" stroke="#888"/>'
    if label:
        middle = f'x="{x + CELL / 2:g}" y="{y + CELL / 2 + size / 3:g}"'
        yield f'<text class="core" {middle} style="font-size:{size}px;fill:{ink}">{label}</text>'
    if len(core.cpus) > 1:
        width = (CELL - 2.0 * (len(core.cpus) - 1)) / len(core.cpus)
        for index in range(len(core.cpus)):
            used = fill if index == 0 and label else UNUSED_FILL
            strip = _place(x + index * (width + 2.0), y + CELL + 2, width, 4.0)
            yield f'<rect {strip} fill="{used}" stroke="#aaa" stroke-width="0.5"/>'
    yield "</g>"


def _place(x: float, y: float, width: float, height: float) -> str:
    return f'x="{x:g}" y="{y:g}" width="{width:g}" height="{height:g}"'


def _text(x: float, y: float, words: str, css_class: str) -> str:
    return f'<text class="{css_class}" x="{x:g}" y="{y:g}">{escape(words, quote=False)}</text>'


# -- legend -----------------------------------------------------------------------------------------------------


def _legend(plan: Plan) -> Iterator[tuple[str, str]]:
    shown = plan.instances[:MAX_LEGEND]
    for instance in shown:
        yield fill_of(instance.id), _instance_words(instance)
    if len(shown) < len(plan.instances):
        yield UNUSED_FILL, f"… and {len(plan.instances) - len(shown)} more"
    if plan.reserved_cpus:
        yield RESERVED_FILL, f"front: cpus {shorten(format_cpu_list(plan.reserved_cpus), MAX_CPU_LIST)}"
    if plan.unused_cpus:
        yield UNUSED_FILL, f"unused: cpus {shorten(format_cpu_list(plan.unused_cpus), MAX_CPU_LIST)}"


def _instance_words(instance: InstancePlan) -> str:
    words = [f"{instance.id}: cpus {shorten(format_cpu_list(instance.cpus), MAX_CPU_LIST)}"]
    if instance.nodes:
        nodes = format_cpu_list(instance.nodes)
        words.append(f"memory on node {nodes}" if len(instance.nodes) == 1 else f"memory on nodes {nodes}")
    if instance.length_class:
        words.append(f"{instance.length_class.name} tokens")
    return ", ".join(words)


def _legend_entry(x: float, y: float, fill: str, words: str) -> Iterator[str]:
    yield f'<rect {_place(x, y - 10, 14, 14)} rx="2" fill="{fill}" stroke="#888"/>'
    yield _text(x + 20, y + 1, words, "")
