"""Exports a plan for other supervisors: shell, systemd, Docker Compose, Slurm.

For users who start their processes with something else and want the same cores and memory. Each supervisor binds in its
own way, so the commands passed in are those of the programs alone. No files are written here.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable, Iterator, Mapping, Sequence

from launcher.core.machine.cpuset import format_cpu_list
from launcher.core.planning.binding import Binding, command_prefix
from launcher.core.planning.plan import InstancePlan, Plan
from launcher.core.report.topology_report import Command
from launcher.options.choices import ExportTarget

BOUND = Binding("bind", "numactl", "exported")


def export_plan(plan: Plan, commands: Sequence[Command], target: ExportTarget, *, name: str = "launcher") -> str:
    """The plan for ``target``. ``commands`` are those of the programs, without a binding prefix, in the order of the
    instances.

    ``systemd`` gives several unit files in one text, each below a comment with its path.
    """
    pairs = list(zip(plan.instances, commands, strict=True))
    return "\n".join(WRITERS[target](pairs, name)) + "\n"


Pairs = Sequence[tuple[InstancePlan, Command]]


def _shell(pairs: Pairs, name: str) -> Iterator[str]:
    yield "#!/bin/sh"
    yield f"# {name}: {_summary(pairs)}"
    yield "# Stops all instances when interrupted; its exit status is that of the last one that failed."
    yield "pids="
    yield "trap 'kill $pids 2>/dev/null' INT TERM"
    for instance, command in pairs:
        yield f"\n# {instance.id}: {instance.why}"
        words = (*_env_words(command.env), *command_prefix(instance, BOUND), *command.command)
        yield f"{shlex.join(words)} &"
        yield 'pids="$pids $!"'
    yield "\nstatus=0"
    # A trapped signal makes `wait` return early, so wait again until the process is gone.
    yield "for pid in $pids; do"
    yield '  wait "$pid" || status=$?'
    yield '  while kill -0 "$pid" 2>/dev/null; do wait "$pid" || status=$?; done'
    yield "done"
    yield 'exit "$status"'


def _slurm(pairs: Pairs, name: str) -> Iterator[str]:
    yield "#!/bin/sh"
    yield f"# {name}: {_summary(pairs)}"
    yield f"#SBATCH --job-name={name}"
    yield "#SBATCH --nodes=1"
    yield "#SBATCH --exclusive"
    for instance, command in pairs:
        yield f"\n# {instance.id}: {instance.why}"
        step = ["srun", "--ntasks=1", "--overlap", f"--cpu-bind=mask_cpu:{_mask(instance.cpus)}"]
        own = [*_env_words(command.env), *command.command]
        if instance.memory == "bind":
            step.append(f"--mem-bind=mask_mem:{_mask(instance.nodes)}")
        elif instance.memory == "interleave":
            # Slurm binds memory but does not interleave it.
            own = [*_env_words(command.env), "numactl", "-i", format_cpu_list(instance.nodes), *command.command]
        yield f"{shlex.join([*step, *own])} &"
    yield "\nwait"


def _systemd(pairs: Pairs, name: str) -> Iterator[str]:
    yield f"# /etc/systemd/system/{name}.target"
    yield "[Unit]"
    yield f"Description={_escaped(_summary(pairs))}"
    yield f"Wants={' '.join(f'{name}-{instance.id}.service' for instance, _ in pairs)}"
    yield "\n[Install]"
    yield "WantedBy=multi-user.target"
    for instance, command in pairs:
        yield f"\n# /etc/systemd/system/{name}-{instance.id}.service"
        yield "[Unit]"
        yield f"Description={_escaped(instance.why)}"
        yield f"PartOf={name}.target"
        yield "\n[Service]"
        yield f"ExecStart={' '.join(_unit_word(word) for word in command.command)}"
        for variable, value in command.env.items():
            yield f"Environment={_unit_word(f'{variable}={value}', command=False)}"
        yield f"CPUAffinity={format_cpu_list(instance.cpus)}"
        if instance.memory != "local":
            yield f"NUMAPolicy={instance.memory}"
            yield f"NUMAMask={format_cpu_list(instance.nodes)}"
        yield "Restart=on-failure"


def _compose(pairs: Pairs, name: str) -> Iterator[str]:
    yield f"# {name}: {_summary(pairs)}"
    yield "# The image needs numactl; SYS_NICE lets it set the memory policy under Docker's default seccomp profile."
    yield "services:"
    for instance, command in pairs:
        yield f"  # {instance.why}"
        yield f"  {name}-{instance.id}:"
        yield "    image: ${IMAGE:?set IMAGE to the image to run}"
        yield f"    cpuset: {json.dumps(format_cpu_list(instance.cpus))}"
        words = (*command_prefix(instance, BOUND), *command.command)
        # In Compose files a dollar sign starts a variable.
        yield f"    command: {json.dumps([word.replace('$', '$$') for word in words])}"
        yield "    environment:"
        for variable, value in command.env.items():
            yield f"      {variable}: {json.dumps(value.replace('$', '$$'))}"
        yield "    cap_add: [SYS_NICE]"
        yield "    restart: on-failure"


WRITERS: Mapping[ExportTarget, Callable[[Pairs, str], Iterator[str]]] = {
    "shell": _shell,
    "systemd": _systemd,
    "compose": _compose,
    "slurm": _slurm,
}


def _summary(pairs: Pairs) -> str:
    cores = sum(instance.threads for instance, _ in pairs)
    return f"{len(pairs)} instance{'' if len(pairs) == 1 else 's'} with {cores} threads, each on its own cores"


def _env_words(env: Mapping[str, str]) -> list[str]:
    return ["env", *(f"{name}={value}" for name, value in env.items())] if env else []


def _mask(ids: Sequence[int]) -> str:
    return hex(sum(1 << one for one in ids))


def _escaped(text: str) -> str:
    return text.replace("%", "%%")


def _unit_word(word: str, *, command: bool = True) -> str:
    """A word in the syntax of ``systemd.syntax(7)``: specifiers escaped, in commands variables too, quoted if
    necessary."""
    text = _escaped(word.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n"))
    if command:
        text = text.replace("$", "$$")
    plain = text and not set(text) & set(" \t\"'\\;")
    return text if plain else f'"{text}"'
