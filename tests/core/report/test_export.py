"""Exports for other supervisors: shell scripts are run, systemd units verified where possible, the rest inspected."""

from __future__ import annotations

import dataclasses
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from launcher.core.machine.cpuset import parse_cpu_list
from launcher.core.planning.length_classes import parse_classes
from launcher.core.planning.plan import Plan, PlanRequest, make_plan
from launcher.core.report.export import ServerFacts, export_plan, export_server
from launcher.core.report.topology_report import Command
from launcher.host.machine.sysfs import read_machine
from launcher.options.choices import ExportTarget
from tests.core.by_hand import machine

TWO_SOCKETS = machine(((24,), (24,)))
FOUR = make_plan(TWO_SOCKETS, PlanRequest(instances=4, reserve_cores=0))
ONE = make_plan(TWO_SOCKETS, PlanRequest(instances=1, reserve_cores=0))
ODD = ("serve", "two words", "it's", 'a "quote"', "100%", "$HOME", "back\\slash", "")


def exported(plan: Plan, target: ExportTarget, words: tuple[str, ...] = ("/usr/bin/true", "--all")) -> str:
    env = {"OMP_NUM_THREADS": "12", "NOTE": "50% of $HOME"}
    return export_plan(plan, [Command(words, env) for _ in plan.instances], target, name="embed")


# -- shell: really run --------------------------------------------------------------------------------------------

needs_numactl = pytest.mark.skipif(shutil.which("numactl") is None, reason="numactl is not installed")
SHELLS = [shell for shell in ("sh", "bash", "dash") if shutil.which(shell)]


def script(folder: Path, *programs: str) -> Path:
    """A shell export with one instance per program, on this machine, sharing cores if necessary."""
    here = read_machine()
    wish = PlanRequest(instances=len(programs), oversubscribe=len(programs) > len(here.cores), reserve_cores=0)
    plan = make_plan(dataclasses.replace(here, limits=dataclasses.replace(here.limits, cpu_quota=None)), wish)
    commands = [
        Command((sys.executable, "-c", program), {"OMP_NUM_THREADS": str(one.threads)})
        for one, program in zip(plan.instances, programs, strict=True)
    ]
    path = folder / "run.sh"
    path.write_text(export_plan(plan, commands, "shell"))
    return path


@needs_numactl
@pytest.mark.parametrize("shell", SHELLS)
def test_the_shell_script_runs_each_program_on_its_own_cores(shell: str, tmp_path: Path) -> None:
    # In one write: both write to one pipe.
    say = "import os; os.write(1, (' '.join(map(str, sorted(os.sched_getaffinity(0)))) + chr(10)).encode())"
    path = script(tmp_path, say, say)
    done = subprocess.run([shell, path], capture_output=True, text=True, timeout=100, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    planned = [" ".join(map(str, parse_cpu_list(cpus))) for cpus in re.findall(r"numactl -C (\S+)", path.read_text())]
    assert sorted(done.stdout.splitlines()) == sorted(planned)
    assert len(planned) == 2


@needs_numactl
@pytest.mark.parametrize("shell", SHELLS)
@pytest.mark.parametrize("failing", [0, 1])
def test_the_shell_script_returns_the_status_of_a_failure(shell: str, failing: int, tmp_path: Path) -> None:
    programs = ["", ""]
    programs[failing] = "raise SystemExit(7)"
    done = subprocess.run([shell, script(tmp_path, *programs)], timeout=100, check=False)
    assert done.returncode == 7


@needs_numactl
@pytest.mark.parametrize("shell", SHELLS)
def test_the_shell_script_stops_all_programs_when_it_is_terminated(shell: str, tmp_path: Path) -> None:
    stay = f"import os, pathlib, time; pathlib.Path({str(tmp_path)!r}, str(os.getpid())).touch(); time.sleep(60)"
    process = subprocess.Popen([shell, script(tmp_path, stay, stay)])
    try:
        pids = wait_for_pids(tmp_path, 2)
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=100) != 0
    finally:
        process.kill()
    assert not [pid for pid in pids if Path(f"/proc/{pid}").exists()]


