"""Reports readiness, progress and the watchdog's sign of life to the service manager, while the server runs.

Separate from the messages themselves (``service_manager``) and from the order of start and shutdown (``server``). It
runs in the event loop, so that a blocked loop misses the watchdog's deadline.
"""

from __future__ import annotations

from collections.abc import Callable

import anyio

from launcher.engine.inference_engine import InferenceEngine
from launcher.serve.service_manager import ServiceManager

# How often the state is looked at. Until the server is ready, more often: units that depend on it wait.
SECONDS, SECONDS_UNTIL_READY = 1.0, 0.1


async def report_state(manager: ServiceManager, engine: InferenceEngine, is_healthy: Callable[[], bool]) -> None:
    """Report until cancelled. The watchdog hears from this server only while ``is_healthy``. Returns immediately
    without a service manager."""
    ready = False
    while manager.present:
        manager.flush()
        if not ready and engine.is_ready():
            ready = True
            manager.ready()
        manager.status(_status_of(engine))
        if manager.watchdog_seconds is not None and is_healthy():
            manager.alive()
        interval = SECONDS if ready else SECONDS_UNTIL_READY
        await anyio.sleep(min(interval, (manager.watchdog_seconds or 2 * interval) / 2))


def _status_of(engine: InferenceEngine) -> str:
    states = [state["state"] for state in engine.states().values()]
    ready, count = states.count("ready"), len(states)
    if engine.draining:
        return f"draining: {engine.dispatcher.in_flight} requests are not answered yet"
    if engine.failure is not None:
        return f"failed: {engine.failure}"
    prefix = "" if engine.is_ready() else "not ready: "
    return f"{prefix}{ready} of {count} instances are ready"
