"""Finds the strictest binding that this machine allows for each instance, before anything is started.

For each instance, a small process is bound to the instance's own cpus and nodes, touches memory and reports which cpus
and nodes it got. Instances are probed separately, so that a restriction on one node does not cost the others their
binding. The levels are tried in the order bind, preferred, cpus, none; at each level numactl first, then system calls.
How a binding is written as a command is decided in `core.planning.binding`.
"""

from __future__ import annotations

import contextlib
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
AS_REQUESTED = "as requested"
DESCRIPTIONS: dict[Level, str] = {
    "bind": "bound to its cpus and nodes",
    "preferred": "bound to its cpus; its nodes are preferred for memory, but not enforced",
    "cpus": "bound to its cpus only; the kernel chooses the nodes of its memory",
    "none": "not bound",
}
PARALLEL_PROBES = 16
TOUCH_BYTES = 8 << 20

# What the bound process does: touch memory, then report its mask and the nodes of those pages. The mapping with the
# most pages is the touched one: the interpreter's own are far smaller. A kernel without NUMA has no numa_maps.
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

# Binds itself as a worker without numactl does, with the same code.
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
class Candidate:
    """A level to try, and the tool to try it with."""

    level: Level
    tool: Tool


@dataclass(frozen=True, slots=True)
class Trial:
    """A candidate that was tried for an instance; ``error`` is why it failed, None when it works."""

    candidate: Candidate
    error: str | None


def choose_bindings(
    plan: Plan, *, strict: bool, requested: Level = "bind", probe_seconds: float
) -> tuple[Binding, ...]:
    """The strictest binding that works for each instance, in the order of the plan; never above ``requested``.

    Takes some tens of milliseconds per candidate, for all instances together; ``probe_seconds`` is the timeout of one
    probe. Raises ``MachineError`` when ``strict`` and an instance gets less than was requested; what its plan cannot
    use (memory if the machine has no nodes) does not count as less.
    """
    numactl = shutil.which("numactl") is not None
    trials: dict[int, list[Trial]] = {instance.id: [] for instance in plan.instances}
    pending = {instance.id: (instance, _candidates(instance, requested, numactl)) for instance in plan.instances}
    while pending:
        tried = [(instance, one) for instance, candidates in pending.values() if (one := next(candidates, None))]
        pending = {instance.id: pending[instance.id] for instance, _ in tried}
        for (instance, candidate), error in zip(tried, _try_all(tried, probe_seconds), strict=True):
            trials[instance.id].append(Trial(candidate, error))
            if error is None:
                del pending[instance.id]
    bindings = tuple(_binding(instance, requested, trials[instance.id], numactl) for instance in plan.instances)
    if strict:
        _require_requested(plan, bindings, requested)
    return bindings


def describe_bindings(plan: Plan, bindings: Sequence[Binding]) -> tuple[str, ...]:
    """A sentence on each binding that is not as requested, for all instances that share it.

    Empty when every instance is bound as requested at the first attempt.
    """
    alike: dict[Binding, list[int]] = {}
    for instance, binding in zip(plan.instances, bindings, strict=True):
        alike.setdefault(binding, []).append(instance.id)
    return tuple(_sentence(binding, ids) for binding, ids in alike.items() if binding.reason != AS_REQUESTED)


def _sentence(binding: Binding, ids: Sequence[int]) -> str:
    who = f"{'Instance' if len(ids) == 1 else 'Each of instances'} {format_cpu_list(ids)}"
    how = " (by system calls)" if binding.tool == "syscalls" and binding.level != "none" else ""
    return f"{who} is {DESCRIPTIONS[binding.level]}{how}: {binding.reason}."


def requested_level(instance: InstancePlan, requested: Level) -> Level:
    """The strictest level to request for this instance: no memory policy if its plan names no nodes."""
    can_bind_memory = instance.memory != "local" and instance.nodes
    return requested if can_bind_memory else max(requested, "cpus", key=LEVELS.index)


def _candidates(instance: InstancePlan, requested: Level, numactl: bool) -> Iterator[Candidate]:
    tools = TOOLS if numactl else TOOLS[1:]
    levels = LEVELS[LEVELS.index(requested_level(instance, requested)) : -1]
    # Level before tool: with get_mempolicy filtered, numactl fails at every level, and system calls still bind cpus.
    yield from (Candidate(level, tool) for level in levels for tool in tools)


def _try_all(tried: Sequence[tuple[InstancePlan, Candidate]], probe_seconds: float) -> list[str | None]:
    errors: list[str | None] = []
    for start in range(0, len(tried), PARALLEL_PROBES):
        window = tried[start : start + PARALLEL_PROBES]
        started: list[subprocess.Popen[str] | str] = []
        try:
            for instance, candidate in window:
                started.append(_start(instance, candidate))  # before the next: a signal may end the loop
            for (instance, candidate), probe in zip(window, started, strict=True):
                done = probe if isinstance(probe, str) else _finish(probe, probe_seconds)
                errors.append(done if isinstance(done, str) else _error_of(instance, candidate, *done))
        except BaseException:
            _kill_probes()
            raise
        finally:
            _end(started)
    return errors


