"""Receives the signals of ``launch serve``: what each signal means, from the first line of ``run`` to the exit.

Separate from the server because the dispositions are set before its event loop exists and stay in effect after it has
ended: at no time does a signal kill a process that has requests to answer. Handlers only record, and wake the loop.
What the server does about a signal does not belong here.
"""

from __future__ import annotations

import asyncio
import os
import signal
from collections import deque
from collections.abc import AsyncIterator, Callable
from typing import Literal, NoReturn

from launcher.signal_sets import TERMINAL_STOPS, UNUSED_SIGNALS

Meaning = Literal["drain", "reload", "none"]

# A second one of these stops the server at once. Those ignored at the start stay ignored: a shell starts background
# commands with SIGINT and SIGQUIT ignored.
STOP = (signal.SIGTERM, signal.SIGINT, signal.SIGQUIT)
# Drain as well, but repetitions do not count: the kernel repeats SIGXCPU every second, an init system SIGPWR.
DRAIN_ONCE = (signal.SIGXCPU, signal.SIGPWR)
RELOAD = signal.SIGHUP


class StoppedAtStart(SystemExit):
    """Raised by a stop signal before there is anything to drain; the exit status is 0, as after a drain."""


class SignalInbox:
    """The signals of this process, in order. Create it in the main thread.

    Until ``hold`` a stop signal ends the process with ``StoppedAtStart``, later ones are recorded for ``received``.
    """

    def __init__(self) -> None:
        self._pending: deque[int] = deque()
        self._wake: Callable[[], object] | None = None
        self._on_stop: Callable[[int], None] | None = self._stop_at_start
        self._stopped_at_start = False
        self._under_nohup = signal.getsignal(RELOAD) is signal.SIG_IGN
        self._had_terminal = _has_terminal()
        for number in (*STOP, *DRAIN_ONCE, RELOAD, *UNUSED_SIGNALS):
            if number not in STOP or signal.getsignal(number) is not signal.SIG_IGN:
                signal.signal(number, self._record)
        # Handled instead of ignored, they would interrupt the same read or write again and again.
        for number in TERMINAL_STOPS:
            signal.signal(number, signal.SIG_IGN)

    def hold(self) -> None:
        """From now on stop signals are recorded: a server exists that must be drained."""
        self._on_stop = None

    def finish(self, status: int) -> None:
        """The server has ended: from now on a stop signal ends the process at once, with this exit status."""
        self._on_stop = lambda _: os._exit(status)

    async def received(self) -> AsyncIterator[int]:
        """Each signal that has arrived since ``hold``, without end."""
        loop, arrived = asyncio.get_running_loop(), asyncio.Event()
        self._wake = lambda: loop.call_soon_threadsafe(arrived.set)
        try:
            while True:
                arrived.clear()
                while self._pending:
                    yield self._pending.popleft()
                if not self._pending:
                    await arrived.wait()
        finally:
            self._wake = None

    def meaning(self, number: int) -> Meaning:
        """What a signal asks for. SIGHUP asks to reload, unless it says that the terminal was closed: then it drains,
        or has no effect if the process was started with nohup."""
        if number in (*STOP, *DRAIN_ONCE):
            return "drain"
        if number != RELOAD:
            return "none"
        if self._had_terminal and not _has_terminal():
            return "none" if self._under_nohup else "drain"
        return "reload"

    def _record(self, number: int, _frame: object) -> None:
        if number in STOP and self._on_stop is not None:
            self._on_stop(number)
        self._pending.append(number)
        if self._wake is not None:
            self._wake()

    def _stop_at_start(self, number: int) -> NoReturn:
        if self._stopped_at_start:
            os._exit(128 + number)  # the first one has not ended the process yet
        self._stopped_at_start = True
        raise StoppedAtStart(0)


def _has_terminal() -> bool:
    """Whether this process has a controlling terminal; the kernel takes it away when the terminal is closed."""
    try:
        os.close(os.open("/dev/tty", os.O_RDWR | os.O_NOCTTY))
    except OSError:
        return False
    return True
