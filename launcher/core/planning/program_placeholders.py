"""Placeholders in the command line of a program: ``{instance}``, ``{cpus}`` and so on.

Separate because two commands substitute them: ``launch run`` and ``launch topology --export``. Only the names in
``NAMES`` are replaced; any other brace belongs to the program.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from launcher.core.machine.cpuset import format_cpu_list
from launcher.core.planning.plan import InstancePlan

NAMES = ("instance", "instances", "cpus", "threads", "nodes")
# Doubled braces, as in format strings, give the literal word.
PATTERN = re.compile(r"\{\{(?:%s)\}\}|\{(?:%s)\}" % (("|".join(NAMES),) * 2))


def values_of(instance: InstancePlan, instances: int) -> Mapping[str, str]:
    """The value of each placeholder: instances count from 0; cpus and nodes are in the kernel's list format (empty
    nodes: the machine has none)."""
    return {
        "instance": str(instance.id),
        "instances": str(instances),
        "cpus": format_cpu_list(instance.cpus),
        "threads": str(instance.threads),
        "nodes": format_cpu_list(instance.nodes),
    }


def fill(words: Sequence[str], values: Mapping[str, str]) -> tuple[str, ...]:
    """Substitute the placeholders in ``words``; ``{{instance}}`` becomes ``{instance}``."""

    def value(match: re.Match[str]) -> str:
        text = match[0]
        return text[1:-1] if text.startswith("{{") else values[text[1:-1]]

    return tuple(PATTERN.sub(value, word) for word in words)
