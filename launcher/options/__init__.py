"""Options and their defaults: every option is declared once, and every other form of it is derived from that.

``groups`` has the dataclasses, ``declaration`` the way to declare an option, ``values`` the conversion between them and
flat values by name.
"""

from launcher.options.groups import (
    FIFO_BATCH_ITEMS,
    Allocator,
    Backend,
    Dtype,
    FrontOptions,
    Layout,
    LogLevel,
    LogOptions,
    MachineOptions,
    ModelOptions,
    OnFailure,
    OpenMP,
    RunOptions,
    RuntimeOptions,
    SchedulingOptions,
    ServeOptions,
    SuperviseOptions,
    TaskChoice,
)
from launcher.options.values import from_flat, to_flat

__all__ = [
    "FIFO_BATCH_ITEMS",
    "Allocator",
    "Backend",
    "Dtype",
    "FrontOptions",
    "Layout",
    "LogLevel",
    "LogOptions",
    "MachineOptions",
    "ModelOptions",
    "OnFailure",
    "OpenMP",
    "RunOptions",
    "RuntimeOptions",
    "SchedulingOptions",
    "ServeOptions",
    "SuperviseOptions",
    "TaskChoice",
    "from_flat",
    "to_flat",
]
