"""Preparation: one record per instance, for workers and programs, on this machine and for another one."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import pytest

from launcher.errors import UsageError
from launcher.options import Backend, MachineOptions, ModelOptions, RunOptions, ServeOptions
from launcher.prepare.machine import require_this_machine
from launcher.prepare.prepared_instances import deduplicated
from launcher.prepare.workers import prepare_workers
from launcher.run.prepare import prepare_run

# Two packages of two cores with two cpus each, as `lscpu -p=CPU,CORE,SOCKET,NODE` prints them.
LSCPU = "# CPU,Core,Socket,Node\n" + "".join(f"{cpu},{cpu % 4},{cpu % 4 // 2},{cpu % 4 // 2}\n" for cpu in range(8))
TINY = ModelOptions(model="random:tiny")


@pytest.fixture
def elsewhere(tmp_path: Path) -> MachineOptions:
    file = tmp_path / "machine"
    file.write_text(LSCPU)
    return MachineOptions(machine_file=file, instances=2, reserve_cores=0)


def test_each_instance_has_its_own_plan_binding_and_command(elsewhere: MachineOptions) -> None:
    prepared = prepare_workers(ServeOptions(machine=elsewhere, model=TINY), model_needed=False)
    assert [one.plan for one in prepared.instances] == list(prepared.plan.instances)
    for one in prepared.instances:
        words = list(one.command.command)
        assert words[words.index("--instance") + 1] == str(one.plan.id)
        assert one.command.env["OMP_NUM_THREADS"] == str(one.plan.threads)
        assert one.binding.reason == "planned for another machine"
    assert prepared.commands == tuple(one.command for one in prepared.instances)


def test_programs_are_bound_and_numbered_like_workers(elsewhere: MachineOptions) -> None:
    prepared = prepare_run(RunOptions(program=("serve-it", "{instance}"), machine=elsewhere), live=False)
    assert [one.command.command[-2:] for one in prepared.instances] == [("serve-it", "0"), ("serve-it", "1")]
    assert [one.plan for one in prepared.instances] == list(prepared.plan.instances)
    assert (prepared.model_info, prepared.forecast) == (None, None)


def test_a_plan_for_another_machine_contains_no_fact_of_this_one(elsewhere: MachineOptions) -> None:
    prepared = prepare_workers(ServeOptions(machine=elsewhere, model=TINY), model_needed=False)
    assert all(sys.executable not in one.command.command for one in prepared.instances)
    with pytest.raises(UsageError, match=r"--machine .* another machine"):
        require_this_machine(elsewhere)


def test_warnings_that_all_instances_share_are_given_once() -> None:
    assert deduplicated("a", "b", "a") == ("a", "b")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (ServeOptions(machine=MachineOptions(classes="max:1", instances=2), model=TINY), "--classes"),
        (ServeOptions(machine=MachineOptions(lengths=Path("x")), model=TINY), "--lengths x requires --classes auto"),
        (ServeOptions(model=ModelOptions(model="random:tiny", fake_seconds_per_token=1.0)), "--backend fake"),
        (
            ServeOptions(model=ModelOptions(model="random:tiny", backend="fake", fake_seconds_per_token=float("inf"))),
            "finite number of seconds",
        ),
        (ServeOptions(machine=MachineOptions(sysroot=Path("/x"), machine_file=Path("y")), model=TINY), "use one"),
    ],
)
def test_options_that_contradict_each_other_are_refused(options: ServeOptions, words: str) -> None:
    with pytest.raises(UsageError, match=words):
        prepare_workers(options, model_needed=True)


@pytest.fixture
def cuda_torch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A CUDA build of torch that is found first, and must not be imported."""
    package = tmp_path / "site" / "torch"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("raise RuntimeError('torch was imported')\n")
    (package / "version.py").write_text("__version__ = '2.13.0+cu130'\ncuda = '13.0'\n")
    monkeypatch.syspath_prepend(str(package.parent))
    monkeypatch.delitem(sys.modules, "torch", raising=False)


@pytest.mark.usefixtures("cuda_torch")
@pytest.mark.parametrize(("backend", "warned"), [("eager", True), ("fake", False)])
def test_a_cuda_build_of_torch_gives_a_warning_if_workers_import_it(backend: Backend, warned: bool) -> None:
    model = replace(TINY, backend=backend)
    prepared = prepare_workers(ServeOptions(model=model), model_needed=True)
    assert any("torch 2.13.0+cu130 is a build for CUDA 13.0" in warning for warning in prepared.warnings) is warned


def test_the_cpu_build_of_torch_gives_no_warning() -> None:
    prepared = prepare_workers(ServeOptions(model=TINY), model_needed=True)
    assert not any("is a build for" in warning for warning in prepared.warnings)
