"""Runs in the guest: carries out steps and records the results. It does not judge them.

One boot serves many checks, so a guest gets a list of steps (``$VM_RESULTS/steps.json``) and leaves one JSON file for
each (``$VM_RESULTS/NAME.json``); the tests on the host compare. Only the standard library is imported: the reports of
the launcher are checked against those of the kernel.
"""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
import traceback
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

RESULTS = Path(os.environ["VM_RESULTS"])
CGROUPS = Path("/sys/fs/cgroup")
CPUS = Path("/sys/devices/system/cpu")
LAUNCH = [sys.executable, "-m", "launcher"]
POLL_SECONDS = 0.5
SETTLE_SECONDS = 1.0  # the kernel adapts cpusets to cpus that went offline in the background
READER = """
import dataclasses, json, os, sys
from launcher.host.machine.capacity import CapacityReader
from launcher.host.machine.sysfs import read_machine
reader = CapacityReader(read_machine())
os.sched_setaffinity(0, map(int, sys.argv[1:]))
for _ in sys.stdin:
    print(json.dumps(dataclasses.asdict(reader.read())), flush=True)
"""
# The process moves itself before it executes the program, so that all threads are inside from the start.
ENTER = 'echo $$ >"$0/cgroup.procs" && exec "$@"'

Json = dict[str, Any]


def offline(cpus: list[int]) -> Json:
    """Take cpus offline; the error of each, or None."""
    refused: dict[str, str | None] = {}
    for cpu in cpus:
        try:
            (CPUS / f"cpu{cpu}/online").write_text("0")
            refused[str(cpu)] = None
        except OSError as error:
            refused[str(cpu)] = str(error)
    return {"refused": refused, "online": (CPUS / "online").read_text().strip()}


def cgroup(path: str, files: dict[str, str]) -> Json:
    """Create a cgroup and write its files; returns their contents afterwards, effective sets included."""
    folder = CGROUPS / path
    controllers = "+cpu +cpuset +memory"
    for parent in reversed(folder.relative_to(CGROUPS).parents):
        (CGROUPS / parent).mkdir(exist_ok=True)
        (CGROUPS / parent / "cgroup.subtree_control").write_text(controllers)
    folder.mkdir(exist_ok=True)
    for name, value in files.items():
        (folder / name).write_text(value)
    shown = [*files, "cpuset.cpus.effective", "cpuset.mems.effective"]
    return {name: (folder / name).read_text().strip() for name in shown}


