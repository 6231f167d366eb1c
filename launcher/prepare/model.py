"""Resolves the model to plan for, and derives the setup of workers and the limits of the scheduler from it."""

from __future__ import annotations

import math

from launcher.core.machine.isa_limits import usable_isa
from launcher.core.machine.topology import Machine
from launcher.core.planning.footprint import choose_dtype, mixed_batches, warmup_shapes
from launcher.core.protocol.messages import Setup
from launcher.core.protocol.model_info import ModelInfo
from launcher.core.scheduling.scheduler import SchedulerLimits
from launcher.errors import ModelAbsentError, UsageError
from launcher.host.model.resolve import resolve
from launcher.options import FIFO_BATCH_ITEMS, ModelOptions, ServeOptions
from launcher.options.choices import RunDtype
from launcher.prepare.machine import environment_of


def check_backend(options: ModelOptions) -> None:
    """Raises ``UsageError`` for options that the backend does not support."""
    seconds = options.fake_seconds_per_token
    if seconds is None:
        return
    if options.backend != "fake":
        raise UsageError(
            f"--fake-seconds-per-token {seconds:g} requires --backend fake, but the backend is {options.backend}; omit "
            "it, or add --backend fake"
        )
    if not math.isfinite(seconds):
        raise UsageError(f"--fake-seconds-per-token {seconds}: must be a finite number of seconds, such as 0.0001")


def check_worker_packages(options: ModelOptions) -> tuple[str, ...]:
    """Notes on the installed torch. Raises ``MachineError`` if packages that workers need are missing."""
    if options.backend == "fake":
        return ()
    # Only here, because all checks of the doctor come with them, and reports need none.
    from launcher.core.diagnosis.torch_build import gpu_build_warning
    from launcher.host.torch_build import read_torch_build, require_worker_packages

    require_worker_packages()
    warning = gpu_build_warning(read_torch_build())
    return () if warning is None else (warning,)


def load_model_info(options: ModelOptions, *, needed: bool) -> tuple[ModelInfo | None, tuple[str, ...]]:
    """The model's metadata, and notes. Without ``needed`` nothing is downloaded, and a model that is not on this
    machine gives None and a warning; otherwise it raises, as for every model that cannot be served.
    """
    try:
        model_info = resolve(options, download=needed)
    except ModelAbsentError as error:
        if needed:
            raise
        return None, (f"The plan does not take the limits of the model into account: {error}",)
    return model_info, model_info.notes


def dtype_of(options: ServeOptions, machine: Machine, model_info: ModelInfo) -> RunDtype:
    """The dtype to run in on this machine, as far as the environment lets libraries use its instructions."""
    if options.model.dtype == "auto" and not model_info.bf16:
        return "fp32"
    return choose_dtype(options.model.dtype, usable_isa(machine.isa, environment_of(options.machine)))


def limits_of(options: ServeOptions) -> SchedulerLimits:
    """The bounds of the queue and of a batch."""
    fifo_items = FIFO_BATCH_ITEMS if options.model.layout == "fifo" else None
    rules = options.scheduling
    return SchedulerLimits(
        queue_items=rules.queue_items,
        queue_seconds=rules.queue_seconds,
        batch_tokens=rules.batch_tokens,
        interactive_share=rules.interactive_share,
        bulk_batch_seconds=rules.bulk_batch_seconds,
        hang_factor=rules.hang_factor,
        hang_seconds=rules.hang_seconds,
        busy_hang_seconds=rules.busy_hang_seconds,
        max_attempts=rules.max_attempts,
        fifo_items=fifo_items,
    )


def setup_of(options: ServeOptions, machine: Machine, model_info: ModelInfo) -> Setup:
    """The setup message for every worker. It includes all lengths, because classes help each other."""
    return Setup(
        model_info=model_info,
        dtype=dtype_of(options, machine, model_info),
        backend=options.model.backend,
        warmup=warmup_shapes(model_info.max_length, options.scheduling.batch_tokens),
        mixed=mixed_batches(model_info.max_length, options.scheduling.batch_tokens),
        trust_remote_code=options.model.trust_remote_code,
        pack=options.model.layout == "auto",
        fake_seconds_per_token=options.model.fake_seconds_per_token or 0.0,
    )
