"""The table of guests for the documentation: the QEMU configuration, what the launcher found, where the pages are."""

from __future__ import annotations

from collections import Counter
from typing import Any

from tests.vm.guests import STEPS, Guest

COLUMNS = "| guest | requested from QEMU | found | instances (cpus; memory) | pages on planned nodes |"
HEAD = f"{COLUMNS}\n|---|---|---|---|---|\n"

Json = dict[str, Any]


def private_pages(mappings: list[Json]) -> Counter[int]:
    """Pages by node of the mappings whose every page was written: heap, stacks, anonymous memory, written data.

    Pages of files are in the page cache, shared by all processes, on the node of the process that read them first.
    """
    pages: Counter[int] = Counter()
    for mapping in mappings:
        if mapping["written"] >= sum(mapping["nodes"].values()):
            pages.update({int(node): count for node, count in mapping["nodes"].items()})
    return pages


def guest_table(guests: dict[str, Guest]) -> str:
    """Markdown, one row for each plan that a guest made; with page counts if the plan was also served."""
    lines = [_line(shape, guest, step) for shape, guest in guests.items() for step in _plans(shape, guest)]
    return HEAD + "".join(lines)


def _plans(shape: str, guest: Guest) -> list[str]:
    """The plans of a guest, without those that failed, which the tests report."""
    steps = {step["name"]: step["do"] for step in STEPS[shape]}
    failed = {name for name in steps if guest.failure(name)}
    return [name for name, do in steps.items() if do == "topology" and not failed & {name, _served(name)}]


def _served(plan: str) -> str:
    return plan.replace("plan", "served")


def _line(shape: str, guest: Guest, step: str) -> str:
    report = guest.step(step)["report"]
    machine, plan = report["machine"], report["plan"]
    name = shape + step.removeprefix("plan").replace("-", ", ", 1)
    found = f"{len(machine['cores'])} cores, cpus {machine['cpus']['allowed']}, {len(machine['nodes'])} nodes"
    if machine["limits"]["cpu_quota"] is not None:
        found += f", quota {machine['limits']['cpu_quota']}"
    instances = "; ".join(_instance(instance) for instance in plan["instances"])
    return f"| {name} | {_asked(guest.asked['shape'])} | {found} | {instances} | {_local(guest, step)} |\n"


def _asked(shape: Json) -> str:
    grid = f"{shape['sockets']} sockets × {shape['dies']} dies × {shape['cores']} cores × {shape['threads']} threads"
    nodes = ", ".join(f"{node['cores']} cores {node['mebibytes']} MiB" for node in shape["nodes"])
    return f"{grid}; nodes: {nodes or 'none'}"


def _instance(instance: Json) -> str:
    cpus = ",".join(map(str, instance["cpus"]))
    nodes = ",".join(map(str, instance["nodes"]))
    return f"{cpus} ({instance['memory']} {nodes})" if nodes else f"{cpus} ({instance['memory']})"


def _local(guest: Guest, step: str) -> str:
    """The share of written pages on the planned nodes, over all instances that served this plan."""
    served = _served(step)
    if not any(known["name"] == served for known in STEPS[guest.asked["shape"]["name"]]):
        return "not served"
    found, local, total = guest.step(served), 0, 0
    for instance in found["info"]["instances"]:
        pages = private_pages(found["workers"][str(instance["id"])]["mappings"])
        local += sum(pages[node] for node in instance["nodes"])
        total += pages.total()
    return f"{100 * local / total:.1f} %"
