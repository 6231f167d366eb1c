"""Runs N copies of a program: joins their course, their processes, their output and the signals.

Order of the start: the keeper's fork, the machine, the plan, the probes; then the programs. The end comes when every
program has ended: by itself, because another one has failed, or by a signal, which is passed on. Signal handlers only
record; tasks react.
"""

from __future__ import annotations

import contextlib
import logging
import os
import secrets
import signal
import sys
import time
from collections import deque
from collections.abc import Sequence
from functools import partial
from typing import BinaryIO, NoReturn

import anyio
import anyio.to_thread
import psutil
from anyio.abc import TaskGroup

from launcher.core.lifecycle.program import (
    Action,
    Course,
    CoursePolicy,
    Kill,
    Progress,
    Restart,
    Signal,
    Start,
    exit_code,
)
from launcher.core.lifecycle.worker import RestartPolicy
from launcher.core.machine.cpuset import format_cpu_list
from launcher.errors import InstanceError, UsageError
from launcher.host import log as logs
from launcher.host.process import subreaper
from launcher.host.process.output import Output, Relay, open_log
from launcher.host.process.programs import Program, ProgramLaunch, start_program
from launcher.host.process.spawn import describe_status
from launcher.host.process.verify import Verification, verify
from launcher.options import RunOptions
from launcher.prepare.instances import Prepared, PreparedInstance
from launcher.prepare.report import print_json, print_report
from launcher.run.prepare import prepare_run

log = logging.getLogger("launcher.run")

# Seconds after its start when a program is looked at: threads and memory that come later are seen later.
LOOKS = (1.0, 10.0, 60.0)
# After SIGKILL: time for the kernel to end what was killed, before the launcher ends without having seen it.
KILL_SECONDS = 5.0


def show(options: RunOptions, *, as_json: bool) -> None:
    """Print what would be started where; nothing is. Raises any ``LauncherError``."""
    prepared = prepare_run(options, live=False)
    print_json(prepared) if as_json else print_report(prepared, front=False)


def run(options: RunOptions) -> NoReturn:
    """Start the programs, see them to their end, and exit: with 0 when all ended with 0, else with the code of the
    first that failed. Raises any ``LauncherError`` before a program is started.

    Forks (see ``host.process.subreaper``), so it is to be called before any thread exists; only the child can raise.
    """
    if options.quiet and options.log_dir is None:
        raise UsageError("--quiet throws the output of the programs away; --log-dir DIR keeps it in files")
    lifeline = subreaper.keep()
    logs.set_up(options.log)
    runner = Runner(options, prepare_run(options, live=True), lifeline)
    anyio.run(runner.run)
    subreaper.end_descendants()
    logging.shutdown()
    # Not by the interpreter's own end: it waits for threads, and one may be writing to somebody who does not read.
    os._exit(runner.exit_status)


def policy_of(options: RunOptions) -> CoursePolicy:
    """The options as the course takes them."""
    rule = options.supervise
    restart = RestartPolicy(
        max_failures=rule.max_failures,
        backoff_seconds=rule.backoff_seconds,
        backoff_limit_seconds=rule.backoff_limit_seconds,
        settled_seconds=rule.settled_seconds,
    )
    return CoursePolicy(options.on_failure, options.grace_seconds, restart)


