"""Programs that use the Python API: however the process ends, no worker is left."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.running import gone

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
# A plain script without a `__main__` guard. It prints the pids of its workers.
HEAD = """\
import json, os, sys
from launcher import Engine
def start(**options):
    engine = Engine("random:tiny", backend="fake", instances=2, oversubscribe=True, reserve_cores=0, **options)
    print(json.dumps([entry["pid"] for entry in engine.info()["instances"]]), flush=True)
    return engine
"""


class Program:
    """A running script, and the workers that it has reported."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.process = process
        assert process.stdout is not None
        line = process.stdout.readline()
        self.workers: list[int] = json.loads(line) if line.startswith("[") else []
        assert len(self.workers) == 2, process.communicate()

    def end(self) -> tuple[int, str, str]:
        """Wait for the exit; returns exit status, further output and errors."""
        output, errors = self.process.communicate(timeout=300)
        return self.process.returncode, output, errors


@contextlib.contextmanager
def program(body: str, folder: Path) -> Iterator[Program]:
    script = folder / "script.py"
    script.write_text(HEAD + textwrap.dedent(body))
    process = subprocess.Popen(
        [sys.executable, str(script)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    try:
        yield Program(process)
    finally:
        process.kill()
        process.wait()


@pytest.mark.parametrize(
    ("body", "status", "words"),
    [
        ("with start() as engine: print(engine.embed(['a', 'b']).shape)", 0, ""),
        ("engine = start(); print(engine.embed(['a', 'b']).shape)", 0, ""),
        ("engine = start(); print(engine.embed(['a', 'b']).shape); sys.exit(3)", 3, ""),
        ("engine = start(); print(engine.embed(['a', 'b']).shape); [][1]", 1, "IndexError"),
        ("engine = start(); print(engine.embed(['a', 'b']).shape, flush=True); os._exit(4)", 4, ""),
    ],
    ids=["closed", "not closed", "sys.exit", "an exception", "os._exit"],
)
def test_the_end_of_a_script_leaves_no_worker(tmp_path: Path, body: str, status: int, words: str) -> None:
    with program(body, tmp_path) as script:
        found, output, errors = script.end()
        assert (found, output.strip()) == (status, "(2, 128)"), errors
        assert words in errors
        assert bool(errors) == bool(words), errors
        assert gone(script.workers)


BUSY = """
engine = start()
for _ in engine.embed_stream(f"text {number}" for number in iter(int, 1)):
    pass
"""


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_killed_program_leaves_no_worker(tmp_path: Path, number: signal.Signals) -> None:
    with program(BUSY, tmp_path) as script:
        script.process.send_signal(number)
        assert script.end()[0] == -number
        assert gone(script.workers)


def test_ctrl_c_raises_in_the_program_and_leaves_no_worker(tmp_path: Path) -> None:
    body = """
    with start() as engine:
        try:
            for number, _ in enumerate(engine.embed_stream(f"text {number}" for number in iter(int, 1))):
                if not number:
                    print("begun", flush=True)
        except KeyboardInterrupt:
            print("interrupted;", engine.embed(["still", "there"]).shape)
    """
    with program(body, tmp_path) as script:
        assert script.process.stdout is not None
        assert script.process.stdout.readline() == "begun\n"
        script.process.send_signal(signal.SIGINT)
        status, output, errors = script.end()
        assert (status, output.strip()) == (0, "interrupted; (2, 128)"), errors
        assert gone(script.workers)


def test_a_forked_process_cannot_use_the_engine_and_does_not_stop_it(tmp_path: Path) -> None:
    body = """
    engine = start()
    for _ in range(3):  # a fork of a process with threads may crash in other libraries
        child = os.fork()
        if not child:
            try:
                engine.embed("text")
            except Exception as error:
                os.write(1, f"{type(error).__name__} {error}\\n".encode())
            engine.close()
            os._exit(0)
        _, status = os.waitpid(child, 0)
        if not status:
            break
        print("the fork ended with", status, file=sys.stderr)
    print(engine.embed(["a", "b"]).shape)
    """
    with program(body, tmp_path) as script:
        status, output, errors = script.end()
        assert status == 0, errors
        assert output.startswith("UsageError this engine belongs to process")
        assert output.splitlines()[-1] == "(2, 128)"
        assert gone(script.workers)


def test_an_engine_works_in_the_loop_of_a_notebook(tmp_path: Path) -> None:
    body = """
    import asyncio
    async def cell():
        with start() as engine:
            print(engine.embed(["a", "b"]).shape)
    asyncio.run(cell())
    """
    with program(body, tmp_path) as script:
        status, output, errors = script.end()
        assert (status, output.strip(), errors) == (0, "(2, 128)", "")
        assert gone(script.workers)


def test_the_command_line_does_not_import_the_api() -> None:
    code = "import launcher, sys; print([name for name in ('numpy', 'launcher.api') if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
