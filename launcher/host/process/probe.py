"""Finds out, before anything is started, how far each instance can be bound on this machine: the ladder of fallbacks.

For each instance a small process is really bound to that instance's own cpus and nodes, touches memory there, and
tells which cpus and which nodes it got; a denial on one node must not cost the others their binding. The levels
are tried in the order bind, preferred, cpus, none, with numactl first and system calls after it.
How a binding is written as a command is decided in `core.planning.binding`; here it is only tried.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from launcher.core.machine.cpuset import format_cpu_list, parse_cpu_list
from launcher.core.planning.binding import Binding, Level, Tool, command_prefix
from launcher.core.planning.plan import InstancePlan, Plan
from launcher.errors import MachineError

LEVELS: tuple[Level, ...] = ("bind", "preferred", "cpus", "none")
TOOLS: tuple[Tool, ...] = ("numactl", "syscalls")
AS_ASKED = "as asked"
IN_WORDS: dict[Level, str] = {
    "bind": "bound to its cpus and nodes",
    "preferred": "bound to its cpus; memory comes from its nodes while these have some",
    "cpus": "bound to its cpus only, and where its memory comes from is left to the kernel",
    "none": "not bound at all",
}
PROBES_AT_ONCE = 16
TOUCH_BYTES = 8 << 20

# What the bound process does: touch memory, then say where it runs and where those pages are. The mapping with the
# most pages is the touched one: the interpreter's own are far smaller. No numa_maps: a kernel without NUMA.
REPORT = f"""
import json, re
touched = bytearray({TOUCH_BYTES})
with open('/proc/self/status') as file:
    cpus = next(line.split()[1] for line in file if line.startswith('Cpus_allowed_list'))
try:
    with open('/proc/self/numa_maps') as file:
        maps = [{{int(n): int(p) for n, p in re.findall(r' N(\\d+)=(\\d+)', line)}} for line in file]
    pages = max(maps, key=lambda nodes: sum(nodes.values()))
except (OSError, ValueError):
    pages = {{}}
print('PROBE ' + json.dumps({{'cpus': cpus, 'pages': pages}}), flush=True)
"""

# The same as a worker without numactl does to itself, with the worker's own code and before anything else.
SELF_BINDING = """
import json, sys
from launcher import pinning
cpus, policy, nodes = json.loads(sys.argv[1])
try:
    pinning.bind_cpus(cpus)
    if policy:
        pinning.bind_memory(policy, nodes)
except Exception as error:
    sys.exit(str(error))
