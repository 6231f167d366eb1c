"""Preparation: one record per instance, for workers and programs, on this machine and for another one."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import msgspec
import pytest

from launcher.core.machine.isa_limits import ISA_LIMITS
from launcher.errors import UsageError
from launcher.host.model.resolve import resolve
from launcher.options import Backend, MachineOptions, ModelOptions, RunOptions, ServeOptions
from launcher.prepare.cost_basis import cost_key_base
from launcher.prepare.machine import load_machine, require_this_machine
from launcher.prepare.model import dtype_of, setup_of
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
        (ServeOptions(machine=MachineOptions(sysroot=Path("/x"), machine_file=Path("y")), model=TINY), "use only one"),
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


def test_a_limit_of_instructions_applies_to_the_dtype_and_to_cost_keys_here_and_not_elsewhere(
    monkeypatch: pytest.MonkeyPatch, elsewhere: MachineOptions
) -> None:
    here = ServeOptions(model=TINY)
    there = replace(here, machine=elsewhere)
    bf16 = replace(load_machine(elsewhere), isa=("avx2", "avx512f", "avx512_bf16"))
    model_info = resolve(TINY)
    for name in ISA_LIMITS:
        monkeypatch.delenv(name, raising=False)
    free = cost_key_base(here, bf16, model_info)
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", "AVX2")
    assert (dtype_of(here, bf16, model_info), dtype_of(there, bf16, model_info)) == ("fp32", "bf16")
    limited = cost_key_base(here, bf16, model_info)
    assert limited.dtype == "fp32"
    assert "ONEDNN_MAX_CPU_ISA=AVX2" in limited.key_of(1, 1, ()).isa
    assert limited.key_of(1, 1, ()).isa != free.key_of(1, 1, ()).isa
    assert cost_key_base(there, bf16, model_info).key_of(1, 1, ()) == free.key_of(1, 1, ())


def test_the_automatic_dtype_is_fp32_for_a_model_that_torch_cannot_compute_in_bf16(elsewhere: MachineOptions) -> None:
    options = ServeOptions(model=TINY, machine=elsewhere)
    bf16 = replace(load_machine(elsewhere), isa=("avx2", "avx512f", "avx512_bf16"))
    model_info = resolve(TINY)
    fourier = msgspec.structs.replace(model_info, bf16=False)

    assert (dtype_of(options, bf16, model_info), dtype_of(options, bf16, fourier)) == ("bf16", "fp32")
    assert cost_key_base(options, bf16, fourier).dtype == "fp32"
    assert setup_of(options, bf16, fourier).dtype == "fp32"


def broken(folder: Path, config: str) -> str:
    folder.mkdir()
    (folder / "config.json").write_text(config)
    return str(folder)


@pytest.mark.parametrize("needed", [True, False], ids=["serve", "report"])
@pytest.mark.parametrize(
    ("config", "words"),
    [
        ("{", "not valid JSON"),
        ('{"model_type": "gpt2", "architectures": ["GPT2LMHeadModel"]}', "generates text"),
        ('{"model_type": "bert", "architectures": ["BertModel"]}', "has no weights"),
    ],
)
def test_a_bad_model_folder_is_refused_by_reports_as_by_a_start(
    config: str, words: str, needed: bool, tmp_path: Path
) -> None:
    options = ServeOptions(model=ModelOptions(model=broken(tmp_path / "model", config)))
    with pytest.raises(UsageError, match=words):
        prepare_workers(options, model_needed=needed)


@pytest.mark.parametrize("needed", [True, False], ids=["serve", "report"])
def test_a_shape_or_a_limit_that_no_model_has_is_refused_by_reports_too(needed: bool) -> None:
    for model in (ModelOptions(model="random:huge"), ModelOptions(model="random:tiny", max_length=100_000)):
        with pytest.raises(UsageError, match=r"--model random:huge|--max-length 100000"):
            prepare_workers(ServeOptions(model=model), model_needed=needed)


@pytest.mark.parametrize("asked", ["./absent-folder", "nobody/no-such-model"])
def test_a_model_that_is_not_here_is_a_warning_in_a_report(asked: str, elsewhere: MachineOptions) -> None:
    options = ServeOptions(machine=elsewhere, model=ModelOptions(model=asked))
    prepared = prepare_workers(options, model_needed=False)
    assert prepared.model_info is None
    assert any(asked in warning and "limits of the model" in warning for warning in prepared.warnings)