class Runner:
    """One run, from the first start to the last end. ``lifeline`` reads end-of-file when the keeper is gone."""

    def __init__(self, options: RunOptions, prepared: Prepared, lifeline: int) -> None:
        self._options = options
        self._prepared = prepared
        self._instances: dict[int, PreparedInstance] = {one.plan.id: one for one in prepared.instances}
        self._lifeline = lifeline
        self._course = Course([instance.id for instance in prepared.plan.instances], policy_of(options))
        self._programs: dict[int, Program] = {}
        self._files: dict[int, BinaryIO] = {}
        self._said: set[tuple[int, str]] = set()
        self._changed = anyio.Event()
        self._killed_at: float | None = None
        self._run = secrets.token_hex(8)
        self._group: TaskGroup | None = None
        self._outputs = (
            Output(sys.stdout.fileno(), self._nobody_reads),
            Output(sys.stderr.fileno(), self._nobody_reads),
        )

    @property
    def exit_status(self) -> int:
        """0 when every program has ended with 0, else that of the first that failed."""
        return self._course.exit_status if self._course.over else exit_code(-signal.SIGKILL)

    async def run(self) -> None:
        """Start all programs; returns when all have ended. Raises ``UsageError`` for a log folder that cannot be."""
        if self._options.log_dir is not None:
            for instance in self._prepared.plan.instances:
                self._files[instance.id] = open_log(self._options.log_dir, instance.id)
        self._say_start()
        async with anyio.create_task_group() as group:
            self._group = group
            await group.start(self._watch_signals)
            group.start_soon(self._watch_lifeline)
            self._act(self._course.begin(time.monotonic()))
            await self._watch_time()
            group.cancel_scope.cancel()
        self._say_end()

    # ------------------------------------------------------------------ actions

    def _act(self, actions: Sequence[Action]) -> None:
        left = deque(actions)
        while left:
            action = left.popleft()
            if isinstance(action, Start):
                left.extend(self._start(action))
            elif isinstance(action, Signal):
                self._programs[action.instance].signal(action.number)
            elif isinstance(action, Kill):
                self._programs[action.instance].kill()
            elif isinstance(action, Restart):
                limit = self._options.supervise.max_failures
                message = "starts again on the same cores in %.1f s (failure %d of %d in a row)"
                self._say(logging.WARNING, action.instance, message, action.delay, action.failures, limit)
            else:
                self._say(logging.WARNING, action.instance, "has failed, so the others are told to end")
        self._changed.set()

    def _start(self, action: Start) -> Sequence[Action]:
        assert self._group is not None, "programs are started inside run()"
        command = self._instances[action.instance].command
        mark = {"LAUNCH_RUN": self._run, "LAUNCH_INSTANCE": str(action.instance)}
        alone = len(self._instances) == 1
        launch = ProgramLaunch(
            action.instance, command.command, {**os.environ, **command.env, **mark}, mark, stdin=alone
        )
        prefix = None if alone else f"[{action.instance}] ".encode()
        outputs = None if self._options.quiet else self._outputs
        try:
            program = start_program(launch, Relay(prefix, outputs, self._files.get(action.instance)))
        except InstanceError as error:
            self._say(logging.ERROR, action.instance, "%s", error)
            return self._course.not_started(action.instance, str(error), time.monotonic())
        self._programs[action.instance] = program
        self._say(logging.INFO, action.instance, "started as pid %d", program.pid)
        self._group.start_soon(self._watch, program)
        self._group.start_soon(self._look_at, program)
        return ()

    # ------------------------------------------------------------------- events

    async def _watch(self, program: Program) -> None:
        started = time.monotonic()
        status = await program.wait()
        del self._programs[program.instance]
        now = time.monotonic()
        level = logging.INFO if status == 0 or self._course.ending else logging.ERROR
        self._say(level, program.instance, "%s after %.1f s", program.describe(status), now - started)
        self._act(self._course.ended(program.instance, status, now))

    async def _watch_time(self) -> None:
        while not self._course.over:
            self._changed = anyio.Event()
            now = time.monotonic()
            if self._killed_at is not None and now >= self._killed_at + KILL_SECONDS:
                return  # the kernel does not let go of what was killed
            if actions := self._course.tick(now):
                self._act(actions)
            deadlines = [self._course.next_deadline(), self._killed_at and self._killed_at + KILL_SECONDS]
            wait = min((deadline - now for deadline in deadlines if deadline is not None), default=None)
            with anyio.move_on_after(wait):
                await self._changed.wait()

    async def _watch_signals(self, *, task_status: anyio.abc.TaskStatus[None]) -> None:
        ending, passed_on = subreaper.heard(subreaper.ENDING), subreaper.heard(subreaper.FOR_PROGRAMS)
        with anyio.open_signal_receiver(signal.SIGCHLD, *ending, *passed_on) as received:
            task_status.started()
            async for number in received:
                if number == signal.SIGCHLD:
                    self._reap_orphans()
                elif number in passed_on:
                    for program in self._programs.values():
                        program.signal(number)
                else:
                    self._end(number, signal.Signals(number).name)

    def _end(self, number: int, why: str) -> None:
        again = self._course.ending
        count = len(self._programs)
        if again:
            self._killed_at = time.monotonic()
            log.warning("%s: killing %d programs", why, count, extra={"event": "killing"})
        else:
            log.warning("%s: passed on to %d programs; a second signal kills", why, count, extra={"event": "ending"})
        self._act(self._course.signalled(number, time.monotonic()))

    async def _watch_lifeline(self) -> None:
        await anyio.wait_readable(self._lifeline)
        self._killed_at = time.monotonic()
        log.error("the process that was started first is gone; killing all programs", extra={"event": "killing"})
        self._act(self._course.kill_all(time.monotonic()))

    def _nobody_reads(self) -> None:
        if not self._course.ending:
            self._end(signal.SIGTERM, "nobody reads the output any more")

    def _reap_orphans(self) -> None:
        """Reap what programs have left behind; their own end is waited for elsewhere."""
        own = {program.pid for program in self._programs.values()}
        for pid in subreaper.children():
            if pid not in own:
                with contextlib.suppress(ChildProcessError):
                    os.waitpid(pid, os.WNOHANG)

    # ------------------------------------------------------------- verification

    async def _look_at(self, program: Program) -> None:
        """Look from outside, some times, whether the program and what it has started sit as planned."""
        passed = 0.0
        for seconds in LOOKS:
            await anyio.sleep(seconds - passed)
            passed = seconds
            if self._programs.get(program.instance) is not program:
                return
            found = await anyio.to_thread.run_sync(partial(self._verify, program))
            self._judge(program, found, first=seconds == LOOKS[0])

    def _verify(self, program: Program) -> list[Verification]:
        instance = self._instances[program.instance]
        pids = [program.pid]
        with contextlib.suppress(psutil.Error):
            pids += [child.pid for child in psutil.Process(program.pid).children(recursive=True)]
        found = []
        for pid in pids:
            with contextlib.suppress(InstanceError):  # it has ended meanwhile
                found.append(verify(pid, instance.plan.cpus, instance.plan.nodes, None, instance.binding.level))
        return found

    def _judge(self, program: Program, found: list[Verification], *, first: bool) -> None:
        if self._programs.get(program.instance) is not program:
            return
        misses = [f"pid {one.pid}: {miss}" for one in found for miss in one.misses]
        if first and found and not misses:
            others = f" (and {len(found) - 1} processes that it has started)" if len(found) > 1 else ""
            self._say(logging.INFO, program.instance, "%s%s", found[0].sentence(), others)
        for miss in misses:
            if (program.instance, miss) not in self._said:
                self._said.add((program.instance, miss))
                self._say(logging.ERROR, program.instance, "%s", miss)
        if misses and self._options.machine.strict:
            self._act(self._course.refused(program.instance, f"--strict: {misses[0]}", time.monotonic()))

    # -------------------------------------------------------------------- words

    def _say_start(self) -> None:
        for warning in self._prepared.warnings:
            log.warning("%s", warning, extra={"event": "warning"})
        for instance in self._prepared.instances:
            plan = instance.plan
            self._say(logging.INFO, plan.id, "cpus %s, %s", format_cpu_list(plan.cpus), plan.why)
            self._say(logging.DEBUG, plan.id, "command: %s", " ".join(instance.command.command))

    def _say_end(self) -> None:
        for one in self._course.progress():
            level = logging.ERROR if one.state == "failed" else logging.INFO
            self._say(level, one.instance, "%s", summary(one))

    def _say(self, level: int, instance: int, message: str, *values: object) -> None:
        log.log(level, message, *values, extra={"instance": instance, "event": "run"})


def summary(one: Progress) -> str:
    """One line on how an instance has ended."""
    starts = f", {one.starts} starts" if one.starts > 1 else ""
    if one.reason is not None:
        return f"failed{starts}: {one.reason}"
    if one.status is None:
        return "was never started" if one.starts == 0 else f"had not ended{starts}"
    words = {"done": "done", "failed": "failed", "ended": "ended as told"}.get(one.state, one.state)
    code = f" (exit code {exit_code(one.status)})" if one.status < 0 else ""
    return f"{words}: {describe_status(one.status)}{code}{starts}"
