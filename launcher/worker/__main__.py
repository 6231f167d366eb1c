"""Entry of a worker: ``python -m launcher.worker --instance 0 --threads 12 [--cpus 0-11 --memory bind --nodes 0]``.

File descriptor 0 is the channel, a connected stream socket, as inetd gives it. The part in brackets is for machines
without numactl: then the worker binds itself. Exit status: 0 after ``Stop`` or when the channel was closed, 2 for
arguments that make no sense, 3 when the death signal was refused, 4 when the model cannot be served, 5 when the
binding was refused, 6 when the channel carries something that is no message.

The order of the first steps is the reason for this module: death signal, signals and binding come before the first
import of anything that starts threads or takes memory. Nothing but the standard library is imported at the top.
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
from launcher.worker import signals

EXIT_USAGE = 2
EXIT_NOT_BOUND = 5


def parse_arguments(arguments: Sequence[str]) -> argparse.Namespace:
    """The command line as values; ends the process with status 2 and a usage line when it makes no sense."""
    parser = argparse.ArgumentParser(prog="python -m launcher.worker", description="One model instance.")
    parser.add_argument("--instance", type=int, required=True, help="id of the instance, for its log lines")
    parser.add_argument("--threads", type=int, required=True, help="threads to compute with")
    parser.add_argument("--cpus", type=parse_cpu_list, default=(), help="bind to these cpus (kernel list)")
    parser.add_argument("--memory", choices=sorted(pinning.MEMORY_POLICIES), help="memory policy, with --nodes")
    parser.add_argument("--nodes", type=parse_cpu_list, default=(), help="nodes of --memory (kernel list)")
    values = parser.parse_args(arguments)
    if values.threads < 1:
        parser.error(f"--threads {values.threads}: at least 1 is needed")
    if bool(values.memory) != bool(values.nodes):
        parser.error("--memory and --nodes go together")
    return values


def take_channel() -> socket.socket:
    """The channel on a private descriptor, with /dev/null in its old place, so that no library can read from it.

    Raises ``UsageError`` when descriptor 0 is no connected socket.
    """
    try:
        connection = socket.socket(fileno=os.dup(0))
        connection.getpeername()
    except OSError as error:
        raise UsageError(
            f"python -m launcher.worker: file descriptor 0 is no connected socket ({error.strerror}); "
            "workers are started by `launch`"
        ) from error
    with open(os.devnull, "rb") as null:  # noqa: PTH123  # pathlib is not imported before the binding
        os.dup2(null.fileno(), 0)
    return connection


def bind(values: argparse.Namespace) -> None:
    """Apply the part of the command line that numactl would have done. Raises ``MachineError``."""
    if values.cpus:
        pinning.bind_cpus(values.cpus)
    if values.memory:
        pinning.bind_memory(values.memory, values.nodes)


def refuse(connection: socket.socket, reason: str) -> None:
    """Tell the front why this worker does not start; nobody listening is no reason to fail differently."""
    from launcher.core.protocol.messages import Unusable  # after the binding
    from launcher.worker.channel import Channel, ChannelClosed

    try:
        Channel(connection).send(Unusable(reason))
    except ChannelClosed:
        print(reason, file=sys.stderr, flush=True)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a worker until ``Stop`` or the end of its channel; returns the exit status."""
    signals.leave_signals_to_the_front()
    values = parse_arguments(sys.argv[1:] if arguments is None else arguments)
    try:
        pinning.die_with_parent()
        connection = take_channel()
    except LauncherError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    if signals.has_hung_up(connection):
        return 0
    try:
        bind(values)
    except MachineError as error:
        refuse(connection, f"instance {values.instance}: {error}")
        return EXIT_NOT_BOUND
    signals.exit_on_hangup(connection)

    from launcher.worker.loop import work  # numpy and torch come with it

    return work(connection, values.instance, values.threads)


if __name__ == "__main__":
    status = main()
    sys.stdout.flush()
    sys.stderr.flush()
    # Without the interpreter's own end: the hang-up watch and OpenMP's threads are still there, and nothing of
    # theirs needs tidying.
    os._exit(status)
