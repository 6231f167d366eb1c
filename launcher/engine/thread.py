"""A session on an event loop of its own, in a thread that lives as long as the session.

For callers without a loop, and for callers that block theirs (a notebook). This thread starts the workers: the kernel
kills them when the thread that started them exits, so it must outlive them. Signal handlers and event loop policies
must not be changed.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import os
import threading
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

import uvloop

from launcher.engine.session import CLOSED, Session
from launcher.errors import UsageError

Result = TypeVar("Result")


class SessionThread:
    """Runs the session that ``make_session`` returns. Methods can be called from any thread."""

    def __init__(self, make_session: Callable[[], Session]) -> None:
        """Wait until the instances are ready. Raises what ``make_session`` and ``Session.start`` raise."""
        self._make_session = make_session
        self._process = os.getpid()
        self._loop: asyncio.AbstractEventLoop = uvloop.new_event_loop()
        self._started: concurrent.futures.Future[Session] = concurrent.futures.Future()
        self._asked_to_end = asyncio.Event()
        self._kill = False
        # Reentrant: the garbage collector may run the finalizer of an engine anywhere, including here.
        self._lock = threading.RLock()
        self._closed = False
        self._ended = threading.Event()
        # A daemon, because at exit the interpreter joins all other threads before it runs finalizers.
        self._thread = threading.Thread(target=self._run, name="launcher engine", daemon=True)
        self._thread.start()
        try:
            self.session = self._started.result()
        except BaseException:  # also when the wait is interrupted
            self.kill()
            raise

    def submit(self, work: Coroutine[Any, Any, Result]) -> concurrent.futures.Future[Result]:
        """Run a coroutine on the session's loop; cancelling the future cancels it. Raises ``UsageError`` if the engine
        is closed, and in a forked process."""
        with self._lock:
            if self._closed or self._process != os.getpid():
                work.close()
                raise UsageError(CLOSED if self._process == os.getpid() else self._forked())
            return asyncio.run_coroutine_threadsafe(work, self._loop)

    def close(self) -> None:
        """Finish admitted work and stop the workers; returns when all have exited."""
        self._end(kill=False)

    def kill(self) -> None:
        """Kill the workers; returns when all have exited."""
        self._end(kill=True)

    def _end(self, *, kill: bool) -> None:
        if self._process != os.getpid():
            return  # a forked process has the memory of its parent, but not its threads or workers
        with self._lock:
            if not self._closed:
                self._loop.call_soon_threadsafe(self._request_end, kill)
        if threading.current_thread() is not self._thread:
            # Not the thread alone: before Python 3.13, a join that Ctrl-C interrupts makes the next one return at once.
            self._ended.wait()
            self._thread.join()

    def _forked(self) -> str:
        return (
            f"this engine belongs to process {self._process}, and this is process {os.getpid()}, forked from it; "
            "create an engine in the process that uses it"
        )

    # ---------------------------------------------------------- in the thread

    def _run(self) -> None:
        try:
            self._loop.run_until_complete(self._main())
        except BaseException as error:
            if self._started.done():
                raise
            self._started.set_exception(error)
        finally:
            self._loop.close()
            self._ended.set()

    async def _main(self) -> None:
        try:
            session = self._make_session()
            asked = asyncio.create_task(self._asked_to_end.wait())
            starting = asyncio.create_task(session.start())
            await asyncio.wait({starting, asked}, return_when=asyncio.FIRST_COMPLETED)
            if not starting.done():
                starting.cancel()
            await starting
            self._started.set_result(session)
            await asked
            ending = asyncio.create_task(session.close())
            while not ending.done():
                if self._kill:
                    session.kill()
                self._asked_to_end.clear()
                again = asyncio.create_task(self._asked_to_end.wait())
                await asyncio.wait({ending, again}, return_when=asyncio.FIRST_COMPLETED)
            ending.result()
        finally:
            await self._cancel_remaining()

    def _request_end(self, kill: bool) -> None:
        self._kill = self._kill or kill
        self._asked_to_end.set()

    async def _cancel_remaining(self) -> None:
        """Cancel all remaining tasks, so that no caller waits for a loop that has ended."""
        with self._lock:
            self._closed = True
        await asyncio.sleep(0)  # until work submitted earlier has become tasks
        await asyncio.sleep(0)
        rest = asyncio.all_tasks() - {asyncio.current_task()}
        for task in rest:
            task.cancel()
        await asyncio.gather(*rest, return_exceptions=True)
        await self._loop.shutdown_asyncgens()