def wait_for_pids(folder: Path, count: int) -> list[int]:
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        pids = [int(path.name) for path in folder.iterdir() if path.name.isdigit()]
        if len(pids) == count:
            return pids
        time.sleep(0.01)
    raise AssertionError(f"{count} processes did not come up")


def test_the_shell_script_quotes_special_characters() -> None:
    text = exported(FOUR, "shell", ("printf", "%s|", *ODD[1:]))
    line = next(line for line in text.splitlines() if line.startswith("env"))
    words = line.removesuffix(" &").replace("numactl -C 0-11 -m 0 ", "")
    done = subprocess.run(["sh", "-c", words], capture_output=True, text=True, timeout=100, check=True)
    assert done.stdout == "".join(f"{word}|" for word in ODD[1:])


# -- systemd --------------------------------------------------------------------------------------------------------


def units(text: str) -> dict[str, str]:
    pieces = re.split(r"^# /etc/systemd/system/(\S+)\n", text, flags=re.MULTILINE)
    return dict(zip(pieces[1::2], pieces[2::2], strict=True))


def test_units_bind_cpus_and_memory_themselves() -> None:
    files = units(exported(FOUR, "systemd"))
    assert list(files) == ["embed.target", *(f"embed-{index}.service" for index in range(4))]
    service = files["embed-2.service"].splitlines()
    assert "CPUAffinity=24-35" in service
    assert "NUMAPolicy=bind" in service
    assert "NUMAMask=1" in service
    assert "Environment=OMP_NUM_THREADS=12" in service
    assert not any("numactl" in line for line in service)
    assert "NUMAPolicy=interleave" in exported(ONE, "systemd")


def exported_server(target: ExportTarget, words: tuple[str, ...] = ("/usr/bin/true", *ODD)) -> str:
    return export_server(FOUR, Command(words, {}), ServerFacts(8000, 600, 35, "user"), target, name="embed")


def exported_servers(target: ExportTarget) -> str:
    commands = [Command(("/usr/bin/true", *ODD), {"OMP_NUM_THREADS": "12"}) for _ in FOUR.instances]
    return export_plan(
        FOUR, commands, target, name="embed", servers=[ServerFacts(8000 + one.id, 600, 35) for one in FOUR.instances]
    )


def test_a_unit_of_a_server_waits_for_readiness_and_stops_the_front_alone() -> None:
    for text in (exported_server("systemd"), exported_servers("systemd")):
        service = next(unit for name, unit in units(text).items() if name.endswith(".service")).splitlines()
        for line in ("Type=notify", "WatchdogSec=30", "KillMode=mixed", "ExecReload=/bin/kill -HUP $MAINPID"):
            assert line in service
        assert "TimeoutStartSec=630" in service, "at least --start-seconds"
        assert "TimeoutStopSec=65" in service, "at least --drain-seconds and --stop-seconds"
        assert not any(line.startswith("MemoryDenyWriteExecute") for line in service), "torch generates code"
    assert "Type=notify" not in exported(FOUR, "systemd"), "another program need not notify"


def test_one_server_binds_its_instances_itself() -> None:
    text = exported_server("systemd")
    assert list(units(text)) == ["embed.service"]
    assert "CPUAffinity" not in text
    assert "NUMAPolicy" not in text
    assert "User=user" in text
    assert "numactl" not in exported_server("shell").replace("needs numactl", "")
    assert "--cpu-bind=mask_cpu:0xffffffffffff" in exported_server("slurm")
    assert "--mem-bind" not in exported_server("slurm")


