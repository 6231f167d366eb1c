"""Options and their defaults: every option is declared once, and every other form of it is derived from that.

``groups`` and ``bench`` have the dataclasses, ``choices`` their literal types, ``declaration`` the way to declare an
option, ``values`` the conversion between dataclasses and flat values by name, ``sources`` the precedence of flags,
environment and configuration file.
"""

from launcher.options.choices import Allocator, Backend, Dtype, Layout, LogLevel, OnFailure, OpenMP, TaskChoice
from launcher.options.groups import (
    FIFO_BATCH_ITEMS,
    DoctorOptions,
    DryRunOptions,
    FormatOptions,
    FrontOptions,
    LogOptions,
    MachineOptions,
    ModelOptions,
    ReportOptions,
    RunOptions,
    RuntimeOptions,
    SchedulingOptions,
    ServeOptions,
    SuperviseOptions,
)
from launcher.options.values import from_flat, to_flat

__all__ = [
    "FIFO_BATCH_ITEMS",
    "Allocator",
    "Backend",
    "DoctorOptions",
    "DryRunOptions",
    "Dtype",
    "FormatOptions",
    "FrontOptions",
    "Layout",
    "LogLevel",
    "LogOptions",
    "MachineOptions",
    "ModelOptions",
    "OnFailure",
    "OpenMP",
    "ReportOptions",
    "RunOptions",
    "RuntimeOptions",
    "SchedulingOptions",
    "ServeOptions",
    "SuperviseOptions",
    "TaskChoice",
    "from_flat",
    "to_flat",
]
