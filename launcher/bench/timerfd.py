"""A timer that wakes a task with an accuracy of tens of microseconds; timers of event loops are accurate to
milliseconds.

An open loop at 1,000 requests per second whose arrivals are off by a millisecond would measure its own timer. A Linux
timerfd is accurate and costs nothing while it waits. (Python provides it from 3.13 on; here it is called with ctypes.)
"""

from __future__ import annotations

import asyncio
import ctypes
import os
import time
from types import TracebackType

_CLOCK_MONOTONIC = 1
_NONBLOCK_CLOEXEC = os.O_NONBLOCK | os.O_CLOEXEC  # equal to TFD_NONBLOCK and TFD_CLOEXEC, see timerfd_create(2)
_ABSOLUTE = 1  # TFD_TIMER_ABSTIME
_NANOSECONDS = 1_000_000_000


class _Timespec(ctypes.Structure):
    _fields_ = (("seconds", ctypes.c_long), ("nanoseconds", ctypes.c_long))


class _Itimerspec(ctypes.Structure):
    _fields_ = (("interval", _Timespec), ("value", _Timespec))


class TimerFd:
    """A timer for one task at a time; an asynchronous context manager. Times are on the ``time.monotonic`` clock."""

    def __init__(self) -> None:
        self._libc = ctypes.CDLL(None, use_errno=True)
        self._file = self._libc.timerfd_create(_CLOCK_MONOTONIC, _NONBLOCK_CLOEXEC)
        if self._file < 0:
            number = ctypes.get_errno()
            raise OSError(number, f"timerfd_create: {os.strerror(number)}")
        self._waiter: asyncio.Future[None] | None = None
        self._loop = asyncio.get_running_loop()

    async def __aenter__(self) -> TimerFd:
        self._loop.add_reader(self._file, self._expired)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._loop.remove_reader(self._file)
        os.close(self._file)

    async def until(self, moment: float) -> None:
        """Return at ``moment``; if it has passed, after yielding to other tasks."""
        if moment <= time.monotonic():
            await asyncio.sleep(0)
            return
        seconds, nanoseconds = divmod(int(moment * _NANOSECONDS) + 1, _NANOSECONDS)
        value = _Itimerspec(_Timespec(0, 0), _Timespec(seconds, nanoseconds))
        self._waiter = self._loop.create_future()
        if self._libc.timerfd_settime(self._file, _ABSOLUTE, ctypes.byref(value), None) < 0:
            number = ctypes.get_errno()
            raise OSError(number, f"timerfd_settime: {os.strerror(number)}")
        await self._waiter

    def _expired(self) -> None:
        os.read(self._file, 8)  # the number of expirations; unread, the file would stay readable
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)
