"""The failure modes: what the server promises in each, its limit, and the options that change it.

``python -m tests.faults.modes`` prints ``docs/behaviour.md``: this list, with the tests that carry the number of a mode
in their name (``test_mode_NN_…``; a test of several modes has all their numbers). ``./scripts/docs`` runs it. The
defaults of options come from their definitions. Nothing is started or measured here.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from launcher.options import ServeOptions
from launcher.options.option import options_of

ROOT = Path(__file__).parents[2]
NAME = re.compile(r"test_mode((?:_\d\d)+)_[a-z]")


@dataclass(frozen=True, slots=True)
class Mode:
    """A failure mode. ``limit`` bounds the promise, in words; ``options`` are the keys of what changes it."""

    number: int
    promise: str
    limit: str = ""
    options: tuple[str, ...] = ()


GROUPS: dict[str, tuple[Mode, ...]] = {
    "Workers": (
        Mode(
            1,
            "A worker that is killed while idle is started again, and no input is blamed.",
            "one restart after a delay that doubles with each failure",
            ("backoff-seconds", "backoff-limit-seconds"),
        ),
        Mode(
            2,
            "The inputs of a worker that is killed in the middle of a batch are computed by another worker; no request "
            "fails.",
            "attempts for each input",
            ("max-attempts",),
        ),
        Mode(
            3,
            "A request does not wait for a stopped worker: its overdue batch is computed by another instance, and the "
            "worker is replaced.",
            "a multiple of the predicted time, and a minimum",
            ("hang-factor", "hang-seconds"),
        ),
        Mode(
            4,
            "An input that crashes native code fails alone, with 500; other inputs of its batch are answered.",
            "two workers lost",
            ("max-attempts",),
        ),
        Mode(
            5,
            "If memory is short, new requests are refused before the kernel kills a worker; an input with which "
            "workers are killed fails alone.",
            "memory left in the control group",
            ("memory-reserve",),
        ),
        Mode(
            6,
            "A worker that exits with status 0 counts as lost, like one that crashed, and is started again.",
            "attempts for each input",
            ("max-attempts",),
        ),
        Mode(
            7,
            "A model that cannot be loaded ends the start with the reason and a non-zero exit status, after a limited "
            "number of attempts.",
            "consecutive failures of an instance",
            ("max-failures", "backoff-seconds"),
        ),
        Mode(
            8,
            "An input with which workers are lost is tried once more, alone, and is then answered with 500 and refused "
            "with 422 from then on; the other inputs of its batch are answered.",
            "two workers lost; duration of the refusal",
            ("quarantine-seconds",),
        ),
        Mode(
            9,
            "Garbage or an incomplete frame from a worker ends only this worker; other responses stay correct.",
            "attempts for each input",
            ("max-attempts",),
        ),
        Mode(10, "A result of the wrong shape or with NaN is an error with status 500 and costs no worker."),
        Mode(
            11,
            "A worker that is slow gets less work and is not killed.",
            "duration of a batch that uses CPU time",
            ("busy-hang-seconds",),
        ),
        Mode(12, "If no instance of a length class is ready, instances of other classes serve its inputs."),
        Mode(13, "If the front is killed, the kernel kills its workers, including those that are loading."),
        Mode(14, "Lost workers are reaped: no zombie is left."),
        Mode(15, "Workers are executed as new programs; only processes without threads are forked."),
    ),
    "Queue": (
        Mode(
            16,
            "A client that queues too much gets 429 with `Retry-After`.",
            "predicted time and number of inputs of a client",
            ("max-queue-seconds", "max-queue-items"),
        ),
        Mode(
            17,
            "A request that exceeds a limit on its own is refused with 413, never with 429.",
            "the limits of a client, and of a request",
            ("max-queue-seconds", "max-request-items"),
        ),
        Mode(
            18,
            "A request whose deadline passes in the queue gets 504 and is not computed.",
            "the header `x-launcher-deadline-ms`",
        ),
        Mode(19, "Inputs of a client that has left are dropped from the queue."),
        Mode(
            20,
            "Short requests of a client overtake its own large ones.",
            "tokens of a batch",
            ("batch-tokens",),
        ),
        Mode(21, "A large request is answered even under a constant stream of short ones."),
        Mode(
            22,
            "Bulk requests of one client do not delay interactive requests of others.",
            "predicted time of a bulk batch",
            ("bulk-batch-seconds",),
        ),
        Mode(23, "Two clients get equal shares of the computing time, whatever they send."),
        Mode(24, "An idle front uses almost no CPU time.", "2 % of a core"),
        Mode(25, "A request of any number of inputs is answered completely; one without inputs is refused with 400."),
        Mode(26, "A response that was computed in several batches is complete and in order, or fails as a whole."),
    ),
    "HTTP": (
        Mode(
            27,
            "Malformed and unusual requests get their status, cost CPU time in proportion to their bytes, and harm "
            "neither the server nor other requests.",
            "size of a body and of a head",
            ("max-body-bytes", "max-header-bytes"),
        ),
        Mode(
            28,
            "Empty texts, white space and token ids out of range are answered or refused; a text that is too long is "
            "refused before it is tokenized.",
            "characters of a text",
            ("max-text-characters",),
        ),
        Mode(29, "Impossible `dimensions` are refused with 400."),
        Mode(30, "An unknown `encoding_format` is refused with 400."),
        Mode(31, "An unknown model is refused with 404 and the name of the model that is served."),
        Mode(
            32,
            "API keys are compared in constant time and appear in no log, message, report or environment of a worker.",
            "",
            ("api-key-file", "admin-key-file"),
        ),
        Mode(33, "No response has CORS headers unless an origin is allowed.", "", ("cors-origin",)),
    ),
    "Start and shutdown": (
        Mode(34, "SIGTERM while models load, or before, ends the server at once with status 0."),
        Mode(
            35,
            "SIGTERM under load loses no response: `/ready` is 503, admitted requests are completed, later ones get "
            "503, and no connection is reset.",
            "time for admitted requests, then for workers",
            ("drain-seconds", "stop-seconds"),
        ),
        Mode(36, "A second SIGTERM or SIGINT ends the server at once."),
        Mode(37, "A port in use is reported before anything is loaded.", "", ("port",)),
        Mode(38, "A server starts on the port, and on the path of the Unix socket, of a crashed one.", "", ("uds",)),
        Mode(
            39,
            "A restart of all instances, or another plan, under load causes no error, and ends in the new state or in "
            "the old one.",
            "two failed starts of a new instance",
        ),
        Mode(
            40,
            "`/ready` is 503 until each length class has had a ready instance, and whenever no instance responds; "
            "`/health` never waits for workers.",
        ),
    ),
    "Machine": (
        Mode(
            41,
            "A cpuset or affinity mask that changes under load leads to a plan that fits it; threads that were moved "
            "are bound again.",
            "time to the report: 5 s; minimum time between plans",
            ("replan-seconds", "on-machine-change"),
        ),
        Mode(
            42,
            "A CPU quota that falls below the cores leads to a plan that fits it, under load.",
            "time to the report: 5 s; minimum time between plans",
            ("replan-seconds", "on-machine-change"),
        ),
        Mode(
            43,
            "A cpu that goes offline, and new limits of an inner and an outer control group (version 2), are read "
            "while the process runs.",
            "every 2 s",
        ),
        Mode(
            44,
            "Where system calls for binding are refused, the server runs unbound, with a warning.",
            "a refusal to start instead",
            ("strict",),
        ),
        Mode(45, "A machine of one core is served."),
        Mode(
            46,
            "Other programs on the planned cores are named in the log, with process ID and affinity.",
            "CPU time over 10 s; each program at most once a minute",
        ),
        Mode(
            47,
            "A second launcher on a machine plans for the free cores, or refuses and names the first.",
            "cores that others have claimed",
            ("shared-cores",),
        ),
    ),
    "Memory and numbers": (
        Mode(48, "The memory of the front is constant under texts of random lengths.", "1 MiB in 1,000 requests"),
        Mode(49, "Connections leave no descriptors, however they end."),
        Mode(50, "Requests that miss their deadline leave nothing in memory.", "1 MiB in 1,000 requests"),
        Mode(51, "A text has the same vector alone, in any batch and on any instance.", "1e-5 for each number in fp32"),
        Mode(52, "Vectors in bf16 are close to those in fp32.", "a cosine of 0.999", ("dtype",)),
    ),
    "Attacks and operation": (
        Mode(
            53,
            "Nothing is kept of a connection that ended by RST, in whatever state it was.",
            "30 MiB in 1,200 connections",
        ),
        Mode(
            54,
            "Trailers of chunked bodies are dropped, count as part of the head, and never become headers.",
            "size of a head, and 4 KiB",
            ("max-header-bytes",),
        ),
        Mode(
            55,
            "The server stops reading from a client that sends pipelined requests and does not read the responses.",
            "64 KiB of pipelined requests",
        ),
        Mode(
            56,
            "All pipelined requests in one packet are answered; a head over the limit is refused with 431, however it "
            "is split.",
            "size of a head",
            ("max-header-bytes",),
        ),
        Mode(
            57,
            "A short request waits a bounded time, however many large requests of other clients are queued.",
            "two batches of an instance",
            ("batch-tokens",),
        ),
        Mode(
            58,
            "The backlog of a client does not close admission for others.",
            "predicted time of a client",
            ("max-queue-seconds",),
        ),
        Mode(
            59,
            "Unfinished uploads do not lock out other clients, and are ended.",
            "minimum rate, and the time over which it is measured; memory for bodies",
            ("min-upload-rate", "upload-window-seconds", "max-total-body-bytes"),
        ),
        Mode(
            60,
            "Connections leave descriptors for workers; if a worker cannot be started for lack of them, the start is "
            "retried until it succeeds.",
            "number of connections",
            ("max-connections",),
        ),
        Mode(
            61,
            "A log that nobody reads, or that cannot be written, stops neither the server nor its shutdown; lines are "
            "dropped and counted.",
            "1 MiB of lines",
        ),
        Mode(
            62,
            "Hangs are detected in batches, in loading and, by `/ready?deep=1`, in idle workers; `/ready` shows them.",
            "duration of a batch; of a batch that uses CPU time; of a start",
            ("hang-seconds", "busy-hang-seconds", "start-seconds"),
        ),
        Mode(
            63,
            "A client that repeats a bad input, or gives up early and repeats it, costs at most two workers.",
            "duration of the refusal",
            ("quarantine-seconds",),
        ),
        Mode(64, "A restarted worker repeats neither the checks nor the measurements of an earlier one."),
        Mode(65, "Home folder, user name and temporary folder are not needed."),
        Mode(66, "Signals that mean nothing here end neither server nor workers; those that ask to end drain first."),
        Mode(67, "A client that has closed its sending side gets its response."),
        Mode(
            68,
            "A memory limit that is lowered while the server runs is reported and leads to fewer instances, and the "
            "server is degraded until the options fit again.",
            "time to the report: 5 s; minimum time between plans",
            ("replan-seconds", "on-machine-change"),
        ),
        Mode(69, "Control characters in names, paths and output of workers are escaped in messages."),
    ),
}
MODES = tuple(mode for modes in GROUPS.values() for mode in modes)

HEAD = """\
# Behaviour under faults

