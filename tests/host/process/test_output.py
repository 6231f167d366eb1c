"""Lines of several programs on one output: complete, prefixed and unchanged, however slow the reader is."""

from __future__ import annotations

import os
from pathlib import Path

import anyio
import pytest
from hypothesis import given
from hypothesis import strategies as st

from launcher.errors import UsageError
from launcher.host.process.output import LINE_BYTES, LineSplitter, Output, Relay, open_log

pytestmark = pytest.mark.anyio


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


def fail() -> None:
    raise AssertionError("somebody reads")


class Pipe:
    """A pipe as an output of the launcher."""

    def __init__(self) -> None:
        self.read_end, self.write_end = os.pipe()
        self.closed_times = 0
        self.output = Output(self.write_end, self._closed)

    def _closed(self) -> None:
        self.closed_times += 1

    def all(self) -> bytes:
        os.close(self.write_end)
        with os.fdopen(self.read_end, "rb") as file:
            return file.read()


@pytest.mark.parametrize(
    ("pieces", "lines", "rest"),
    [
        ([b"one\ntwo\n"], [b"one\n", b"two\n"], []),
        ([b"o", b"ne", b"\ntw", b"o"], [b"one\n"], [b"two"]),
        ([b"\n\n"], [b"\n", b"\n"], []),
        ([b"10%\r20%\r", b"30%\n"], [b"10%\r", b"20%\r", b"30%\n"], []),
        ([b"dos\r", b"\nend"], [b"dos\r\n"], [b"end"]),
        ([b"\xff\xfe\n\x00"], [b"\xff\xfe\n"], [b"\x00"]),
    ],
)
def test_a_stream_is_split_into_lines_with_their_terminators(
    pieces: list[bytes], lines: list[bytes], rest: list[bytes]
) -> None:
    splitter = LineSplitter()
    assert [line for piece in pieces for line in splitter.feed(piece)] == lines
    assert splitter.end() == rest
    assert splitter.end() == []


@given(st.lists(st.binary(max_size=30) | st.sampled_from([b"\r", b"\n", b"\r\n", b"a\r"])))
def test_no_byte_is_lost_or_added_however_the_stream_arrives(pieces: list[bytes]) -> None:
    splitter, whole = LineSplitter(), LineSplitter()
    lines = [line for piece in pieces for line in splitter.feed(piece)] + splitter.end()
    assert b"".join(lines) == b"".join(pieces)
    assert lines == whole.feed(b"".join(pieces)) + whole.end()
    assert all(line.endswith((b"\n", b"\r")) for line in lines[:-1])


def test_an_unterminated_line_does_not_fill_the_memory() -> None:
    splitter = LineSplitter()
    pieces = [line for _ in range(10) for line in splitter.feed(b"x" * LINE_BYTES)]
    assert [len(piece) for piece in pieces] == [LINE_BYTES] * 9
    assert len(b"".join(splitter.end())) == LINE_BYTES


def test_a_line_over_the_limit_is_returned_in_the_same_pieces_however_it_arrives() -> None:
    line = b"0123456789\n"
    for cut in range(len(line) + 1):
        splitter = LineSplitter(limit=4)
        assert splitter.feed(line[:cut]) + splitter.feed(line[cut:]) == [b"0123", b"4567", b"89\n"]


async def test_each_line_gets_its_prefix_and_the_log_file_gets_the_bytes(tmp_path: Path) -> None:
    out, err = Pipe(), Pipe()
    with open_log(tmp_path / "logs" / "here", 7) as file:
        relay = Relay(b"[7] ", (out.output, err.output), file)
        await relay.feed(0, b"one\r\ncaf\xe9\nhalf")
        await relay.feed(1, b"50%\r60%\r")
        await relay.feed(0, b" and half\n")
        await relay.end(1)
        await relay.feed(0, b"\nlast")
        await relay.end(0)
    assert out.all() == b"[7] one\n[7] caf\xe9\n[7] half and half\n[7] \n[7] last\n"
    assert err.all() == b"[7] 50%\n[7] 60%\n"
    kept = (tmp_path / "logs" / "here" / "instance-7.log").read_bytes()
    assert kept == b"one\r\ncaf\xe9\n50%\rhalf and half\n60%\r\nlast"


async def test_the_bytes_of_a_single_program_are_relayed_unchanged(tmp_path: Path) -> None:
    out, err = Pipe(), Pipe()
    relay = Relay(None, (out.output, err.output), None)
    await relay.feed(0, b"password: ")
    assert os.read(out.read_end, 100) == b"password: "
    await relay.feed(0, b"\r\n\xff")
    await relay.end(0)
    assert out.all() == b"\r\n\xff"
    err.all()


async def test_lines_of_many_programs_never_interleave() -> None:
    out, err = Pipe(), Pipe()
    line = b"x" * 3000
    got = bytearray()

    async def program(number: int) -> None:
        relay = Relay(b"[%d] " % number, (out.output, err.output), None)
        for _ in range(40):
            for piece in (line[:1700], line[1700:] + b"\n" + line, b"\n"):
                await relay.feed(0, piece)

    async def read() -> None:
        while data := await anyio.to_thread.run_sync(os.read, out.read_end, 4096):
            got.extend(data)

    async with anyio.create_task_group() as readers:
        readers.start_soon(read)
        async with anyio.create_task_group() as programs:
            for number in range(4):
                programs.start_soon(program, number)
        os.close(out.write_end)
    os.close(out.read_end)
    err.all()
    lines = bytes(got).splitlines()
    assert len(lines) == 4 * 80
    assert {bytes(one) for one in lines} == {b"[%d] %s" % (number, line) for number in range(4)}


async def test_a_closed_output_is_reported_once_and_blocks_no_program() -> None:
    pipe = Pipe()
    os.close(pipe.read_end)
    await pipe.output.write(b"into the void\n")
    await pipe.output.write(b"and again\n")
    os.close(pipe.write_end)
    assert pipe.closed_times == 1


async def test_a_write_to_a_reader_that_never_reads_can_be_cancelled() -> None:
    pipe = Pipe()
    with anyio.move_on_after(0.2) as waited:
        await pipe.output.write(b"x" * 1_000_000)
    assert waited.cancelled_caught
    os.close(pipe.read_end)  # ends the thread that is still writing


async def test_a_non_blocking_output_loses_nothing() -> None:
    pipe = Pipe()
    os.set_blocking(pipe.write_end, False)
    async with anyio.create_task_group() as group:
        group.start_soon(pipe.output.write, b"y" * 300_000)
        got = 0
        while got < 300_000:
            got += len(await anyio.to_thread.run_sync(os.read, pipe.read_end, 65536))
    os.close(pipe.read_end)
    os.close(pipe.write_end)


def test_a_log_folder_that_cannot_be_created_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match=r"--log-dir .*file"):
        open_log(tmp_path / "file", 0)
