"""Runs N copies of a program: joins the lifecycle, the processes, their output and the signals.

Start: the fork of the subreaper, the machine, the plan, the probes; then the programs. The run is over when every
program has exited: by itself, because another one has failed, or because of a signal, which is forwarded. Signal
handlers only record; tasks react.
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
from pathlib import Path
from typing import BinaryIO, NoReturn

import anyio
import anyio.to_thread
import psutil
from anyio.abc import TaskGroup

from launcher.core.lifecycle.program import (
    Action,
    AnnounceRestart,
    Job,
    Kill,
    Policy,
    ProgramStatus,
    Signal,
    Spawn,
    exit_code,
)
from launcher.core.machine.cpuset import format_cpu_list
from launcher.errors import InstanceError, ResourceShortageError, UsageError
from launcher.host import log as logs
from launcher.host.process import subreaper
from launcher.host.process.exit_status import describe_status
from launcher.host.process.output import Output, Relay, open_log
from launcher.host.process.spawn_program import Program, ProgramLaunch, start_program
from launcher.host.process.verify_binding import Verification, verify
from launcher.options import RunOptions
from launcher.options.env_prefixes import RUN_PREFIX
from launcher.options.sources import without_options
from launcher.prepare.claims import Holder, prepare_and_claim, prepare_report
from launcher.prepare.prepared_instances import Prepared, PreparedInstance
from launcher.prepare.print_report import print_json, print_report
from launcher.run.prepare import prepare_run

log = logging.getLogger("launcher.run")

# A program is verified at these numbers of seconds after its start: threads and memory that it adds later are seen
# later.
VERIFY_AFTER_SECONDS = (1.0, 10.0, 60.0)
# After SIGKILL: time for the kernel to terminate the processes, before the launcher exits without waiting for them.
KILL_SECONDS = 5.0


def show(options: RunOptions, *, as_json: bool) -> None:
    """Print what would be started and where, without starting anything. Raises any ``LauncherError``."""
    prepared = prepare_report(options.machine, lambda claims: prepare_run(options, live=False, claims=claims))
    print_json(prepared) if as_json else print_report(prepared, front=False)


def run(options: RunOptions) -> NoReturn:
    """Start the programs, wait until all have exited, and exit: with 0 if all exited with 0, else with the exit code of
    the first one that failed. Raises any ``LauncherError`` before a program is started.

    Forks (see ``host.process.subreaper``), so it must be called before any thread exists; only the child can raise.
    """
    if options.quiet and options.log_dir is None:
        raise UsageError("--quiet discards the output of the programs; add --log-dir DIR to keep it in files")
    lifeline = subreaper.fork_subreaper()
    logs.set_up(options.log)
    holder = Holder("run", f"{Path(options.program[0]).name}-{os.getpid()}")
    prepared, claim = prepare_and_claim(
        options.machine, holder, lambda claims: prepare_run(options, live=True, claims=claims)
    )
    runner = Runner(options, prepared, lifeline)
    with claim:
        anyio.run(runner.run)
        subreaper.kill_descendants()
    logging.shutdown()
    # Not a normal exit of the interpreter, which would wait for threads: one may be blocked writing to a full pipe.
    os._exit(runner.exit_status)


def policy_of(options: RunOptions) -> Policy:
    """The options, as a policy for the lifecycle of the programs."""
    restart = options.supervise if options.on_failure == "restart" else None
    return Policy(options.on_failure == "stop", restart, options.grace_seconds)


class Runner:
    """One run, from the first start to the last exit. ``lifeline`` is a descriptor that reads end-of-file when the
    subreaper is gone.
    """

    def __init__(self, options: RunOptions, prepared: Prepared, lifeline: int) -> None:
        self._options = options
        self._prepared = prepared
        self._instances: dict[int, PreparedInstance] = {one.plan.id: one for one in prepared.instances}
        self._lifeline = lifeline
        self._job = Job(list(self._instances), policy_of(options))
        self._programs: dict[int, Program] = {}
        self._files: dict[int, BinaryIO] = {}
        self._logged_misses: set[tuple[int, str]] = set()
        self._changed = anyio.Event()
        self._killed_at: float | None = None
        self._run_id = secrets.token_hex(8)
        self._group: TaskGroup | None = None
        self._outputs = (
            Output(sys.stdout.fileno(), self._on_output_closed),
            Output(sys.stderr.fileno(), self._on_output_closed),
        )

    @property
    def exit_status(self) -> int:
        """0 if every program has exited with 0, else the exit code of the first one that failed."""
        return self._job.exit_status if self._job.finished else exit_code(-signal.SIGKILL)

    async def run(self) -> None:
        """Start all programs; returns when all have exited. Raises ``UsageError`` if a log file cannot be written."""
        if self._options.log_dir is not None:
            for instance in self._instances:
                self._files[instance] = open_log(self._options.log_dir, instance)
        self._log_plan()
        async with anyio.create_task_group() as group:
            self._group = group
            await group.start(self._watch_signals)
            group.start_soon(self._watch_lifeline)
            for instance in self._instances:
                self._act(self._job.start(instance, time.monotonic()))
            await self._watch_deadlines()
            group.cancel_scope.cancel()
        self._log_results()

    # ------------------------------------------------------------------ actions

    def _act(self, actions: Sequence[Action]) -> None:
        left = deque(actions)
        while left:
            action = left.popleft()
            if isinstance(action, Spawn):
                left.extend(self._spawn(action.instance))
            elif isinstance(action, Signal):
                self._programs[action.instance].signal(action.number)
            elif isinstance(action, Kill):
                self._programs[action.instance].kill()
            elif isinstance(action, AnnounceRestart):
                limit = self._options.supervise.max_failures
                if action.failures:
                    message = "restarts on the same cores in %.1f s (consecutive failure %d of %d)"
                    self._log(logging.WARNING, action.instance, message, action.delay, action.failures, limit)
                else:
                    message = "the start is retried in %.1f s"
                    self._log(logging.WARNING, action.instance, message, action.delay)
            else:
                self._log(logging.WARNING, action.instance, "failed; stopping the other instances")
        self._changed.set()

    def _spawn(self, instance: int) -> Sequence[Action]:
        assert self._group is not None, "programs are started inside run()"
        prefix = None if self._is_single else f"[{instance}] ".encode()
        outputs = None if self._options.quiet else self._outputs
        relay = Relay(prefix, outputs, self._files.get(instance))
        try:
            program = start_program(self._launch_of(instance), relay)
        except InstanceError as error:
            self._log(logging.ERROR, instance, "%s", error)
            transient = isinstance(error, ResourceShortageError)
            return self._job.spawn_failed(instance, str(error), time.monotonic(), transient=transient)
        self._programs[instance] = program
        self._log(logging.INFO, instance, "started as pid %d", program.pid)
        self._group.start_soon(self._watch, program)
        self._group.start_soon(self._verify_repeatedly, program)
        return self._job.spawned(instance, program.pid, time.monotonic())

    def _launch_of(self, instance: int) -> ProgramLaunch:
        command = self._instances[instance].command
        marker = {f"{RUN_PREFIX}ID": self._run_id, f"{RUN_PREFIX}INSTANCE": str(instance)}
        env = {**without_options(os.environ, RunOptions), **command.env, **marker}
        return ProgramLaunch(instance, command.command, env, marker, stdin=self._is_single)

    @property
    def _is_single(self) -> bool:
        return len(self._instances) == 1

    # ------------------------------------------------------------------- events

    async def _watch(self, program: Program) -> None:
        started = time.monotonic()
        status = await program.wait()
        del self._programs[program.instance]
        now = time.monotonic()
        level = logging.INFO if status == 0 or self._job.stopping else logging.ERROR
        self._log(level, program.instance, "%s after %.1f s", program.describe(status), now - started)
        self._act(self._job.exited(program.instance, status, now))

    async def _watch_deadlines(self) -> None:
        while not self._job.finished:
            self._changed = anyio.Event()
            now = time.monotonic()
            if self._killed_at is not None and now >= self._killed_at + KILL_SECONDS:
                return  # a killed process hangs in the kernel
            if actions := self._job.tick(now):
                self._act(actions)
            deadlines = [self._job.next_deadline(), self._killed_at and self._killed_at + KILL_SECONDS]
            wait = min((deadline - now for deadline in deadlines if deadline is not None), default=None)
            with anyio.move_on_after(wait):
                await self._changed.wait()

    async def _watch_signals(self, *, task_status: anyio.abc.TaskStatus[None]) -> None:
        stopping = subreaper.not_ignored(subreaper.STOP_SIGNALS)
        own = subreaper.not_ignored(subreaper.OWN_STOP_SIGNALS)
        forwarded = subreaper.not_ignored(subreaper.USER_SIGNALS)
        received_numbers = [signal.Signals(number) for number in {signal.SIGCHLD, *stopping, *own, *forwarded}]
        with anyio.open_signal_receiver(*received_numbers) as received:
            task_status.started()
            async for number in received:
                if number == signal.SIGCHLD:
                    self._reap_orphans()
                elif number in forwarded:
                    for program in self._programs.values():
                        program.signal(number)
                elif number in own:
                    if not self._job.stopping:  # the kernel repeats SIGXCPU every second
                        self._stop(signal.SIGTERM, f"{signal.Signals(number).name} received")
                else:
                    self._stop(number, f"{signal.Signals(number).name} received")

    def _stop(self, number: int, why: str) -> None:
        count, name = len(self._programs), signal.Signals(number).name
        if self._job.stopping:
            self._killed_at = time.monotonic()
            log.warning("%s: killing %d programs", why, count, extra={"event": "killing"})
        else:
            message = "%s: sending %s to %d programs; a second signal kills them"
            log.warning(message, why, name, count, extra={"event": "stopping"})
        self._act(self._job.stop(number, time.monotonic()))

    async def _watch_lifeline(self) -> None:
        await anyio.wait_readable(self._lifeline)
        self._killed_at = time.monotonic()
        log.error("the parent process of the launcher was killed; killing all programs", extra={"event": "killing"})
        self._act(self._job.kill(time.monotonic()))

    def _on_output_closed(self) -> None:
        if not self._job.stopping:
            self._stop(signal.SIGTERM, "the output was closed by its reader")

    def _reap_orphans(self) -> None:
        """Reap orphans that programs have left behind; `_watch` waits for the programs themselves."""
        own = {program.pid for program in self._programs.values()}
        for pid in subreaper.children():
            if pid not in own:
                with contextlib.suppress(ChildProcessError):
                    os.waitpid(pid, os.WNOHANG)

    # ------------------------------------------------------------- verification

    async def _verify_repeatedly(self, program: Program) -> None:
        """Verify from outside, several times, that the program and its descendants are placed as planned."""
        elapsed = 0.0
        for seconds in VERIFY_AFTER_SECONDS:
            await anyio.sleep(seconds - elapsed)
            elapsed = seconds
            if self._programs.get(program.instance) is not program:
                return
            found = await anyio.to_thread.run_sync(partial(self._verify, program))
            self._report_verification(program, found, first=seconds == VERIFY_AFTER_SECONDS[0])

    def _verify(self, program: Program) -> list[Verification]:
        instance = self._instances[program.instance]
        pids = [program.pid]
        with contextlib.suppress(psutil.Error):
            pids += [child.pid for child in psutil.Process(program.pid).children(recursive=True)]
        found = []
        for pid in pids:
            with contextlib.suppress(InstanceError):  # it has exited meanwhile
                found.append(verify(pid, instance.plan.cpus, instance.plan.nodes, None, instance.binding.level))
        return found

    def _report_verification(self, program: Program, found: list[Verification], *, first: bool) -> None:
        if self._programs.get(program.instance) is not program:
            return
        misses = [f"pid {one.pid}: {miss}" for one in found for miss in one.misses]
        if first and found and not misses:
            others = f" (and {len(found) - 1} descendants)" if len(found) > 1 else ""
            self._log(logging.INFO, program.instance, "%s%s", found[0].sentence(), others)
        for miss in misses:
            if (program.instance, miss) not in self._logged_misses:
                self._logged_misses.add((program.instance, miss))
                self._log(logging.ERROR, program.instance, "%s", miss)
        if misses and self._options.machine.strict:
            self._act(self._job.fail(program.instance, f"--strict: {misses[0]}", time.monotonic()))

    # ---------------------------------------------------------------------- log

    def _log_plan(self) -> None:
        for warning in self._prepared.warnings:
            log.warning("%s", warning, extra={"event": "warning"})
        for instance in self._instances.values():
            plan = instance.plan
            self._log(logging.INFO, plan.id, "cpus %s, %s", format_cpu_list(plan.cpus), plan.why)
            self._log(logging.DEBUG, plan.id, "command: %s", " ".join(instance.command.command))

    def _log_results(self) -> None:
        for program in self._job.programs():
            level = logging.ERROR if program.state == "failed" else logging.INFO
            self._log(level, program.instance, "%s", summary(program))

    def _log(self, level: int, instance: int, message: str, *values: object) -> None:
        log.log(level, message, *values, extra={"instance": instance, "event": "run"})


def summary(program: ProgramStatus) -> str:
    """The result of one instance on one line."""
    starts = f", {program.starts} starts" if program.starts > 1 else ""
    if program.reason is not None:
        return f"failed{starts}: {program.reason}"
    if program.exit_status is None:
        return "never started" if program.starts == 0 else f"had not exited{starts}"
    code = f" (exit code {exit_code(program.exit_status)})" if program.exit_status < 0 else ""
    return f"{program.state}: {describe_status(program.exit_status)}{code}{starts}"
