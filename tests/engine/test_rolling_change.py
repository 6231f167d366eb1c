"""The course of a change without processes: which instances are touched when the server shuts down."""

from __future__ import annotations

from typing import Any

import pytest

from launcher.core.lifecycle.change import restart_steps
from launcher.engine.rolling_change import SHUTTING_DOWN, RollingChange, Target

pytestmark = pytest.mark.anyio


class Draining:
    """The instances of an engine that is shutting down; records those that retire."""

    draining = True

    def __init__(self) -> None:
        self.retired: list[int] = []

    async def retire(self, instance: int) -> None:
        self.retired.append(instance)


async def test_a_drain_that_begins_before_the_first_step_leaves_all_instances() -> None:
    instances: Any = Draining()
    missing: Any = None
    steps = restart_steps([(0, None)], beside=False)
    change = RollingChange(instances, {0: (missing, missing)}, Target("restart", missing, steps, same=True))
    await change.run()
    assert instances.retired == []
    assert (change.state, change.reason, change.instances) == ("old", SHUTTING_DOWN, (0,))