def _kill_probes() -> None:
    """Kill the probes among the child processes. A signal may end `subprocess.Popen` between the start of the process
    and its return, and then nothing else knows of that process."""
    import psutil  # only here: a start rarely ends this way, and a report needs nothing else of it

    for child in psutil.Process().children():
        with contextlib.suppress(psutil.Error):
            if any(word.endswith(REPORT) for word in child.cmdline()):
                child.kill()


def _end(probes: Sequence[subprocess.Popen[str] | str]) -> None:
    """Kill the probes that still run: after an error, or after a signal to stop."""
    for probe in probes:
        if not isinstance(probe, str) and probe.returncode is None:
            probe.kill()
            probe.wait()


def _start(instance: InstancePlan, candidate: Candidate) -> subprocess.Popen[str] | str:
    """The running probe, or why it could not be started."""
    if candidate.tool == "numactl":
        prefix = command_prefix(instance, Binding(candidate.level, candidate.tool, ""))
        # Isolated and without site-packages the interpreter is up in 10 ms.
        command = [*prefix, sys.executable, "-I", "-S", "-c", REPORT]
    else:
        policy = _memory_policy(instance, candidate.level)
        wanted = json.dumps([instance.cpus, policy, instance.nodes if policy else []])
        command = [sys.executable, "-c", SELF_BINDING + REPORT, wanted]
    env = {**os.environ, "LC_ALL": "C", "OMP_NUM_THREADS": "1"}
    try:
        return subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=env
        )
    except OSError as error:
        return f"{command[0]} cannot be executed: {error.strerror}"


def _memory_policy(instance: InstancePlan, level: Level) -> str | None:
    if level == "bind":
        return instance.memory
    return "preferred" if level == "preferred" else None


def _finish(process: subprocess.Popen[str], probe_seconds: float) -> tuple[int, str]:
    try:
        output, _ = process.communicate(timeout=probe_seconds)
    except subprocess.TimeoutExpired:
        process.kill()
        output, _ = process.communicate()
        output += f"\nthe probe did not exit within {probe_seconds:g} s"
    return process.returncode, output


def _error_of(instance: InstancePlan, candidate: Candidate, status: int, output: str) -> str | None:
    """Why the candidate does not work; None when the probe got the cpus and nodes that it requested."""
    lines = output.splitlines()
    report = next((line.removeprefix("PROBE ") for line in lines if line.startswith("PROBE ")), None)
    if status != 0 or report is None:
        return _condense(lines) or f"the probe exited with status {status} and no output"
    found = json.loads(report)
    if parse_cpu_list(found["cpus"]) != tuple(sorted(instance.cpus)):
        return f"no error, but the process got cpus {found['cpus']} instead of {format_cpu_list(instance.cpus)}"
    elsewhere = {int(node) for node in found["pages"]} - set(instance.nodes)
    if candidate.level == "bind" and elsewhere:
        return f"no error, but memory came from node {format_cpu_list(elsewhere)}"
    return None


def _condense(lines: Sequence[str]) -> str:
    """The output of a tool on one line, without the usage that numactl prints after an error."""
    kept: list[str] = []
    for line in lines:
        if line.lower().startswith("usage:"):
            break
        if line.strip():
            kept.append(line.strip())
    return "; ".join(dict.fromkeys(kept))


def _binding(instance: InstancePlan, requested: Level, trials: Sequence[Trial], numactl: bool) -> Binding:
    reasons = [*([] if numactl else ["numactl is not installed"]), *_errors(trials)]
    working = next((trial.candidate for trial in trials if trial.error is None), None)
    level, tool = (working.level, working.tool) if working else ("none", "syscalls")
    return Binding(level, tool, "; ".join(reasons) if trials and reasons else AS_REQUESTED)


def _errors(trials: Sequence[Trial]) -> list[str]:
    """Each error of each tool once, with the levels at which it occurred."""
    levels: dict[tuple[Tool, str], list[Level]] = {}
    for trial in trials:
        if trial.error is not None:
            levels.setdefault((trial.candidate.tool, trial.error), []).append(trial.candidate.level)
    return [f"{', '.join(failed)} by {tool}: {error}" for (tool, error), failed in levels.items()]


def _require_requested(plan: Plan, bindings: Sequence[Binding], requested: Level) -> None:
    missed: dict[tuple[Level, Binding], list[str]] = {}
    for instance, binding in zip(plan.instances, bindings, strict=True):
        wanted = requested_level(instance, requested)
        if LEVELS.index(binding.level) > LEVELS.index(wanted):
            where = f"cpus {format_cpu_list(instance.cpus)}, nodes {format_cpu_list(instance.nodes)}"
            missed.setdefault((wanted, binding), []).append(f"instance {instance.id} ({where})")
    if missed:
        lines = [
            f"{', '.join(who)}: {wanted} was requested, only {binding.level} is possible ({binding.reason})"
            for (wanted, binding), who in missed.items()
        ]
        raise MachineError(
            "\n".join(lines) + "\nOmit --strict to run with the possible level, or lift the restriction "
            "(in a container: allow set_mempolicy and mbind, and give it these cpus and memory nodes)"
        )
