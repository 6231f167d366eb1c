"""What one instance of a model asks of a machine: number format, memory, and the shapes to warm it up with."""

from __future__ import annotations

import itertools
from collections.abc import Collection

from launcher.core.protocol.model_info import ModelInfo
from launcher.options.choices import Dtype, RunDtype

# Any of these computes bf16 products natively; without them bf16 is emulated and slower than fp32.
BF16_FLAGS = frozenset({"amx_bf16", "avx512_bf16", "bf16"})

# Resident memory of a worker beside its weights: Python, torch, transformers, and the kernels that oneDNN keeps.
RUNTIME_BYTES = 640 * 1024**2

# Widths of the warm-up, in tokens: the powers of two between which real batches fall.
SHORTEST_WARMUP = 16


def choose_dtype(asked: Dtype, isa: Collection[str]) -> RunDtype:
    """The number format to run in: as asked, or bf16 where the machine has instructions for it."""
    if asked != "auto":
        return asked
    return "bf16" if BF16_FLAGS.intersection(isa) else "fp32"


def instance_bytes(model_info: ModelInfo) -> int:
    """Memory that one instance needs at its peak.

    Weights are read in fp32 whatever they are run in; the activations and the copies that libraries make of
    reordered weights are put at half of that.
    """
    return RUNTIME_BYTES + model_info.weight_bytes + model_info.weight_bytes // 2


# The lengths of a mixed batch stand to the longest item that is taken as these; a typical text of a mix of queries,
# sentences and paragraphs is a tenth of the longest.
MIXED_PARTS = (1.0, 0.36, 0.23, 0.16, 0.12, 0.1, 0.08, 0.06, 0.045, 0.03, 0.02)
MIXED_LONGEST = 256
# Mixed batches are measured of the whole token budget, and of these parts of it.
MIXED_BUDGETS = (1, 2, 4, 16)


def mixed_batches(max_length: int, batch_tokens: int) -> tuple[tuple[int, ...], ...]:
    """Lengths, longest first, of batches of unequal items to warm up with and to measure, as real ones are mixed.

    Batches of equal items alone say too little: in a real one nearly every item has a length of its own.
    """
    longest = min(max_length, MIXED_LONGEST)
    lengths = [max(1, round(part * longest)) for part in MIXED_PARTS]
    return tuple(dict.fromkeys(_mixed(lengths, batch_tokens // part) for part in MIXED_BUDGETS))


def _mixed(lengths: list[int], budget: int) -> tuple[int, ...]:
    """So many of the lengths in turn as the budget takes, the shortest first; each round is a token longer."""
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
    """(rows, width) of the batches of equal items to warm up with and to measure: each width alone, then full ones.

    Single rows of every width are quick and fit the cost of short batches; full batches fit that of large ones.
    """
    widths = [SHORTEST_WARMUP]
    while widths[-1] * 2 < max_length:
        widths.append(widths[-1] * 2)
    widths = [min(width, max_length) for width in widths]
    if widths[-1] < max_length:
        widths.append(max_length)
    single = [(1, width) for width in widths]
    full = [(max(1, batch_tokens // width), width) for width in (widths[0], widths[-1])]
    return tuple(dict.fromkeys(single + full))
