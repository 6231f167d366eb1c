"""Limits of a scheduler with the default rules, for tests of other properties."""

from __future__ import annotations

from launcher.core.scheduling.scheduler import SchedulerLimits
from launcher.options import SchedulingOptions

RULES = SchedulingOptions()


def limits(queue_items: int, batch_tokens: int, *, fifo_items: int | None = None) -> SchedulerLimits:
    """Limits with these bounds of the queue and of a batch."""
    return SchedulerLimits(
        queue_items=queue_items,
        queue_seconds=RULES.queue_seconds,
        batch_tokens=batch_tokens,
        interactive_share=RULES.interactive_share,
        bulk_batch_seconds=RULES.bulk_batch_seconds,
        hang_factor=RULES.hang_factor,
        hang_seconds=RULES.hang_seconds,
        busy_hang_seconds=RULES.busy_hang_seconds,
        max_attempts=RULES.max_attempts,
        fifo_items=fifo_items,
    )