What the server promises when something fails, and the tests that check each promise, most of them with real processes
and sockets. `./scripts/docs` generates this page from the list in `tests/faults/modes.py` and the names of the tests.

**Limit**: what bounds the promise. An option in this column changes it; its default is in parentheses. Details are in
[http.md](http.md), [resources.md](resources.md), [service.md](service.md) and [changes.md](changes.md).

`./scripts/test FILE -k test_mode_NN` runs the tests of a number.
"""


@cache
def names_by_mode() -> dict[int, list[str]]:
    """The tests of each number as ``path::name``, in the order of the files."""
    found: dict[int, list[str]] = {}
    for path in sorted((ROOT / "tests").rglob("test_*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and (match := NAME.match(node.name)):
                for number in match[1].strip("_").split("_"):
                    found.setdefault(int(number), []).append(f"{path.relative_to(ROOT)}::{node.name}")
    return found


def document() -> str:
    """The whole page."""
    return HEAD + "".join(_sections())


def _sections() -> Iterator[str]:
    tests = names_by_mode()
    for title, modes in GROUPS.items():
        rows = [_row(mode, tests.get(mode.number, [])) for mode in modes]
        yield "\n".join([f"\n## {title}", "", "| | promise | limit | tests |", "|---|---|---|---|", *rows, ""])


def _row(mode: Mode, tests: list[str]) -> str:
    limit = ": ".join(filter(None, [mode.limit, ", ".join(map(_option, mode.options))]))
    return f"| {mode.number} | {mode.promise} | {limit} | {'<br>'.join(f'`{test}`' for test in tests)} |"


def _option(key: str) -> str:
    (option,) = (each for each in options_of(ServeOptions) if each.flag == f"--{key}")
    default = option.declared.none if option.default is None else option.default
    if default is None or default is False or default == ():
        return f"`{option.flag}`"
    return f"`{option.flag}` ({default:,.10g})" if isinstance(default, int | float) else f"`{option.flag}` ({default})"


if __name__ == "__main__":
    print(document(), end="")
