"""Sets up logging to standard error: one line per event, as text for people or as a JSON object for programs.

Conventions: a logger is named after its component (``launcher.supervisor``), the message is a sentence, and fields for
programs are in ``extra={"instance": 2, "event": "ready", …}``. uvicorn's loggers use the same handler. Only the
composition root calls `set_up`.
"""

from __future__ import annotations

import json
import logging
import os
import sys
import time
from typing import Any, TextIO

from launcher.options import LogOptions

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
        text = record.getMessage()
        if record.exc_info:
            text += "\n" + self.formatException(record.exc_info)
        prefix = f"{self._time(record)}  {self._source(record)}  {self._bar(record)}"
        lines = [_printable(line) for line in text.splitlines()] or [""]
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
        return json.dumps({**fields, **extra}, default=str, ensure_ascii=False)


def set_up(options: LogOptions, stream: TextIO | None = None) -> None:
    """Send the records of all loggers to ``stream`` (default: standard error), in the format that ``options`` select.

    May be called again; the last call wins. Colour is used only on a terminal, and never if NO_COLOR is set.
    """
    target = sys.stderr if stream is None else stream
    handler = logging.StreamHandler(target)
    handler.setFormatter(JsonFormatter() if options.json else TextFormatter(_wants_colour(target)))
    root = logging.getLogger()
    for old in list(root.handlers):
        root.removeHandler(old)
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


def _wants_colour(stream: TextIO) -> bool:
    return stream.isatty() and "NO_COLOR" not in os.environ and os.environ.get("TERM") != "dumb"


def _printable(line: str) -> str:
    """The line with control characters escaped: a worker's output must not control the terminal."""
    return "".join(char if char.isprintable() or char == "\t" else f"\\x{ord(char):02x}" for char in line)
