"""The cost table of one size of instance: what was measured, and everything that it holds for.

A table outlives the run that measured it. Whether it may be used again is decided here, and what is said when it may
not; where it lies is a matter of the host.
"""

from __future__ import annotations

import hashlib
import re
import statistics
from collections.abc import Sequence
from typing import Any

import msgspec

from launcher.core.cost.model import Measurement
from launcher.errors import UsageError

SCHEMA = 2
# So many runs are remembered: more would keep what the machine was like long ago.
REMEMBERED_RUNS = 5
# A table that batches contradict by more than this factor is not scaled, but measured anew.
LARGEST_DRIFT = 2.0


class CostKey(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What a measurement depends on.

    ``weights`` marks the files of the model as they were; ``nodes`` is the number of nodes that an instance spans,
    ``kinds`` are those of its cores. ``layout`` is what was asked for: ``auto`` (packed where the model allows it) or
    ``padded``.
    """

    processor: str
    arch: str
    isa: tuple[str, ...]
    threads: int
    nodes: int
    kinds: tuple[str, ...]
    model: str
    weights: str
    task: str
    max_length: int
    dtype: str
    backend: str
    batch_tokens: int
    layout: str
    torch: str
    launcher: str
    microarchitecture: str | None = None  # absent from tables of versions that did not name it; those do not fit


class CostTable(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Measurements as in ``core.cost.model``, of a model that was ``packed`` or padded.

    ``runs`` is what batches took while they were served with this table, in parts of what was measured: a number for
    each of the last runs that were long enough to tell, the latest last.
    """

    schema: int
    key: CostKey
    packed: bool
    measured: tuple[Measurement, ...]
    runs: tuple[float, ...] = ()

    @property
    def drift(self) -> float:
        """What batches are expected to take, in parts of what was measured: the lower median of the runs and of the
        measurement itself, which counts as a run.

        The lower one, since a disturbance only makes batches longer: one run on a loaded machine changes nothing, two
        do; a table that was measured on a loaded machine is corrected by the first run that is not.
        """
        return statistics.median_low((1.0, *self.runs))

    @property
    def contradicted(self) -> bool:
        """Whether batches took so much more or less that the table is to be measured anew."""
        return not 1 / LARGEST_DRIFT <= self.drift <= LARGEST_DRIFT

    def after(self, run: float) -> CostTable:
        """The table with one more run."""
        return msgspec.structs.replace(self, runs=(*self.runs, run)[-REMEMBERED_RUNS:])


# In words, for what is said of a table that does not fit; fields that are not here are called by their name.
_WORDS = {"isa": "instruction sets", "nodes": "nodes spanned", "weights": "model files", "kinds": "kinds of cores"}


def differences(found: CostKey, wanted: CostKey) -> tuple[str, ...]:
    """What of a found key is not as wanted, in words; empty when all is."""
    return tuple(
        f"{_WORDS.get(name, name)}: {_shown(getattr(found, name))} there, {_shown(getattr(wanted, name))} here"
        for name in CostKey.__struct_fields__
        if getattr(found, name) != getattr(wanted, name)
    )


def _shown(value: Any) -> str:
    return ", ".join(map(str, value)) or "none" if isinstance(value, tuple) else repr(value)


def stem_of(key: CostKey) -> str:
    """How the names of all tables begin that differ from this key's in nothing but the machine, its part that an
    instance takes, and versions."""
    subject = repr((key.model, key.task, key.max_length, key.dtype, key.backend, key.batch_tokens, key.layout))
    slug = re.sub(r"[^a-z0-9]+", "-", key.model.lower()).strip("-")[-40:]
    return f"{slug}-{hashlib.sha256(subject.encode()).hexdigest()[:12]}"


def name_of(key: CostKey) -> str:
    """The name of a table's file. Another machine, and another version, overwrite it."""
    part = hashlib.sha256(repr((key.nodes, key.kinds)).encode()).hexdigest()[:6]
    return f"{stem_of(key)}-{key.threads}-{part}.json"


def encode_table(table: CostTable) -> bytes:
    """The table as a file has it."""
    return msgspec.json.format(msgspec.json.encode(table), indent=1) + b"\n"


def decode_table(data: bytes) -> CostTable:
    """The table in a file. Raises ``UsageError`` saying why there is none in it."""
    try:
        table = msgspec.json.decode(data, type=CostTable)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise UsageError(f"it is damaged: {error}") from error
    if table.schema != SCHEMA:
        raise UsageError(f"it has schema {table.schema}, {SCHEMA} is what this version reads")
    if not table.measured or any(m[1] < 1 or m[2] < 1 or not 0 < m[3] < 1e6 for m in table.measured):
        raise UsageError("it is damaged: it has no measurements, or some that cannot be")
    if not all(0 < run < 1e6 for run in table.runs):
        raise UsageError(f"it is damaged: batches cannot have taken {table.runs} times what was measured")
    return table


def merged(older: CostTable | None, newer: CostTable) -> CostTable:
    """Of two tables of equal instances, the shorter time of each batch, since a disturbance only makes one longer."""
    if older is None or older.key != newer.key or older.packed != newer.packed:
        return newer
    if [m[:3] for m in older.measured] != [m[:3] for m in newer.measured]:
        return newer
    both: Sequence[tuple[Measurement, Measurement]] = list(zip(older.measured, newer.measured, strict=True))
    return msgspec.structs.replace(newer, measured=tuple(min(pair, key=lambda m: m[3]) for pair in both))
