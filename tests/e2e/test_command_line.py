"""The responses of the command line to valid and invalid options, as a user sees them."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

import pytest


def launch(*arguments: str, env: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "launcher", *arguments]
    environment = {**os.environ, "COLUMNS": "100", "TERM": "dumb", **(env or {})}
    return subprocess.run(command, capture_output=True, text=True, timeout=100, check=False, env=environment)


def cores() -> int:
    done = launch("topology", "--json", "--instances", "1")
    return len(json.loads(done.stdout)["machine"]["cores"])


@pytest.mark.parametrize(
    ("arguments", "status", "words"),
    [
        (("--instances", "0"), 2, ["--instances", "0", "at least 1"]),
        (("--instances", "many"), 2, ["--instances", "many", "auto"]),
        (("--instances", "5000"), 3, ["5000", "--oversubscribe"]),
        (("--cores-per-instance", "5000"), 3, ["5000", "core"]),
        (("--classes", "32:1,64:1"), 2, ["gap", "64", "max:"]),
        (("--classes", "1-32:1,20-max:1"), 2, ["range", "overlap"]),
        (("--classes", "32:0,max:1"), 2, ["0"]),
        (("--classes", "32:999,max:999"), 3, ["1998", "core"]),
        (("--classes", "32:1,max:1", "--instances", "2"), 2, ["--classes", "--instances"]),
        (("--classes", "auto", "--instances", "2"), 2, ["--classes", "--instances"]),
        (("--classes", "auto", "--lengths", "pyproject.toml"), 2, ["pyproject.toml", "histogram", "line 1"]),
        (("--classes", "auto", "--lengths", "no/such/file"), 2, ["no/such/file", "--lengths"]),
        (("--lengths", "README.md"), 2, ["--lengths", "--classes auto", "--dry-run"]),
        (("--dry-run", "--sysroot", "no/such/folder"), 2, ["no/such/folder"]),
        (("--dry-run", "--sysroot", "docs"), 2, ["docs", "sys/devices/system/cpu"]),
        (("--reserve-cores", "-1"), 2, ["--reserve-cores"]),
        (("--model", "no-such-model-anywhere"), 2, ["no-such-model-anywhere"]),
        (("--model", "random:huge"), 2, ["random:huge", "bert-base"]),
        (("--max-length", "100000"), 2, ["100000", "256"]),
        (("--dtype", "fp8"), 2, ["--dtype", "fp8", "bf16"]),
        (("--port", "99999"), 2, ["--port", "65535"]),
        (("--json",), 2, ["--dry-run"]),
        (("--no-such-option",), 2, ["--no-such-option"]),
        (("no-such-command",), 2, ["no-such-command"]),
    ],
)
def test_bad_options_are_refused_before_anything_starts_on_the_command_line(
    arguments: tuple[str, ...], status: int, words: list[str]
) -> None:
    done = launch(*arguments, *(() if "--port" in arguments else ("--port", "0")), env={"HF_HUB_OFFLINE": "1"})
    assert done.returncode == status, done.stderr
    assert "Traceback" not in done.stderr
    assert "started as pid" not in done.stderr
    for word in words:
        assert word in done.stderr


def test_the_dry_run_is_the_topology_report() -> None:
    assert launch("--dry-run", "--instances", "1").stdout == launch("topology", "--instances", "1").stdout


def test_serve_is_the_default_command() -> None:
    assert launch("--dry-run", "--json").stdout == launch("serve", "--dry-run", "--json").stdout


def test_the_json_report_has_the_keys_of_schema_1_and_no_others() -> None:
    done = launch("topology", "--json", "--instances", "1")
    assert done.returncode == 0
    report = json.loads(done.stdout)
    assert list(report) == ["schema", "machine", "plan", "warnings"]
    assert report["schema"] == 1
    assert list(report["machine"]) == [
        "arch",
        "vendor",
        "model",
        "microarchitecture",
        "isa",
        "cpus",
        "cores",
        "nodes",
        "limits",
    ]
    assert list(report["machine"]["cpus"]) == ["present", "online", "allowed", "isolated"]
    assert list(report["machine"]["limits"]) == ["cpu_quota", "memory_nodes", "memory_bytes", "affinity"]
    assert list(report["plan"]) == ["instances", "reserved_cpus", "unused_cpus", "predicted"]
    (instance,) = report["plan"]["instances"]
    assert set(instance) == {"id", "cpus", "threads", "nodes", "memory", "class", "command", "env", "why"}
    assert instance["env"]["OMP_NUM_THREADS"] == str(instance["threads"])


def test_classes_of_the_json_report_are_gap_free() -> None:
    if cores() < 2:
        pytest.skip("two classes need two cores")
    report = json.loads(launch("topology", "--json", "--classes", "32:1,max:1").stdout)
    classes = [i["class"] for i in report["plan"]["instances"]]
    assert classes == [{"min_length": 1, "max_length": 32}, {"min_length": 33, "max_length": 256}]


def test_a_report_in_a_pipe_has_no_control_codes_and_no_trailing_spaces() -> None:
    done = launch("topology", "--instances", "1")
    assert done.returncode == 0
    assert "\x1b" not in done.stdout
    assert [line for line in done.stdout.splitlines() if line != line.rstrip()] == []


RECORDED = Path(__file__).parents[3] / "shared" / "topologies"


@pytest.mark.parametrize("name", ["dv-2xEPYC-7763", "dv-2xXeonMax9460"])
def test_a_plan_for_a_recorded_machine(name: str, tmp_path: Path) -> None:
    if not RECORDED.is_dir():
        pytest.skip("the recorded machines are not here")
    subprocess.run(["tar", "-xJf", RECORDED / "dumps" / f"{name}.tar.xz", "-C", tmp_path], check=True)
    (sysroot,) = [p.parent for p in [tmp_path / "sys", *tmp_path.glob("*/sys")] if p.is_dir()]
    report = json.loads(launch("topology", "--json", "--sysroot", str(sysroot), "--instances", "4").stdout)
    truth = json.loads((RECORDED / "truth" / f"{name}.json").read_text())
    instances = report["plan"]["instances"]
    assert len(instances) == 4
    assert len(report["machine"]["cores"]) == len(truth["kernel_cores"])
    used = [cpu for i in instances for cpu in i["cpus"]]
    assert len(used) == len(set(used))
    assert all(len(i["nodes"]) == 1 for i in instances)
    assert all(i["command"][:2] == ["numactl", "-C"] for i in instances)


def test_the_machine_and_the_plan_are_drawn_as_svg(tmp_path: Path) -> None:
    file = tmp_path / "plan.svg"
    done = launch("topology", "--instances", "1", "--svg", str(file))
    assert done.returncode == 0
    assert str(file) in done.stderr
    root = ElementTree.fromstring(file.read_text())
    assert root.tag.endswith("svg")
    refused = launch("topology", "--svg", str(tmp_path / "no" / "folder.svg"))
    assert refused.returncode == 2
    assert "--svg" in refused.stderr


@pytest.mark.parametrize(
    ("target", "words"),
    [
        ("shell", ["numactl -C", "serve.py --name i0", "wait"]),
        ("systemd", ["CPUAffinity=", "ExecStart=", "serve.py --name i0"]),
        ("compose", ["services:", "cpuset:", "i0"]),
        ("slurm", ["srun", "--cpu-bind", "i0"]),
    ],
)
def test_a_plan_is_exported_for_another_supervisor(target: str, words: list[str]) -> None:
    done = launch("topology", "--instances", "1", "--export", target, "--", "serve.py", "--name", "i{instance}")
    assert done.returncode == 0, done.stderr
    for word in words:
        assert word in done.stdout


def test_without_a_program_a_server_of_one_instance_is_exported() -> None:
    options = ("--model", "random:tiny", "--dtype", "fp32", "--max-queue-items", "9", "--reserve-cores", "0")
    done = launch("topology", "--instances", "1", "--export", "shell", *options)
    assert "launch --instances 1 --model random:tiny --port 8000 --dtype fp32 --max-queue-items 9" in done.stdout
    assert "--reserve-cores" not in done.stdout, "its supervisor has already chosen its cores"


@pytest.mark.parametrize("target", ["shell", "systemd", "compose", "slurm"])
def test_one_server_is_exported_with_the_options_of_the_call(target: str) -> None:
    options = (
        "--model",
        "random:tiny",
        "--reserve-cores",
        "0",
        "--dtype",
        "fp32",
        "--no-strict",
        "--host",
        "127.0.0.2",
    )
    done = launch(
        "topology", "--export", target, "--export-mode", "server", "--instances", "2", "--oversubscribe", *options
    )
    assert done.returncode == 0, done.stderr
    words = done.stdout.replace('"', "").replace(",", "")
    host = "0.0.0.0" if target == "compose" else "127.0.0.2"  # a port of a container is published from all interfaces
    assert f"launch --model random:tiny --host {host} --port 8000 --instances 2 " in words
    for flag in ("--reserve-cores 0", "--dtype fp32", "--oversubscribe"):
        assert flag in words
    assert "--strict" not in words


@pytest.mark.slow
def test_the_exported_shell_script_of_one_server_serves(tmp_path: Path) -> None:
    fake = ("--model", "random:tiny", "--backend", "fake", "--port", "0", "--log-json")
    done = launch("topology", "--export", "shell", "--export-mode", "server", "--instances", "1", *fake)
    script = tmp_path / "serve.sh"
    script.write_text(done.stdout)
    with subprocess.Popen(["sh", script], stderr=subprocess.PIPE, text=True) as process:
        try:
            assert process.stderr is not None
            assert any('"serving"' in line for line in process.stderr)
        finally:
            process.send_signal(signal.SIGTERM)
        assert '"draining"' in process.communicate(timeout=100)[1]


def test_a_unix_socket_is_exported_for_one_server_only() -> None:
    server = launch("topology", "--export", "systemd", "--export-mode", "server", "--uds", "launch.sock")
    assert f"--uds {Path('launch.sock').resolve()}" in server.stdout
    instances = launch("topology", "--export", "systemd", "--uds", "launch.sock")
    assert (instances.returncode, "--export-mode server" in instances.stderr) == (2, True)
    compose = launch("topology", "--export", "compose", "--export-mode", "server", "--uds", "launch.sock")
    assert (compose.returncode, "inside the container" in compose.stderr) == (2, True)


def test_a_program_is_no_server() -> None:
    done = launch("topology", "--export", "shell", "--export-mode", "server", "--", "serve.py")
    assert done.returncode == 2
    assert "--export-mode instances" in done.stderr
    assert "requires --export" in launch("topology", "--export-mode", "server").stderr


def test_an_ascii_terminal_gets_an_ascii_report() -> None:
    done = launch("topology", "--instances", "1", env={"PYTHONIOENCODING": "ascii"})
    assert done.returncode == 0
    assert done.stdout.isascii()
