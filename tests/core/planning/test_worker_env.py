"""The environment of workers: threads follow the plan, and what the user has set is kept and reported."""

from __future__ import annotations

import pytest

from launcher.core.planning.plan import InstancePlan
from launcher.core.planning.preload import NO_PRELOAD
from launcher.core.planning.worker_env import program_env, worker_env


def instance(threads: int = 12) -> InstancePlan:
    cores = tuple(range(12, 12 + threads))
    return InstancePlan(3, cores, cores, threads, (1,), "bind", None, "For a test.")


def test_all_libraries_use_the_planned_number_of_threads() -> None:
    env, notes = worker_env(instance(), {"PATH": "/bin"})
    assert (env["OMP_NUM_THREADS"], env["MKL_NUM_THREADS"]) == ("12", "12")
    assert notes == ()
    assert "PATH" not in env


def test_no_variable_makes_threads_spin_or_move() -> None:
    env, _ = worker_env(instance(), {})
    assert not {"OMP_WAIT_POLICY", "OMP_PROC_BIND", "OMP_PLACES", "GOMP_CPU_AFFINITY", "KMP_AFFINITY"} & set(env)


@pytest.mark.parametrize("name", ["ONEDNN_PRIMITIVE_CACHE_CAPACITY", "LRU_CACHE_CAPACITY"])
def test_the_caches_of_compiled_kernels_are_bounded(name: str) -> None:
    env, _ = worker_env(instance(), {})
    assert 0 < int(env[name]) < 1024


@pytest.mark.parametrize(
    "name",
    ["KMP_BLOCKTIME", "OMP_PROC_BIND", "GOMP_SPINCOUNT", "MALLOC_ARENA_MAX", "LRU_CACHE_CAPACITY"],
)
def test_the_users_settings_are_kept_and_noted(name: str) -> None:
    env, notes = worker_env(instance(), {name: "7"})
    assert name not in env
    assert [note for note in notes if f"{name}=7" in note and "kept" in note]


def test_another_number_of_threads_in_the_environment_is_ignored_and_noted() -> None:
    env, notes = worker_env(instance(), {"OMP_NUM_THREADS": "1"})
    assert env["OMP_NUM_THREADS"] == "12"
    assert any("OMP_NUM_THREADS=1" in note and "--cores-per-instance" in note for note in notes)


def test_the_planned_number_of_threads_in_the_environment_gives_no_note() -> None:
    assert worker_env(instance(), {"OMP_NUM_THREADS": "12"})[1] == ()


def test_a_variable_that_collapses_threads_onto_one_core_is_kept_with_a_warning() -> None:
    _, notes = worker_env(instance(), {"GOMP_CPU_AFFINITY": "0-11"})
    assert any("unset it" in note for note in notes)


@pytest.mark.parametrize(
    ("name", "value", "wanted"),
    [("OMP_THREAD_LIMIT", "1", "12"), ("OMP_THREAD_LIMIT", "11", "12"), ("OMP_DYNAMIC", "TRUE", "false")],
)
def test_limits_that_take_threads_from_a_worker_are_overridden_and_noted(name: str, value: str, wanted: str) -> None:
    env, notes = worker_env(instance(), {name: value})
    assert env[name] == wanted
    (note,) = notes
    assert f"{name}={value}" in note
    assert "ignored" in note
    assert "fewer than its 12 threads" in note
    env, (note,) = program_env(instance(), 1, {name: value}, NO_PRELOAD)
    assert name not in env
    assert "fewer than the 12 planned threads; unset it" in note


@pytest.mark.parametrize(
    ("name", "value"), [("OMP_THREAD_LIMIT", "12"), ("OMP_THREAD_LIMIT", "many"), ("OMP_DYNAMIC", "false")]
)
def test_limits_that_take_no_threads_are_kept(name: str, value: str) -> None:
    env, (note,) = worker_env(instance(), {name: value})
    assert name not in env
    assert note == f"{name}={value} in your environment is kept."
