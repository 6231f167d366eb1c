"""Entry point: ``python -m launcher.worker --instance 0 --threads 12 [--cpus 0-11 --memory bind --nodes 0]``.

File descriptor 0 is the channel, a connected stream socket, as with inetd. The options in brackets are for machines
without numactl, where the worker binds itself. Exit status: 0 after ``Stop`` or EOF on the channel, 2 for invalid
arguments, 4 if the model cannot be served, 5 if the binding fails, 6 if the
channel carries anything but valid messages.

The order of the first steps is the reason for this module: signals and binding are set up before anything is imported
that starts threads or allocates memory. Only the standard library, and modules that need no more, are imported at the
top.
"""

from __future__ import annotations

import argparse
import os
import socket
import sys
from collections.abc import Sequence

from launcher import pinning
from launcher.core.machine.cpuset import parse_cpu_list
from launcher.errors import LauncherError, MachineError, UsageError
from launcher.worker import shutdown

EXIT_USAGE = 2
EXIT_BINDING_FAILED = 5


def parse_arguments(arguments: Sequence[str]) -> argparse.Namespace:
    """Parse the command line; exits with status 2 and a usage message if it is invalid."""
    parser = argparse.ArgumentParser(prog="python -m launcher.worker", description="Run one instance of a model.")
    parser.add_argument("--instance", type=int, required=True, help="id of the instance, for log messages")
    parser.add_argument("--threads", type=int, required=True, help="number of compute threads")
    parser.add_argument(
        "--cpus",
        type=parse_cpu_list,
        default=(),
        help="bind to these CPUs (list in the kernel's format, such as 0-3,8)",
    )
    parser.add_argument("--memory", choices=sorted(pinning.MEMORY_POLICIES), help="memory policy; requires --nodes")
    parser.add_argument(
        "--nodes", type=parse_cpu_list, default=(), help="NUMA nodes of --memory (same format as --cpus)"
    )
    values = parser.parse_args(arguments)
    if values.threads < 1:
        parser.error(f"--threads {values.threads}: must be at least 1")
    if bool(values.memory) != bool(values.nodes):
        parser.error("--memory and --nodes must be given together")
    return values


def take_channel() -> socket.socket:
    """Move the channel from descriptor 0 to a private one and open /dev/null in its place, so that no library reads
    from it.

    Raises ``UsageError`` if descriptor 0 is not a connected socket.
    """
    try:
        connection = socket.socket(fileno=os.dup(0))
        connection.getpeername()
    except OSError as error:
        raise UsageError(
            f"python -m launcher.worker: file descriptor 0 is not a connected socket ({error.strerror}); "
            "`launch` starts workers"
        ) from error
    with open(os.devnull, "rb") as null:  # noqa: PTH123  # pathlib must not be imported before the binding
        os.dup2(null.fileno(), 0)
    return connection


def bind(values: argparse.Namespace) -> None:
    """Bind this process as numactl would. Raises ``MachineError``."""
    if values.cpus:
        pinning.bind_cpus(values.cpus)
    if values.memory:
        pinning.bind_memory(values.memory, values.nodes)


def report_unusable(connection: socket.socket, reason: str) -> None:
    """Report to the front why this worker does not start, or to stderr if the front has closed the channel."""
    from launcher.core.protocol.messages import Unusable  # not before the binding
    from launcher.worker.channel import Channel, ChannelClosed

    try:
        Channel(connection).send(Unusable(reason))
    except ChannelClosed:
        print(reason, file=sys.stderr, flush=True)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a worker until ``Stop`` or EOF on its channel; returns the exit status."""
    shutdown.ignore_signals()
    values = parse_arguments(sys.argv[1:] if arguments is None else arguments)
    try:
        connection = take_channel()
    except LauncherError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    try:
        pinning.die_with_parent()
    except MachineError as error:  # a sandbox; EOF on the channel ends this process nevertheless
        print(f"warning: {error}", file=sys.stderr)
    if shutdown.has_hung_up(connection):
        return 0
    try:
        bind(values)
    except MachineError as error:
        report_unusable(connection, f"instance {values.instance}: {error}")
        return EXIT_BINDING_FAILED
    shutdown.exit_on_hangup(connection)

    from launcher.worker.loop import work  # imports numpy and, later, torch
    from launcher.worker.temporary_folder import tolerate_absence

    tolerate_absence()
    return work(connection, values.instance, values.threads)


if __name__ == "__main__":
    status = main()
    sys.stdout.flush()
    sys.stderr.flush()
    # Skips the interpreter's own shutdown: the hang-up watch and the OpenMP threads still run and need no cleanup.
    os._exit(status)
