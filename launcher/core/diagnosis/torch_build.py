"""What the installed torch was built for, and the warning about a build for GPUs.

Used by the check of ``launch doctor`` and by the warning at the start of a server. ``host.torch_build`` reads the
facts; no file or package is read here.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

CPU_INDEX = "https://download.pytorch.org/whl/cpu"  # PyTorch's own index of CPU builds

# The fields of torch/version.py that name an accelerator (tools/generate_torch_version.py in PyTorch's sources).
ACCELERATORS = {"cuda": "CUDA", "hip": "ROCm", "rocm": "ROCm", "xpu": "XPU"}
# The local part of a version, if version.py does not name the accelerator: 2.13.0+cu130, 2.13.0+rocm7.1, 2.13.0+xpu.
_LOCAL = re.compile(r"\+(cu|rocm|xpu)([\d.]*)")
_LOCAL_NAMES = {"cu": "CUDA", "rocm": "ROCm", "xpu": "XPU"}


@dataclass(frozen=True, slots=True)
class TorchBuild:
    """The installed torch: its version with the local part (``2.13.0+cpu``), and what it is built for (``CUDA 13.0``).

    ``accelerator`` is None for a CPU build.
    """

    version: str
    accelerator: str | None = None

    @property
    def cpu_command(self) -> str:
        """The command that replaces it with the CPU build of the same version."""
        release = self.version.partition("+")[0]
        return f"pip install --force-reinstall --no-deps torch=={release} --index-url {CPU_INDEX}"


def parse_torch_build(fields: Mapping[str, str], version: str) -> TorchBuild:
    """The build that the fields of ``torch/version.py`` describe, or else the local part of the version."""
    for field, name in ACCELERATORS.items():
        if fields.get(field):
            return TorchBuild(version, f"{name} {fields[field]}")
    local = _LOCAL.search(version)
    return TorchBuild(version, _LOCAL_NAMES[local[1]] if local else None)


def gpu_build_warning(build: TorchBuild | None) -> str | None:
    """The warning about a build for GPUs, in one line; None for a CPU build."""
    if build is None or build.accelerator is None:
        return None
    return (
        f"torch {build.version} is a build for {build.accelerator}. It works, but only its CPU part is used, and it is "
        f"gigabytes larger than the CPU build; `launch doctor` has the commands that replace it ({build.cpu_command} …)"
    )