def topology(arguments: list[str], inside: str | None = None) -> Json:
    """The output of ``launch topology --json``."""
    command = [*_enter(inside), *LAUNCH, "topology", "--json", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    report = json.loads(done.stdout) if done.returncode == 0 else None
    return {"code": done.returncode, "report": report, "stderr": done.stderr}


def serve(arguments: list[str], texts: list[str], port: int, seconds: float, inside: str | None = None) -> Json:
    """Start the server, request vectors, inspect its workers, stop it. Raises if it is not ready within ``seconds``."""
    address = f"http://127.0.0.1:{port}"
    before = _processes()
    log = RESULTS / "server.log"
    with log.open("w") as stream:
        command = [*_enter(inside), *LAUNCH, *arguments, "--port", str(port)]
        server = subprocess.Popen(command, stdout=stream, stderr=subprocess.STDOUT)
        try:
            ready_seconds = _until_ready(server, address, log, seconds)
            found = _ask(address, texts)
            info = _get(f"{address}/info")
            found |= {"ready_seconds": ready_seconds, "info": info, "metrics": _fetch(f"{address}/metrics").decode()}
            found["workers"] = {str(each["id"]): _look(each["pid"]) for each in info["instances"]}
            found["throttled"] = _throttled(inside)
            server.send_signal(signal.SIGTERM)
            found["code"] = server.wait(60)
        finally:
            server.kill()
            server.wait()
    found["left"] = [text for pid, text in _processes().items() if pid not in before]
    found["log"] = log.read_text()
    return found


def resize(inside: str, bound: list[int], changes: list[Json]) -> Json:
    """Change the machine under a process in a cgroup, and read its capacity before, and after each change.

    The process has bound itself to the cpus ``bound``, as the front of a server does. Each change has the ``files`` of
    the cgroup to write and the cpus to take ``offline``.
    """
    readings: list[Json] = []
    command = [*_enter(inside), sys.executable, "-c", READER, *map(str, bound)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        for change in [{}, *changes]:
            for name, value in change.get("files", {}).items():
                (CGROUPS / inside / name).write_text(value)
            offline(change.get("offline", []))
            time.sleep(SETTLE_SECONDS)
            process.stdin.write("read\n")
            process.stdin.flush()
            reading = json.loads(process.stdout.readline())
            effective = (CGROUPS / inside / "cpuset.cpus.effective").read_text().strip()
            readings.append({**reading, "effective": effective, "online_file": (CPUS / "online").read_text().strip()})
        process.stdin.close()
    return {"readings": readings, "code": process.returncode}


def _enter(inside: str | None) -> list[str]:
    return ["sh", "-c", ENTER, str(CGROUPS / inside)] if inside else []


def _until_ready(server: subprocess.Popen[bytes], address: str, log: Path, seconds: float) -> float:
    started = time.monotonic()
    while time.monotonic() < started + seconds:
        if server.poll() is not None:
            raise RuntimeError(f"the server ended with {server.returncode}: {log.read_text()}")
        try:
            instances = _get(f"{address}/info")["instances"]
            if all(each["verification"] for each in instances):  # ready, and verified by the launcher itself
                return time.monotonic() - started
        except (urllib.error.URLError, ConnectionError):
            pass
        time.sleep(POLL_SECONDS)
    raise TimeoutError(f"not ready within {seconds} s: {log.read_text()}")


def _ask(address: str, texts: list[str]) -> Json:
    """The vectors of the texts, in one request each and then all in one request."""
    started = time.monotonic()
    alone = [_embed(address, text)[0] for text in texts]
    between = time.monotonic()
    together = _embed(address, texts)
    return {"alone": alone, "together": together, "seconds": [between - started, time.monotonic() - between]}


def _embed(address: str, texts: str | list[str]) -> list[list[float]]:
    body = json.dumps({"model": _get(f"{address}/info")["model"]["name"], "input": texts}).encode()
    data = json.loads(_fetch(f"{address}/v1/embeddings", body))["data"]
    return [each["embedding"] for each in sorted(data, key=lambda each: each["index"])]


def _get(url: str) -> Json:
    found: Json = json.loads(_fetch(url))
    return found


def _fetch(url: str, body: bytes | None = None) -> bytes:
    headers = {"content-type": "application/json"}
    request = urllib.request.Request(url, data=body, headers=headers)
    try:
        with urllib.request.urlopen(request, timeout=120) as reply:
            content: bytes = reply.read()
            return content
    except urllib.error.HTTPError as error:
        raise RuntimeError(f"{url}: {error.code} {error.read().decode(errors='replace')}") from error


def _look(pid: int) -> Json:
    """The kernel's facts about a process: the mask of every thread, the memory policy and pages of every mapping."""
    base = Path("/proc") / str(pid)
    threads = {task.name: _status(task)["Cpus_allowed_list"] for task in (base / "task").iterdir()}
    status = _status(base)
    return {
        "command": (base / "cmdline").read_text().split("\0")[:-1],
        "threads": threads,
        "memory_nodes": status["Mems_allowed_list"],
        "resident_kilobytes": int(status["VmRSS"].split()[0]),
        "cgroup": (base / "cgroup").read_text().strip(),
        "mappings": [_mapping(line) for line in (base / "numa_maps").read_text().splitlines()],
    }


def _status(folder: Path) -> dict[str, str]:
    lines = (folder / "status").read_text().splitlines()
    return {name: value.strip() for name, _, value in (line.partition(":") for line in lines)}


def _mapping(line: str) -> Json:
    """One line of numa_maps (format: numa(7)): its policy, its written (anonymous) and all pages, pages by node."""
    words = line.split()
    fields = dict(word.split("=", 1) for word in words if "=" in word)
    nodes = {key[1:]: int(pages) for key, pages in fields.items() if re.fullmatch(r"N\d+", key)}
    kind = "heap" if "heap" in words else "stack" if "stack" in words else fields.get("file", "anonymous")
    return {"policy": words[1], "kind": kind, "written": int(fields.get("anon", 0)), "nodes": nodes}


def _throttled(inside: str | None) -> Json:
    if inside is None:
        return {}
    lines = (CGROUPS / inside / "cpu.stat").read_text().splitlines()
    return {name: int(value) for name, value in (line.split() for line in lines)}


def _processes() -> dict[int, str]:
    """The processes of the launcher, and all zombies, by id."""
    found = {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            command = (folder / "cmdline").read_text().replace("\0", " ").strip()
            status = _status(folder)
        except OSError:  # exited in the meantime
            continue
        if "launcher" in command or status["State"].startswith("Z"):
            found[int(folder.name)] = f"{status['State']}: {command or status['Name']}"
    return found


STEPS: dict[str, Callable[..., Json]] = {
    "offline": offline,
    "cgroup": cgroup,
    "topology": topology,
    "serve": serve,
    "resize": resize,
}


def main() -> int:
    """0 if every step could be carried out; failures are in the file of the step and on stderr."""
    failed = 0
    for step in json.loads((RESULTS / "steps.json").read_text()):
        name, do = step.pop("name"), step.pop("do")
        started = time.monotonic()
        try:
            found = STEPS[do](**step)
        except Exception:  # any error: the host must see it, and the other steps are still useful
            found = {"error": traceback.format_exc()}
            print(f"{name}: {found['error']}", file=sys.stderr)
            failed = 1
        found["step_seconds"] = round(time.monotonic() - started, 1)
        print(f"{name} ({do}): {found['step_seconds']} s")
        (RESULTS / f"{name}.json").write_text(json.dumps(found, indent=1))
    return failed


if __name__ == "__main__":
    sys.exit(main())
