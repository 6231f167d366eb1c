from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from launcher.core.protocol.frames import PREFIX, FrameError, encode, to_front_decoder, to_worker_decoder
from launcher.core.protocol.messages import Done, Failed, Ready, Run, Stop

messages = st.one_of(
    st.builds(Run, batch=st.integers(0, 2**40), lengths=st.lists(st.integers(1, 9), max_size=9).map(tuple)),
    st.just(Stop()),
)


def wire(message: Run | Stop | Done | Failed | Ready, body: bytes = b"") -> bytes:
    return b"".join(bytes(part) for part in encode(message, body))


@given(st.lists(st.tuples(messages, st.binary(max_size=50)), max_size=6), st.integers(1, 17))
def test_encoded_frames_are_decoded_however_the_stream_is_split(sent, step: int) -> None:  # type: ignore[no-untyped-def]
    stream = b"".join(wire(message, body) for message, body in sent)
    decoder = to_worker_decoder()
    received = [pair for at in range(0, len(stream), step) for pair in decoder.feed(stream[at : at + step])]
    assert received == sent
    assert decoder.pending == 0


def test_an_incomplete_frame_is_pending() -> None:
    decoder = to_front_decoder()
    assert list(decoder.feed(wire(Failed(1, "why"))[:-1])) == []
    assert decoder.pending > 0


@pytest.mark.parametrize(
    "stream",
    [b"GET / HTTP/1.1\r\n", PREFIX.pack(0, 0), PREFIX.pack(3, 0) + b"\xff\xff\xff", PREFIX.pack(2, 2**31) + b"x"],
)
def test_anything_else_is_refused(stream: bytes) -> None:
    with pytest.raises(FrameError):
        list(to_front_decoder().feed(stream))


def test_a_message_of_the_other_direction_is_refused() -> None:
    with pytest.raises(FrameError, match="message"):
        list(to_front_decoder().feed(wire(Stop())))


def test_a_body_may_be_a_view_on_other_memory() -> None:
    body = memoryview(bytearray(range(16))).cast("f")
    ((_, received),) = to_front_decoder().feed(wire(Done(1, 1, 4, 0.1, 8), body))  # type: ignore[arg-type]
    assert received == bytes(range(16))
