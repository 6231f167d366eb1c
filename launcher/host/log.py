"""Sets up logging to standard error: one line per event, as text for people or as a JSON object for programs.

Conventions: a logger is named after its component (``launcher.supervisor``), the message is a sentence, and fields for
programs are in ``extra={"instance": 2, "event": "ready", …}``. uvicorn's loggers use the same handler. Only the
composition root calls `set_up`. Records are formatted by the caller and written by a thread (``host.log_writer``), so
that a reader that does not read blocks nothing; strings in the arguments of a message are escaped.
"""

from __future__ import annotations

import json
import logging
import os
import re
import sys
import threading
import time
import traceback
from functools import partial
from types import TracebackType
from typing import Any, TextIO

from launcher.host.log_writer import LogWriter
from launcher.options import LogOptions
from launcher.printable import printable

# The attributes that every record has; any other was passed with `extra`.
STANDARD = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName", "color_message"}

DIM, RESET = "\033[2m", "\033[0m"
COLOURS = {
    logging.DEBUG: "\033[2m",
    logging.WARNING: "\033[33m",
    logging.ERROR: "\033[31m",
    logging.CRITICAL: "\033[31m",
}
INSTANCE_COLOURS = tuple(f"\033[{code}m" for code in (36, 32, 35, 34, 96, 92, 95, 94))
LEVEL_PREFIXES = {logging.WARNING: "warning: ", logging.ERROR: "error: ", logging.CRITICAL: "error: "}
SOURCE_WIDTH = 11  # "instance 99"

# At the end of the process: how long to wait for a log that is not read.
FLUSH_SECONDS = 2.0

# Verbose at level info: a line per request or connection.
QUIET = ("uvicorn.access", "httpx", "httpcore", "asyncio", "urllib3", "filelock")
REROUTED = ("uvicorn", "uvicorn.error", "uvicorn.access", "uvicorn.asgi")


class TextFormatter(logging.Formatter):
    """``12:03:04.123  instance 2   ready after 3.1 s``; each further line of a message gets the same prefix."""

    def __init__(self, colour: bool) -> None:
        super().__init__()
        self._colour = colour

    def format(self, record: logging.LogRecord) -> str:
        """The line or lines of one record, without a trailing newline."""
        text = _message(record)
        if record.exc_info:
            text += "\n" + self.formatException(record.exc_info)
        prefix = f"{self._time(record)}  {self._source(record)}  {self._bar(record)}"
        lines = [printable(line, keep="\t") for line in text.split("\n")]
        lines[0] = LEVEL_PREFIXES.get(record.levelno, "") + lines[0]
        return "\n".join(prefix + self._paint(COLOURS.get(record.levelno, ""), line) for line in lines)

    def _time(self, record: logging.LogRecord) -> str:
        clock = time.strftime("%H:%M:%S", time.localtime(record.created))
        return self._paint(DIM, f"{clock}.{int(record.msecs):03d}")

    def _source(self, record: logging.LogRecord) -> str:
        instance = getattr(record, "instance", None)
        if instance is None:
            return f"{record.name.removeprefix('launcher.').partition('.')[0]:{SOURCE_WIDTH}}"
        colour = INSTANCE_COLOURS[instance % len(INSTANCE_COLOURS)] if isinstance(instance, int) else ""
        return self._paint(colour, f"{f'instance {instance}':{SOURCE_WIDTH}}")

    def _bar(self, record: logging.LogRecord) -> str:
        # A worker's own output is marked, so that it cannot be mistaken for a line of the launcher.
        return "| " if getattr(record, "event", None) == "output" else ""

    def _paint(self, code: str, text: str) -> str:
        return f"{code}{text}{RESET}" if self._colour and code else text


