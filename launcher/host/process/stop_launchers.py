"""``launch stop``: sends SIGTERM to launchers that the registry lists, and waits until they have exited.

Signals go through process descriptors (pidfd_open(2)), which never denote another process that has got the same id. A
claim is a file that any user may have written, so a process is signalled only if it belongs to the owner of the claim.
"""

from __future__ import annotations

import os
import select
import signal
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from launcher.core.planning.claims import Claim, chosen
from launcher.errors import LauncherError, UsageError
from launcher.host.log import write_line
from launcher.host.registry import Listing, Registry
from launcher.options import StopOptions

# How often the progress is printed.
PROGRESS_SECONDS = 5.0
# Time for the kernel to end killed processes.
KILL_SECONDS = 10.0


@dataclass(frozen=True, slots=True)
class _Target:
    claim: Claim
    handle: int

    def exited(self, seconds: float) -> bool:
        """Whether the process exits within this time."""
        return bool(select.select([self.handle], [], [], max(0.0, seconds))[0])


def stop_launchers(options: StopOptions) -> None:
    """Stop the chosen launchers and print the progress. Raises ``UsageError`` if there is none with that name, and
    ``LauncherError`` if one cannot be stopped or has not exited in time.
    """
    if bool(options.names) == options.all:
        raise UsageError("launch stop needs names or process IDs, or --all; `launch ps` lists the running launchers")
    listing = Registry.of(os.environ).read()
    targets = list(_targets(_chosen(listing, options), listing, skip=options.all))
    try:
        for target in targets:
            _send(target, signal.SIGTERM)
            _say(f"{target.claim.title}: SIGTERM sent, waiting for admitted requests")
        running = _wait(targets, options.seconds)
        if running and options.kill:
            for target in running:
                _send(target, signal.SIGKILL)
                _say(f"{target.claim.title}: killed, because it had not exited after {options.seconds:g} s")
            running = _wait(running, KILL_SECONDS)
    finally:
        for target in targets:
            os.close(target.handle)
    if running:
        names = " and ".join(target.claim.title for target in running)
        raise LauncherError(f"{names} did not exit within {options.seconds:g} s; use --seconds or --kill")


def _chosen(listing: Listing, options: StopOptions) -> Sequence[Claim]:
    if not options.all:
        return chosen(listing.claims, options.names)
    own = [claim for claim in listing.claims if os.geteuid() in (0, listing.owners[claim.pid])]
    if not own:
        _say("no launcher is running")
    return own


def _targets(claims: Sequence[Claim], listing: Listing, *, skip: bool) -> Iterator[_Target]:
    """The processes of claims. What is not a launcher is left out with ``skip``; otherwise raises ``LauncherError``."""
    for claim in claims:
        try:
            handle = os.pidfd_open(claim.pid)
        except ProcessLookupError:
            if skip:
                continue
            raise LauncherError(f"{claim.title} is not a process here; it may run in another container") from None
        if Path(f"/proc/{claim.pid}").stat().st_uid != listing.owners[claim.pid]:
            os.close(handle)
            if skip:
                continue
            raise LauncherError(f"{claim.title}: the process {claim.pid} belongs to another user than the claim")
        yield _Target(claim, handle)


def _send(target: _Target, number: signal.Signals) -> None:
    try:
        signal.pidfd_send_signal(target.handle, number)
    except ProcessLookupError:
        return  # it has exited
    except PermissionError:
        raise LauncherError(f"{target.claim.title}: only user {target.claim.user} and root may stop it") from None


def _wait(targets: Sequence[_Target], seconds: float) -> list[_Target]:
    """Wait until all have exited; returns those that have not after ``seconds``."""
    end, running = time.monotonic() + seconds, list(targets)
    while running:
        left = end - time.monotonic()
        first = running[0]
        if first.exited(min(PROGRESS_SECONDS, left)):
            _say(f"{first.claim.title}: exited")
            running.pop(0)
        elif left <= 0:
            break
        else:
            _say(f"{first.claim.title}: still running")
    return [target for target in running if not target.exited(0)]


def _say(sentence: str) -> None:
    write_line(f"launch: {sentence}")
