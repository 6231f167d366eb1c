"""The log, as text for people and as JSON for programs."""

from __future__ import annotations

import io
import json
import logging
import os
import pty
import re
import subprocess
import sys
import warnings
from collections.abc import Iterator

import pytest

from launcher.host.log import REROUTED, JsonFormatter, set_up
from launcher.options import LogOptions


@pytest.fixture(autouse=True)
def _logging_as_before() -> Iterator[None]:
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level
    yield
    root.handlers[:] = handlers
    root.setLevel(level)
    logging.captureWarnings(False)


@pytest.fixture
def people() -> io.StringIO:
    stream = io.StringIO()
    set_up(LogOptions(), stream)
    return stream


@pytest.fixture
def programs() -> io.StringIO:
    stream = io.StringIO()
    set_up(LogOptions(json=True), stream)
    return stream


def test_an_event_is_one_line_with_time_instance_and_sentence(people: io.StringIO) -> None:
    logging.getLogger("launcher.supervisor").info("ready after %.1f s", 3.14, extra={"instance": 2, "event": "ready"})
    assert re.fullmatch(r"\d\d:\d\d:\d\d\.\d{3}  instance 2   ready after 3\.1 s\n", people.getvalue())


def test_an_event_without_an_instance_names_its_component(people: io.StringIO) -> None:
    logging.getLogger("launcher.supervisor").info("all workers are gone")
    logging.getLogger("launcher.front.http").info("listening")
    first, second = people.getvalue().splitlines()
    assert first[14:] == "supervisor   all workers are gone"
    assert second[14:] == "front        listening"


def test_warnings_and_errors_show_their_level(people: io.StringIO) -> None:
    logging.getLogger("launcher.x").warning("slow")
    logging.getLogger("launcher.x").error("lost")
    assert [line.split("  ")[-1].strip() for line in people.getvalue().splitlines()] == [
        "warning: slow",
        "error: lost",
    ]


def test_every_line_of_a_longer_message_is_prefixed(people: io.StringIO) -> None:
    logging.getLogger("launcher.x").info("one\ntwo\nthree", extra={"instance": 0})
    lines = people.getvalue().splitlines()
    assert [line[14:] for line in lines] == ["instance 0   one", "instance 0   two", "instance 0   three"]
    assert len({line[:12] for line in lines}) == 1


def test_the_output_of_a_worker_is_marked_and_cannot_move_the_cursor(people: io.StringIO) -> None:
    logging.getLogger("launcher.worker").info("\x1b[2Jgone\tsee", extra={"instance": 1, "event": "output"})
    assert people.getvalue()[14:] == "instance 1   | \\x1b[2Jgone\tsee\n"


def test_an_exception_comes_with_its_traceback_line_by_line(people: io.StringIO) -> None:
    try:
        raise ValueError("broken")
    except ValueError:
        logging.getLogger("launcher.front").exception("a bug")
    lines = people.getvalue().splitlines()
    assert lines[0].endswith("error: a bug")
    assert lines[-1].endswith("ValueError: broken")
    assert all(re.match(r"\d\d:\d\d:\d\d\.\d{3}  front  ", line) for line in lines)


def test_the_level_is_obeyed() -> None:
    stream = io.StringIO()
    set_up(LogOptions(level="warning"), stream)
    logging.getLogger("launcher.x").info("not this")
    logging.getLogger("launcher.x").warning("this")
    assert stream.getvalue().count("\n") == 1


def test_json_is_one_object_per_line_with_the_extra_fields(programs: io.StringIO) -> None:
    log = logging.getLogger("launcher.supervisor")
    log.warning(
        "restarts in %.1f s\nor so", 0.5, extra={"instance": 2, "event": "restarting", "path": os.sep, "n": None}
    )
    log.info("naïve", extra={"odd": {1}})
    first, second = (json.loads(line) for line in programs.getvalue().splitlines())
    assert first.pop("ts") > 1.6e9
    assert first == {
        "level": "warning",
        "logger": "launcher.supervisor",
        "instance": 2,
        "event": "restarting",
        "message": "restarts in 0.5 s\nor so",
        "path": "/",
        "n": None,
    }
    assert (second["message"], second["odd"]) == ("naïve", "{1}")


def test_json_accepts_text_that_is_not_valid_unicode() -> None:
    # Formatted here and not logged: log records go into pytest's own reports, which must be UTF-8.
    line = JsonFormatter().format(logging.makeLogRecord({"msg": "a name \udcff", "levelno": logging.INFO}))
    assert json.loads(line)["message"] == "a name \udcff"


def test_json_includes_the_exception(programs: io.StringIO) -> None:
    try:
        raise ValueError("broken")
    except ValueError:
        logging.getLogger("launcher.front").exception("a bug")
    (line,) = programs.getvalue().splitlines()
    assert json.loads(line)["exception"].endswith("ValueError: broken")


def test_uvicorn_uses_the_same_handler_whatever_it_has_configured_before() -> None:
    own = io.StringIO()
    for name in REROUTED:
        logging.getLogger(name).addHandler(logging.StreamHandler(own))
        logging.getLogger(name).propagate = False
    stream = io.StringIO()
    set_up(LogOptions(), stream)
    logging.getLogger("uvicorn.error").info("Application startup complete.")
    logging.getLogger("uvicorn.access").info("GET / 200")
    assert own.getvalue() == ""
    assert stream.getvalue()[14:] == "uvicorn      Application startup complete.\n"


def test_warnings_of_libraries_use_the_same_handler(people: io.StringIO) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        logging.captureWarnings(True)
        warnings.warn("old call", DeprecationWarning, stacklevel=1)
    assert "old call" in people.getvalue()


def test_a_second_setup_replaces_the_first(people: io.StringIO) -> None:
    second = io.StringIO()
    set_up(LogOptions(), second)
    logging.getLogger("launcher.x").info("once")
    assert people.getvalue() == ""
    assert second.getvalue().count("once") == 1


SAY = """
import logging
from launcher.host.log import set_up
from launcher.options import LogOptions
set_up(LogOptions())
logging.getLogger('launcher.x').error('lost', extra={'instance': 3})
"""


def output_on_a_terminal(**env: str) -> str:
    ours, theirs = pty.openpty()
    with os.fdopen(ours, "rb", buffering=0) as screen:
        command = [sys.executable, "-c", SAY]
        subprocess.run(command, stderr=theirs, check=True, env={**os.environ, "TERM": "xterm", **env}, timeout=30)
        os.close(theirs)
        return screen.read(65536).decode()


def test_colour_is_used_on_a_terminal_and_nowhere_else() -> None:
    assert "\x1b[31merror: lost" in output_on_a_terminal()
    assert "\x1b" not in output_on_a_terminal(NO_COLOR="1")
    assert "\x1b" not in output_on_a_terminal(TERM="dumb")
    piped = subprocess.run([sys.executable, "-c", SAY], stderr=subprocess.PIPE, check=True, text=True, timeout=30)
    assert piped.stderr[14:] == "instance 3   error: lost\n"
