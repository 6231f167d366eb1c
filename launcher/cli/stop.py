"""``launch stop``."""

from __future__ import annotations

from launcher.options import StopOptions


def stop(options: StopOptions) -> None:
    """Stop launchers: admitted requests are completed first. Waits until they have exited."""
    from launcher.host.process.stop_launchers import stop_launchers

    stop_launchers(options)
