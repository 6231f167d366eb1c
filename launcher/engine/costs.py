"""The cost tables of one engine: read before workers start, written when a worker has measured costs, exported as
metrics, and corrected by the observed drift at shutdown.

A table that cannot be read or written causes a log message and a few seconds of measuring. It never prevents a start.
"""

from __future__ import annotations

import logging
import statistics
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import msgspec

from launcher.core.cost.cost_model import Coefficients, CostModel, fit, fit_error
from launcher.core.cost.cost_table import SCHEMA, CostKey, CostTable, differences, merged
from launcher.core.planning.plan import InstancePlan
from launcher.core.protocol.messages import Ready, Setup
from launcher.errors import UsageError
from launcher.front.metrics import FrontMetrics
from launcher.host.files import cost_tables
from launcher.prepare.cost_basis import CostKeyBase

log = logging.getLogger("launcher.engine")

# A smaller drift is not logged.
LOGGED_DRIFT = 0.02


class Costs:
    """The tables of one engine. ``fresh``: ignore earlier measurements."""

    def __init__(self, subject: CostKeyBase, *, fresh: bool = False, folder: Path | None = None) -> None:
        self._subject = subject
        self._fresh = fresh
        self._folder = folder or cost_tables.cost_folder()
        self._tables: dict[CostKey, CostTable] = {}
        self._read_keys: set[CostKey] = set()
        self._unwritable = False

    def table(self, instance: InstancePlan) -> CostTable | None:
        """The table to use for an instance, or None. Read once; the reason for not using it is logged."""
        key = self._subject.key(instance)
        if key not in self._read_keys:
            self._read_keys.add(key)
            if not self._fresh and (table := self._read(key)):
                self._tables[key] = table
        return self._tables.get(key)

    def _read(self, key: CostKey) -> CostTable | None:
        try:
            table = cost_tables.read_table(self._folder, key)
        except UsageError as error:
            _warn("The cost table %s; measuring again", error)
            return None
        if table is not None and (different := differences(table.key, key)):
            _warn("The cached cost table does not apply; measuring again: %s", "; ".join(different))
            return None
        if table is not None and table.contradicted:
            took = "In earlier runs, batches took %.2f times as long as in the cached cost table; measuring again"
            _warn(took, table.drift)
            return None
        return table

    def with_measurements(self, setup: Setup, instance: InstancePlan) -> Setup:
        """The setup for a worker, with the known measurements."""
        table = self.table(instance)
        if table is None:
            return setup
        return msgspec.structs.replace(setup, known=table.measured, known_packed=table.packed)

    def save_measurements(self, instance: InstancePlan, ready: Ready) -> float:
        """Save what a worker has measured, for the next worker of its size and for the next start.

        Returns the expected duration of its batches, relative to the measurements.
        """
        key = self._subject.key(instance)
        known = self._tables.get(key)
        if ready.cached and known is not None:
            if abs(known.drift - 1) > LOGGED_DRIFT:
                said = "predicted costs are %.2f times the measured ones, as observed in earlier runs"
                log.info(said, known.drift, extra={"instance": instance.id, "event": "costs"})
            return known.drift
        if ready.measured:
            self._read_keys.add(key)
            if known is not None and known.packed != ready.packed:
                there, here = ("packed" if packed else "padded" for packed in (known.packed, ready.packed))
                sentence = "The cached cost table does not apply; measured again: items are %s there, %s here"
                _warn(sentence, there, here)
            self._tables[key] = merged(known, CostTable(SCHEMA, key, ready.packed, ready.measured))
            self._write(self._tables[key])
        return 1.0

    def save_drift(self, served: Iterable[tuple[InstancePlan, CostModel]]) -> None:
        """At shutdown: save the drift of instances that have computed enough batches for it to settle.

        For instances of the same size, their lower median is saved. A table that another run has measured again since
        is not changed.
        """
        seen: dict[CostKey, list[float]] = {}
        for instance, model in served:
            key = self._subject.key(instance)
            used = self._tables.get(key)
            if used is not None and (settled := model.settled) is not None:
                seen.setdefault(key, []).append(settled * _ratio(model.coefficients, used))
        for key, drifts in seen.items():
            if (table := self._still_there(key)) is not None:
                self._write(table.with_run(round(statistics.median_low(drifts), 4)))

    def _still_there(self, key: CostKey) -> CostTable | None:
        """The table in the file, if it is still the one that was used."""
        used = self._tables.get(key)
        try:
            there = cost_tables.read_table(self._folder, key)
        except UsageError:
            return None
        same = used and there and (there.key, there.packed, there.measured) == (used.key, used.packed, used.measured)
        return there if same else None

    def _write(self, table: CostTable) -> None:
        try:
            path = cost_tables.write_table(self._folder, table)
        except UsageError as error:
            if not self._unwritable:
                _warn("%s; every start will measure again", str(error)[0].upper() + str(error)[1:])
            self._unwritable = True
        else:
            log.debug("cost table written to %s", path, extra={"event": "costs"})


def _warn(sentence: str, *arguments: object) -> None:
    log.warning(sentence, *arguments, extra={"event": "costs"})


def watch_costs(metrics: FrontMetrics, model: Callable[[int], CostModel | None]) -> None:
    """Export the accuracy of cost predictions as metrics. ``model`` returns None for an instance that does not serve
    yet."""
    metrics.watch_instances(
        "launcher_cost_drift",
        "Duration of batches relative to the measurements made before the instance was ready.",
        lambda instance: None if (found := model(instance)) is None else found.correction,
    )
    metrics.watch_instances(
        "launcher_cost_error",
        "Relative error of the predicted duration of batches, as a running mean.",
        lambda instance: None if (found := model(instance)) is None else found.error,
    )


def cost_info(ready: Ready, model: CostModel) -> dict[str, Any]:
    """The ``cost`` of an instance in ``/info``: seconds, and errors relative to observed durations.

    ``drift`` is the duration of batches now, relative to the measurements; ``drift_at_start`` is the value from earlier
    runs that was assumed when the instance became ready.
    """
    fitted = model.coefficients
    error = fit_error(fitted, ready.measured)
    return {
        "source": "cached" if ready.cached else "measured",
        "overhead": fitted.overhead,
        "per_token": fitted.per_token,
        "per_pair": fitted.per_pair,
        "fit_error": None if error is None else round(error, 4),
        "observed_error": round(model.error, 4) if model.observed else None,
        "observed_batches": model.observed,
        "drift": round(model.correction, 4),
        "drift_at_start": round(model.drift_at_start, 4),
    }


def _ratio(coefficients: Coefficients, table: CostTable) -> float:
    """An instance's own measurements relative to those of the table: if several instances of one size have measured,
    the table holds the shorter time of each batch.
    """
    kept = fit(table.measured)
    ratios = [coefficients.seconds(m[1], m[2]) / kept.seconds(m[1], m[2]) for m in table.measured]
    return statistics.median(ratios) if ratios else 1.0