def test_compose_publishes_the_port_of_each_server() -> None:
    yaml = pytest.importorskip("yaml")
    document = yaml.safe_load(exported_server("compose"))
    assert list(document) == ["services", "volumes"]
    service = document["services"]["embed"]
    assert service["cpuset"] == "0-47"
    assert service["ports"] == ["8000:8000"]
    assert service["command"] == ["/usr/bin/true", *(word.replace("$", "$$") for word in ODD)]
    assert service["stop_grace_period"] == "65s"
    assert set(service) <= COMPOSE_KEYS
    assert "/ready" in service["healthcheck"]["test"][-1]
    assert [name for volume in service["volumes"] for name in [volume.split(":")[0]]] == list(document["volumes"])
    several = yaml.safe_load(exported_servers("compose"))["services"]
    assert [service["ports"] for service in several.values()] == [[f"{port}:{port}"] for port in range(8000, 8004)]
    assert all(set(service) <= COMPOSE_KEYS for service in several.values())


# https://github.com/compose-spec/compose-spec/blob/main/schema/compose-spec.json, definitions/service
COMPOSE_KEYS = {
    "cap_add", "command", "cpuset", "environment", "healthcheck", "image", "init", "ports", "restart",
    "stop_grace_period", "volumes",
}  # fmt: skip


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd-analyze is not installed")
@pytest.mark.parametrize("kind", ["programs", "servers", "server"])
def test_systemd_verifies_the_units(kind: str, tmp_path: Path) -> None:
    texts = {
        "programs": exported(FOUR, "systemd", ("/bin/echo", *ODD)),
        "servers": exported_servers("systemd"),
        "server": exported_server("systemd").replace("User=user", "User=root"),
    }
    files = units(texts[kind])
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    done = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", "--recursive-errors=no", *map(str, sorted(tmp_path.iterdir()))],
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
        env={**os.environ, "SYSTEMD_UNIT_PATH": f"{tmp_path}:"},
    )
    said = [line for line in done.stderr.splitlines() if "embed" in line]
    assert said == []


# -- compose and slurm ----------------------------------------------------------------------------------------------


def test_compose_services_get_their_cpus_and_numactl_for_memory() -> None:
    yaml = pytest.importorskip("yaml")
    document = yaml.safe_load(exported(FOUR, "compose", ODD))
    assert list(document["services"]) == [f"embed-{index}" for index in range(4)]
    service = document["services"]["embed-3"]
    assert service["cpuset"] == "36-47"
    assert service["command"][:5] == ["numactl", "-C", "36-47", "-m", "1"]
    assert [word.replace("$$", "$") for word in service["command"][5:]] == list(ODD)
    assert service["environment"] == {"OMP_NUM_THREADS": "12", "NOTE": "50% of $$HOME"}
    assert service["cap_add"] == ["SYS_NICE"]


def test_slurm_steps_have_masks_of_cpus_and_nodes() -> None:
    lines = exported(FOUR, "slurm").splitlines()
    steps = [line for line in lines if line.startswith("srun")]
    assert [re.search(r"mask_cpu:(\S+)", step).group(1) for step in steps] == [  # type: ignore[union-attr]
        "0xfff",
        "0xfff000",
        "0xfff000000",
        "0xfff000000000",
    ]
    assert [re.search(r"mask_mem:(\S+)", step).group(1) for step in steps] == ["0x1", "0x1", "0x2", "0x2"]  # type: ignore[union-attr]
    assert "#SBATCH --exclusive" in lines
    assert lines[-1] == "wait"
    assert "numactl -i 0-1" in exported(ONE, "slurm")


@pytest.mark.parametrize("target", ["shell", "systemd", "compose", "slurm"])
def test_every_export_contains_the_reasons_of_the_plan(target: ExportTarget) -> None:
    plan = make_plan(TWO_SOCKETS, PlanRequest(classes=parse_classes("32:8,max:24"), length_limit=512))
    text = exported(plan, target).replace("%%", "%")
    assert all(one.why in text for one in plan.instances)
