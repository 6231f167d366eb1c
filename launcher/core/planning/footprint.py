"""What one instance of a model needs from a machine: dtype, memory, and the batch shapes for its warm-up."""

from __future__ import annotations

import itertools
from collections.abc import Collection, Mapping

from launcher.core.machine.isa_limits import limits_in, usable_isa
from launcher.core.protocol.model_info import ModelInfo
from launcher.options.choices import Dtype, RunDtype

# Any of these multiplies bf16 natively; without them bf16 is emulated and slower than fp32.
BF16_FLAGS = frozenset({"amx_bf16", "avx512_bf16", "bf16"})

# Resident memory of a worker without its weights: Python, torch, transformers, and oneDNN's cached kernels.
RUNTIME_BYTES = 640 * 1024**2

# The smallest width of the warm-up, in tokens. Widths are powers of two, which bracket those of real batches.
MIN_WARMUP_WIDTH = 16


def choose_dtype(asked: Dtype, isa: Collection[str]) -> RunDtype:
    """The dtype to run in: as asked, or for ``auto`` bf16 if ``isa``, which libraries may use, has it."""
    if asked != "auto":
        return asked
    return "bf16" if BF16_FLAGS.intersection(isa) else "fp32"


def dtype_notes(asked: Dtype, isa: Collection[str], environment: Mapping[str, str]) -> tuple[str, ...]:
    """A note if ``environment`` takes away the instructions for bf16, and with them the dtype or its speed."""
    if asked not in ("auto", "bf16") or not BF16_FLAGS.intersection(isa):
        return ()
    if BF16_FLAGS.intersection(usable_isa(isa, environment)):
        return ()
    limits = {setting: lost & BF16_FLAGS for setting, lost in limits_in(environment, isa).items() if lost & BF16_FLAGS}
    settings, lost = " and ".join(limits), ", ".join(sorted(set().union(*limits.values())))
    if asked == "auto":
        return (f"{settings} in your environment disables {lost}, so --dtype auto is fp32; unset it to run in bf16.",)
    return (
        f"{settings} in your environment disables {lost}, so --dtype bf16 can be slower than fp32; unset it, "
        "or omit --dtype bf16.",
    )


def instance_bytes(model_info: ModelInfo) -> int:
    """Peak memory of one instance.

    Weights are loaded in fp32 whatever the dtype. Activations and the reordered copies of weights that libraries keep
    are estimated at half of that.
    """
    return RUNTIME_BYTES + model_info.weight_bytes + model_info.weight_bytes // 2


# The lengths of a mixed batch, as fractions of the longest: in a workload of queries, sentences and paragraphs the
# typical text has a tenth of the tokens of the longest.
MIXED_FRACTIONS = (1.0, 0.36, 0.23, 0.16, 0.12, 0.1, 0.08, 0.06, 0.045, 0.03, 0.02)
MIXED_LONGEST = 256
# Mixed batches are measured at the full token budget and at the budget divided by these.
MIXED_BUDGET_DIVISORS = (1, 2, 4, 16)


def mixed_batches(max_length: int, batch_tokens: int) -> tuple[tuple[int, ...], ...]:
    """The lengths, longest first, of mixed batches to warm up with and to measure.

    Batches of equal items are not representative: in real traffic nearly every item of a batch has a different length.
    """
    longest = min(max_length, MIXED_LONGEST)
    lengths = [max(1, round(part * longest)) for part in MIXED_FRACTIONS]
    return tuple(dict.fromkeys(_mixed(lengths, batch_tokens // part) for part in MIXED_BUDGET_DIVISORS))


def _mixed(lengths: list[int], budget: int) -> tuple[int, ...]:
    """Cycle through the lengths, shortest first, until the budget is used; each round is one token longer."""
    found: list[int] = []
    left = budget
    for length in itertools.cycle(reversed(lengths)):
        varied = min(length + len(found) // len(lengths), lengths[0])
        if found and varied > left:
            return tuple(sorted(found, reverse=True))
        found.append(varied)
        left -= varied
    raise AssertionError("a cycle does not end")


def warmup_shapes(max_length: int, batch_tokens: int) -> tuple[tuple[int, int], ...]:
    """(rows, width) of the batches of equal items to warm up with and to measure: one row of each width, then full
    batches.

    Single rows are quick and determine the cost of small batches; full batches determine the cost of large ones.
    """
    widths = [MIN_WARMUP_WIDTH]
    while widths[-1] * 2 < max_length:
        widths.append(widths[-1] * 2)
    widths = [min(width, max_length) for width in widths]
    if widths[-1] < max_length:
        widths.append(max_length)
    single = [(1, width) for width in widths]
    full = [(max(1, batch_tokens // width), width) for width in (widths[0], widths[-1])]
    return tuple(dict.fromkeys(single + full))