class JsonFormatter(logging.Formatter):
    """One JSON object per line: ``ts`` (seconds since 1970), ``level``, ``logger``, ``message``, then the extras."""

    def format(self, record: logging.LogRecord) -> str:
        """The object of one record; values without a JSON type are converted to strings."""
        fields: dict[str, Any] = {
            "ts": round(record.created, 6),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        extra = {key: value for key, value in vars(record).items() if key not in STANDARD and key not in fields}
        if record.exc_info:
            extra["exception"] = self.formatException(record.exc_info)
        text = json.dumps({**fields, **extra}, default=str, ensure_ascii=False)
        return text if text.isprintable() else _NOT_ASCII.sub(_json_escaped, text)


class WriterHandler(logging.Handler):
    """Passes formatted records to the thread that writes to ``stream``, which must have a descriptor."""

    def __init__(self, stream: TextIO, formatter: logging.Formatter) -> None:
        super().__init__()
        self.setFormatter(formatter)
        self.writer = LogWriter(stream.fileno(), self._describe_dropped)

    def emit(self, record: logging.LogRecord) -> None:
        """See the base class."""
        try:
            line = self.format(record)
        except Exception:
            self.handleError(record)
        else:
            self.writer.put(line)

    def flush(self) -> None:
        """Wait for the lines to be written, but not for a reader that does not read."""
        self.writer.flush(FLUSH_SECONDS)

    def close(self) -> None:
        """End the thread. Does not wait for lines: ``logging.shutdown`` has called ``flush``."""
        self.writer.close(0)
        super().close()

    def _describe_dropped(self, count: int) -> str:
        fields = {
            "name": "launcher.log",
            "levelno": logging.WARNING,
            "levelname": "WARNING",
            "msg": "%d lines of the log were dropped, because standard error did not accept them",
            "args": (count,),
            "event": "log_dropped",
            "lines": count,
        }
        return self.format(logging.makeLogRecord(fields))


def set_up(options: LogOptions, stream: TextIO | None = None) -> None:
    """Send the records of all loggers to ``stream`` (default: standard error), in the format that ``options`` select.

    May be called again; the last call wins. Colour is used only on a terminal, and never if NO_COLOR is set. Standard
    error is written by a thread, and tracebacks of uncaught exceptions too; ``stream`` is written by the caller.
    """
    target = sys.stderr if stream is None else stream
    formatter = JsonFormatter() if options.json else TextFormatter(_wants_colour(target))
    handler = logging.StreamHandler(target) if stream is not None else WriterHandler(target, formatter)
    handler.setFormatter(formatter)
    root = logging.getLogger()
    for old in list(root.handlers):
        root.removeHandler(old)
        if isinstance(old, WriterHandler):
            old.flush()
            old.close()
    root.addHandler(handler)
    level = logging.getLevelName(options.level.upper())
    root.setLevel(level)
    for name in REROUTED:
        logger = logging.getLogger(name)
        logger.handlers.clear()
        logger.propagate = True
        logger.setLevel(logging.NOTSET)
    for name in QUIET:
        logging.getLogger(name).setLevel(max(level, logging.WARNING) if level > logging.DEBUG else logging.INFO)
    logging.captureWarnings(True)
    if isinstance(handler, WriterHandler):
        sys.excepthook = partial(_write_traceback, handler.writer)
        threading.excepthook = lambda failed: _write_traceback(
            handler.writer, failed.exc_type, failed.exc_value, failed.exc_traceback
        )


def write_line(text: str) -> None:
    """Write one line to standard error, escaped; if the log has been set up, after its lines and without blocking."""
    line, writer = printable(text), _writer()
    if writer is None:
        print(line, file=sys.stderr)
    else:
        writer.put(line)


def dropped_lines() -> int:
    """The number of lines of the log that were dropped because standard error did not accept them."""
    writer = _writer()
    return 0 if writer is None else writer.dropped


def _writer() -> LogWriter | None:
    return next((one.writer for one in logging.getLogger().handlers if isinstance(one, WriterHandler)), None)


def _write_traceback(
    writer: LogWriter,
    kind: type[BaseException],
    error: BaseException | None,
    trace: TracebackType | None,
) -> None:
    """Like ``sys.excepthook``, but in the order of the log, and without blocking."""
    writer.put("".join(traceback.format_exception(kind, error, trace)).rstrip("\n"))


def _wants_colour(stream: TextIO) -> bool:
    return stream.isatty() and "NO_COLOR" not in os.environ and os.environ.get("TERM") != "dumb"


_NOT_ASCII = re.compile(r"[^ -~]")


def _json_escaped(match: re.Match[str]) -> str:
    """The character as it is if it is printable, otherwise as an escape sequence of JSON."""
    char = match[0]
    return char if char.isprintable() else json.dumps(char)[1:-1]


def _message(record: logging.LogRecord) -> str:
    """The message, with strings in its arguments escaped: only the message itself may contain line breaks."""
    args = record.args
    if not args or not isinstance(args, tuple):
        return record.getMessage()
    return str(record.msg) % tuple(printable(str(a), "\t") if isinstance(a, str | Exception) else a for a in args)
