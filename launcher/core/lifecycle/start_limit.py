"""How long a worker may load its model before its process is inspected, from how long earlier workers took.

A worker that computes is not late, however long it takes: a cold file cache or a loaded machine multiplies the time.
The limit only decides when to look; ``--start-seconds`` is when it must be ready at the latest.
"""

from __future__ import annotations

from collections.abc import Sequence

FACTOR = 5.0
MIN_SECONDS = 10.0
# The number of runs whose load times are kept.
MAX_RUNS = 5


def inspect_after(earlier: Sequence[float]) -> float | None:
    """Seconds after its start when a worker that is not ready is inspected; ``earlier`` are the seconds that others
    took. None if there were none."""
    return max(MIN_SECONDS, FACTOR * max(earlier)) if earlier else None