"""


@dataclass(frozen=True, slots=True)
class Rung:
    """One thing to try: a level with a tool."""

    level: Level
    tool: Tool


@dataclass(frozen=True, slots=True)
class Trial:
    """A rung that was tried for an instance; ``denial`` is what was said against it, None when it holds."""

    rung: Rung
    denial: str | None


def choose_bindings(plan: Plan, *, strict: bool, seconds: float, requested: Level = "bind") -> tuple[Binding, ...]:
    """The best binding that works for each instance, in the order of the plan, not above ``requested``.

    Takes some tens of milliseconds per rung, for all instances together; a probe is ended after ``seconds``. Raises
    ``MachineError`` when ``strict`` and an instance gets less than was asked for; what its plan cannot use (memory
    where the machine has no nodes) does not count as less.
    """
    numactl = shutil.which("numactl") is not None
    trials: dict[int, list[Trial]] = {instance.id: [] for instance in plan.instances}
    pending = {instance.id: (instance, _ladder(instance, requested, numactl)) for instance in plan.instances}
    while pending:
        tried = [(instance, rung) for instance, ladder in pending.values() if (rung := next(ladder, None))]
        pending = {instance.id: pending[instance.id] for instance, _ in tried}
        for (instance, rung), denial in zip(tried, _try_all(tried, seconds), strict=True):
            trials[instance.id].append(Trial(rung, denial))
            if denial is None:
                del pending[instance.id]
    bindings = tuple(_binding(instance, requested, trials[instance.id], numactl) for instance in plan.instances)
    if strict:
        _refuse_less(plan, bindings, requested)
    return bindings


def explain(plan: Plan, bindings: Sequence[Binding]) -> tuple[str, ...]:
    """What people should know of these bindings, one sentence for all instances of which the same is true.

    Empty when every instance is bound as asked at the first attempt.
    """
    alike: dict[Binding, list[int]] = {}
    for instance, binding in zip(plan.instances, bindings, strict=True):
        alike.setdefault(binding, []).append(instance.id)
    return tuple(_sentence(binding, ids) for binding, ids in alike.items() if binding.reason != AS_ASKED)


def _sentence(binding: Binding, ids: Sequence[int]) -> str:
    who = f"{'Instance' if len(ids) == 1 else 'Each of instances'} {format_cpu_list(ids)}"
    how = " (by system calls)" if binding.tool == "syscalls" and binding.level != "none" else ""
    return f"{who} is {IN_WORDS[binding.level]}{how}: {binding.reason}."


def asked_level(instance: InstancePlan, requested: Level) -> Level:
    """What can be asked for this instance at most: no memory policy where its plan names no nodes."""
    can_bind_memory = instance.memory != "local" and instance.nodes
    return requested if can_bind_memory else max(requested, "cpus", key=LEVELS.index)


def _ladder(instance: InstancePlan, requested: Level, numactl: bool) -> Iterator[Rung]:
    tools = TOOLS if numactl else TOOLS[1:]
    levels = LEVELS[LEVELS.index(asked_level(instance, requested)) : -1]
    # Level before tool: numactl refuses everything where get_mempolicy is filtered, system calls still bind cpus.
    yield from (Rung(level, tool) for level in levels for tool in tools)


def _try_all(tried: Sequence[tuple[InstancePlan, Rung]], seconds: float) -> list[str | None]:
    denials: list[str | None] = []
    for start in range(0, len(tried), PROBES_AT_ONCE):
        window = tried[start : start + PROBES_AT_ONCE]
        started = [_start(instance, rung) for instance, rung in window]
        for (instance, rung), process in zip(window, started, strict=True):
            denials.append(process if isinstance(process, str) else _judge(instance, rung, *_finish(process, seconds)))
    return denials


def _start(instance: InstancePlan, rung: Rung) -> subprocess.Popen[str] | str:
    """The running probe, or why there is none."""
    if rung.tool == "numactl":
        prefix = command_prefix(instance, Binding(rung.level, rung.tool, ""))
        # Isolated and without site-packages the interpreter is up in 10 ms.
        command = [*prefix, sys.executable, "-I", "-S", "-c", REPORT]
    else:
        policy = _memory_policy(instance, rung.level)
        wish = json.dumps([instance.cpus, policy, instance.nodes if policy else []])
        command = [sys.executable, "-c", SELF_BINDING + REPORT, wish]
    env = {**os.environ, "LC_ALL": "C", "OMP_NUM_THREADS": "1"}
    try:
        return subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=env
        )
    except OSError as error:
        return f"{command[0]} cannot be run: {error.strerror}"


def _memory_policy(instance: InstancePlan, level: Level) -> str | None:
    if level == "bind":
        return instance.memory
    return "preferred" if level == "preferred" else None


def _finish(process: subprocess.Popen[str], seconds: float) -> tuple[int, str]:
    try:
        output, _ = process.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        process.kill()
        output, _ = process.communicate()
        output += f"\nno end within {seconds:g} s"
    return process.returncode, output


def _judge(instance: InstancePlan, rung: Rung, status: int, output: str) -> str | None:
    """None when the probe got what it asked for, else what was said or found against it."""
    lines = output.splitlines()
    report = next((line.removeprefix("PROBE ") for line in lines if line.startswith("PROBE ")), None)
    if status != 0 or report is None:
        return _condense(lines) or f"the probe ended with status {status} and said nothing"
    found = json.loads(report)
    if parse_cpu_list(found["cpus"]) != tuple(sorted(instance.cpus)):
        return f"without an error, but the process got cpus {found['cpus']} for {format_cpu_list(instance.cpus)}"
    elsewhere = {int(node) for node in found["pages"]} - set(instance.nodes)
    if rung.level == "bind" and elsewhere:
        return f"without an error, but memory came from node {format_cpu_list(elsewhere)}"
    return None


def _condense(lines: Sequence[str]) -> str:
    """What a tool said, on one line, without the manual that numactl prints after it."""
    said: list[str] = []
    for line in lines:
        if line.lower().startswith("usage:"):
            break
        if line.strip():
            said.append(line.strip())
    return "; ".join(dict.fromkeys(said))


def _binding(instance: InstancePlan, requested: Level, trials: Sequence[Trial], numactl: bool) -> Binding:
    reasons = [*([] if numactl else ["numactl is not installed"]), *_denials(trials)]
    held = next((trial.rung for trial in trials if trial.denial is None), None)
    level, tool = (held.level, held.tool) if held else ("none", "syscalls")
    return Binding(level, tool, "; ".join(reasons) if trials and reasons else AS_ASKED)


def _denials(trials: Sequence[Trial]) -> list[str]:
    """What each tool said, once, with the levels it said it to."""
    levels: dict[tuple[Tool, str], list[Level]] = {}
    for trial in trials:
        if trial.denial is not None:
            levels.setdefault((trial.rung.tool, trial.denial), []).append(trial.rung.level)
    return [f"{', '.join(denied)} by {tool}: {denial}" for (tool, denial), denied in levels.items()]


def _refuse_less(plan: Plan, bindings: Sequence[Binding], requested: Level) -> None:
    missed: dict[tuple[Level, Binding], list[str]] = {}
    for instance, binding in zip(plan.instances, bindings, strict=True):
        asked = asked_level(instance, requested)
        if LEVELS.index(binding.level) > LEVELS.index(asked):
            where = f"cpus {format_cpu_list(instance.cpus)}, nodes {format_cpu_list(instance.nodes)}"
            missed.setdefault((asked, binding), []).append(f"instance {instance.id} ({where})")
    if missed:
        lines = [
            f"{', '.join(who)}: {asked} was asked for, {binding.level} is what works here ({binding.reason})"
            for (asked, binding), who in missed.items()
        ]
        raise MachineError(
            "\n".join(lines) + "\nLeave out --strict to run with what works, or lift the restriction "
            "(in a container: allow set_mempolicy and mbind, and give it these cpus and memory nodes)"
        )
