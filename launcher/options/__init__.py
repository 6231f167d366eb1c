"""Options and their defaults, in one place. Each option is defined once; flags, variables, keys and help are derived
from that.

``definitions`` and ``bench`` contain the dataclasses, ``choices`` the literal types, ``option`` the description of an
option, ``values`` the conversion to and from flat values by name, ``sources`` the precedence of flags, environment
variables and the configuration file.
"""

from launcher.options.choices import Allocator, Backend, Dtype, Layout, LogLevel, OnFailure, OpenMP, TaskChoice
from launcher.options.definitions import (
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
    StopOptions,
    SuperviseOptions,
    WatchOptions,
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
    "StopOptions",
    "SuperviseOptions",
    "TaskChoice",
    "WatchOptions",
    "from_flat",
    "to_flat",
]
