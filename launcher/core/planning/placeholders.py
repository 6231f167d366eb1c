"""What stands for the instance in the words of a program's command: ``{instance}``, ``{cpus}`` and the like.

Separate because two commands fill them in, ``launch run`` and ``launch topology --export``. Only the words of the
table are replaced; any other brace is the program's own.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from launcher.core.machine.cpuset import format_cpu_list
from launcher.core.planning.plan import InstancePlan

NAMES = ("instance", "instances", "cpus", "threads", "nodes")
# A doubled brace, as in format strings, is how the literal word is written.
PATTERN = re.compile(r"\{\{(?:%s)\}\}|\{(?:%s)\}" % (("|".join(NAMES),) * 2))


def values_of(instance: InstancePlan, instances: int) -> Mapping[str, str]:
    """What each name stands for: numbers from 0, kernel lists of cpus and nodes (empty: the machine has no nodes)."""
    return {
        "instance": str(instance.id),
        "instances": str(instances),
        "cpus": format_cpu_list(instance.cpus),
        "threads": str(instance.threads),
        "nodes": format_cpu_list(instance.nodes),
    }


def fill(words: Sequence[str], values: Mapping[str, str]) -> tuple[str, ...]:
    """The words with ``{instance}`` and so on replaced, and ``{{instance}}`` written as ``{instance}``."""

    def value(match: re.Match[str]) -> str:
        text = match[0]
        return text[1:-1] if text.startswith("{{") else values[text[1:-1]]

    return tuple(PATTERN.sub(value, word) for word in words)
