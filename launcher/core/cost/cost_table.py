"""The cost table of one size of instance: its measurements, and the key of everything that they depend on.

A table outlives the run that measured it. This module decides whether it may be reused, and explains it if not;
``host.files.cost_tables`` decides where it is stored.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from typing import Any

import msgspec

from launcher.core.cost.cost_model import Measurement
from launcher.core.percentile import percentile
from launcher.errors import UsageError

SCHEMA = 2
# The number of runs whose drift is kept: more would preserve a state of the machine that is long past.
MAX_RUNS = 5
# A table whose drift exceeds this factor is not corrected but measured again.
MAX_DRIFT = 2.0


class CostKey(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Everything that a measurement depends on.

    ``weights`` is a fingerprint of the model's files; ``nodes`` is the number of nodes that an instance spans,
    ``kinds`` are the kinds of its cores. ``layout`` is the requested layout: ``auto`` (packed if the model allows it)
    or ``padded``.
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
    microarchitecture: str | None = None  # absent from tables of older versions, which do not apply


class CostTable(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Measurements as in ``core.cost.cost_model``, ``packed`` or padded.

    ``runs`` holds the drift (actual over measured batch time) of the last runs with this table that were long enough
    to tell, the latest last.
    """

    schema: int
    key: CostKey
    packed: bool
    measured: tuple[Measurement, ...]
    runs: tuple[float, ...] = ()

    @property
    def drift(self) -> float:
        """The expected drift: the lower median of the runs and of the measurement itself, which counts as a run.

        The lower one because disturbances only make batches longer: a single run on a loaded machine changes nothing,
        two do; a table measured on a loaded machine is corrected by the first run on an idle one.
        """
        return percentile((1.0, *self.runs), 50)

    @property
    def contradicted(self) -> bool:
        """Whether the drift is so large that the table must be measured again."""
        return not 1 / MAX_DRIFT <= self.drift <= MAX_DRIFT

    def with_run(self, run: float) -> CostTable:
        """The table with the drift of one more run."""
        return msgspec.structs.replace(self, runs=(*self.runs, run)[-MAX_RUNS:])


# Readable names of fields, for messages; the other fields are called by their name.
_WORDS = {"isa": "instruction sets", "nodes": "nodes spanned", "weights": "model files", "kinds": "kinds of cores"}


def differences(found: CostKey, wanted: CostKey) -> tuple[str, ...]:
    """The fields in which a found key differs from the wanted one, in words; empty if they are equal."""
    return tuple(
        f"{_WORDS.get(name, name)}: {_shown(getattr(found, name))} there, {_shown(getattr(wanted, name))} here"
        for name in CostKey.__struct_fields__
        if getattr(found, name) != getattr(wanted, name)
    )


def _shown(value: Any) -> str:
    return ", ".join(map(str, value)) or "none" if isinstance(value, tuple) else repr(value)


def file_stem(key: CostKey) -> str:
    """The common prefix of the file names of all tables whose keys differ from this one only in the machine, the cores
    of the instance, and versions."""
    subject = repr((key.model, key.task, key.max_length, key.dtype, key.backend, key.batch_tokens, key.layout))
    slug = re.sub(r"[^a-z0-9]+", "-", key.model.lower()).strip("-")[-40:]
    return f"{slug}-{hashlib.sha256(subject.encode()).hexdigest()[:12]}"


def file_name(key: CostKey) -> str:
    """The file name of a table. Tables of another machine or another version overwrite it."""
    part = hashlib.sha256(repr((key.nodes, key.kinds)).encode()).hexdigest()[:6]
    return f"{file_stem(key)}-{key.threads}-{part}.json"


def encode_table(table: CostTable) -> bytes:
    """The contents of the file of a table."""
    return msgspec.json.format(msgspec.json.encode(table), indent=1) + b"\n"


def decode_table(data: bytes) -> CostTable:
    """The table in the contents of a file. Raises ``UsageError`` with the reason if it is invalid."""
    try:
        table = msgspec.json.decode(data, type=CostTable)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise UsageError(f"it is damaged: {error}") from error
    if table.schema != SCHEMA:
        raise UsageError(f"it has schema {table.schema}; this version reads schema {SCHEMA}")
    if not table.measured or any(m[1] < 1 or m[2] < 1 or not 0 < m[3] < 1e6 for m in table.measured):
        raise UsageError("it is damaged: it has no measurements, or impossible ones")
    if not all(0 < run < 1e6 for run in table.runs):
        raise UsageError(f"it is damaged: the drifts {table.runs} are impossible")
    return table


def merged(older: CostTable | None, newer: CostTable) -> CostTable:
    """Two tables of equal instances combined: the shorter time of each batch, since disturbances only make batches
    longer."""
    if older is None or older.key != newer.key or older.packed != newer.packed:
        return newer
    if [m[:3] for m in older.measured] != [m[:3] for m in newer.measured]:
        return newer
    both: Sequence[tuple[Measurement, Measurement]] = list(zip(older.measured, newer.measured, strict=True))
    return msgspec.structs.replace(newer, measured=tuple(min(pair, key=lambda m: m[3]) for pair in both))
