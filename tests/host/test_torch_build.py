"""The build of torch is determined from its files, without importing it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from launcher.core.diagnosis.torch_build import TorchBuild, gpu_build_warning, parse_torch_build
from launcher.host.torch_build import read_gpu_packages, read_torch_build, require_worker_packages

# As in torch 2.13.0 from the package index, on x86-64.
CUDA_VERSION_PY = """from typing import Optional

__all__ = ['__version__', 'debug', 'cuda', 'git_version', 'hip', 'rocm', 'xpu']
__version__ = '2.13.0+cu130'
debug = False
cuda: Optional[str] = '13.0'
git_version = 'cf30153c4c131c8164ee7798e5022d810682e2cb'
hip: Optional[str] = None
rocm: Optional[str] = None
xpu: Optional[str] = None
"""


def install_fake_torch(folder: Path, version_py: str) -> None:
    package = folder / "torch"
    package.mkdir()
    (package / "__init__.py").write_text("raise RuntimeError('torch was imported')\n")
    (package / "version.py").write_text(version_py)
    for name in ("nvidia_cudnn_cu13-9.20.0", "nvidia_cublas-13.1.1"):
        (folder / f"{name}.dist-info").mkdir()


@pytest.fixture
def fake_torch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A torch that is found first and must not be imported."""
    install_fake_torch(tmp_path, CUDA_VERSION_PY)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "torch", raising=False)


def test_the_installed_torch_is_a_cpu_build() -> None:
    build = read_torch_build()
    assert build is not None
    assert build.accelerator is None
    assert gpu_build_warning(build) is None


@pytest.mark.usefixtures("fake_torch")
def test_a_cuda_build_is_found_without_an_import() -> None:
    assert read_torch_build() == TorchBuild("2.13.0+cu130", "CUDA 13.0")
    assert read_gpu_packages() == ("nvidia-cublas", "nvidia-cudnn-cu13")
    assert "torch" not in sys.modules


def test_reading_imports_neither_torch_nor_transformers() -> None:
    code = (
        "import sys; from launcher.host.torch_build import *; read_torch_build(); require_worker_packages(); "
        "print({'torch', 'transformers'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.strip() == "set()"


@pytest.mark.parametrize(
    ("fields", "version", "accelerator"),
    [
        ({}, "2.13.0+cpu", None),
        ({}, "2.13.0", None),
        ({"cuda": "13.0"}, "2.13.0", "CUDA 13.0"),
        ({}, "2.13.0+cu130", "CUDA"),
        ({"hip": "7.1.2"}, "2.13.0+rocm7.1", "ROCm 7.1.2"),
        ({}, "2.13.0+rocm7.1", "ROCm"),
        ({"xpu": "20250301"}, "2.13.0+xpu", "XPU 20250301"),
    ],
)
def test_the_accelerator_comes_from_the_fields_or_the_local_version(
    fields: dict[str, str], version: str, accelerator: str | None
) -> None:
    assert parse_torch_build(fields, version) == TorchBuild(version, accelerator)


def test_the_warning_names_the_build_and_the_command_for_the_cpu_build() -> None:
    warning = gpu_build_warning(TorchBuild("2.13.0+cu130", "CUDA 13.0"))
    assert warning is not None
    assert "torch 2.13.0+cu130 is a build for CUDA 13.0" in warning
    assert "torch==2.13.0 --index-url https://download.pytorch.org/whl/cpu" in warning
    assert "\n" not in warning


def test_no_torch_gives_no_warning() -> None:
    assert gpu_build_warning(None) is None


def test_nothing_is_raised_where_the_packages_are_installed() -> None:
    require_worker_packages()


def test_missing_packages_are_named_with_the_commands_that_install_them() -> None:
    """In a process of its own, in which no package can be found."""
    code = (
        "import sys; from launcher.host.torch_build import require_worker_packages; from launcher.errors import *\n"
        "sys.path.clear()\n"
        "try: require_worker_packages()\n"
        "except MachineError as error: print(error)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.startswith("the workers need torch and transformers, which")
    assert "pip install torch --index-url https://download.pytorch.org/whl/cpu" in done.stdout
    assert "pip install transformers" in done.stdout
