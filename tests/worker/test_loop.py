"""The main loop with a misbehaving backend, over a real socket pair."""

from __future__ import annotations

import socket

import numpy as np
import pytest

from launcher.core.protocol.frames import encode, to_front_decoder
from launcher.core.protocol.messages import Done, Failed, Run, Stop
from launcher.worker.channel import Channel
from launcher.worker.interfaces import BatchOutput
from launcher.worker.loop import BatchError, checked_batch, run_batches


class Misbehaving:
    """Fails in the way that the first token id of a batch selects; returns zeros otherwise."""

    def __init__(self, width: int) -> None:
        self._width = width

    def load(self, report):
        raise NotImplementedError

    def run(self, batch):
        ids = batch.ids
        values = np.zeros((len(batch.lengths), self._width), dtype=np.float32)
        if ids[0] == 1:
            raise RuntimeError("the kernel of this\n  shape is broken")
        if ids[0] == 2:
            raise MemoryError
        if ids[0] == 3:
            values[1, 5] = np.nan
        if ids[0] == 4:
            values[0, 0], values[1, 0] = np.inf, -np.inf
        if ids[0] == 5:
            values = values[:1]
        if ids[0] == 6:
            values = values.T.copy().T  # not contiguous
        return BatchOutput(values, int(ids.size))


def answers(model_info, *batches):
    ours, theirs = socket.socketpair()
    for number, items in enumerate(batches):
        body = np.concatenate([np.asarray(item, dtype=np.int32) for item in items]).tobytes()
        ours.sendall(b"".join(encode(Run(number, tuple(map(len, items))), body)))
    ours.sendall(b"".join(encode(Stop())))
    assert run_batches(Channel(theirs), Misbehaving(model_info.result_width), model_info) == 0
    theirs.close()
    received = b"".join(iter(lambda: ours.recv(1 << 16), b""))
    ours.close()
    return list(to_front_decoder().feed(received))


@pytest.mark.parametrize(
    ("first_id", "reason"),
    [
        (1, "RuntimeError: the kernel of this shape is broken"),
        (2, "MemoryError"),
        (3, "NaN or infinite values for 1 of 2 items, the first is item 1 with 2 tokens"),
        (4, "NaN or infinite values for 2 of 2 items, the first is item 0 with 3 tokens"),
        (5, "expected results of shape (2, 16) from the model, got (1, 16)"),
    ],
)
def test_a_failing_batch_is_reported_with_its_reason_and_the_next_one_runs(model_info, first_id, reason) -> None:
    (failed, _), (done, _) = answers(model_info(), [[first_id, 8, 9], [8, 9]], [[8]])

    assert isinstance(failed, Failed)
    assert failed.batch == 0
    assert reason in failed.reason
    assert "\n" not in failed.reason
    assert isinstance(done, Done)
    assert done.batch == 1


def test_results_that_are_not_contiguous_in_memory_are_sent_in_order(model_info) -> None:
    ((done, body),) = answers(model_info(), [[6, 1], [6]])

    assert isinstance(done, Done)
    assert len(body) == done.items * done.width * 4


def test_an_empty_batch_fails(model_info) -> None:
    ours, theirs = socket.socketpair()
    ours.sendall(b"".join(encode(Run(7, ()))) + b"".join(encode(Stop())))
    run_batches(Channel(theirs), Misbehaving(16), model_info())
    ((failed, _),) = to_front_decoder().feed(ours.recv(1 << 16))

    assert isinstance(failed, Failed)
    assert failed.batch == 7


def test_partial_frames_and_results_larger_than_the_socket_buffer_are_transferred_completely(model_info) -> None:
    """Results of 2 MB do not fit into the socket buffer: the worker writes while the peer reads."""
    import threading

    wide = model_info(hidden_size=4096)
    ours, theirs = socket.socketpair()
    worker = threading.Thread(target=run_batches, args=(Channel(theirs), Misbehaving(4096), wide))
    worker.start()
    items = np.full(128, 8, dtype=np.int32).tobytes()
    stream = b"".join([*encode(Run(0, (1,) * 128), items), *encode(Stop())])
    for offset in range(0, len(stream), 100):
        ours.sendall(stream[offset : offset + 100])
    decoder, received = to_front_decoder(), []
    while not received:
        received.extend(decoder.feed(ours.recv(1 << 16)))
    worker.join(60)

    ((done, body),) = received
    assert isinstance(done, Done)
    assert len(body) == 128 * 4096 * 4


def test_the_types_of_tokens_follow_their_ids(model_info) -> None:
    ids, types = np.array([5, 6, 7], dtype=np.int32), bytes([0, 1, 1])
    model = model_info(token_types=2)

    typed = checked_batch(Run(0, (2, 1), typed=True, prompt_lengths=(1, 0)), ids.tobytes() + types, model)
    plain = checked_batch(Run(0, (2, 1)), ids.tobytes(), model)
    routed = checked_batch(Run(0, (2, 1), routes=(0, 1)), ids.tobytes(), model)

    assert typed.ids.tolist() == plain.ids.tolist() == [5, 6, 7]
    assert typed.type_ids is not None
    assert typed.type_ids.tolist() == [0, 1, 1]
    assert (tuple(plain.routes), tuple(routed.routes)) == ((), (0, 1))
    assert (plain.type_ids, tuple(plain.prompt_lengths), tuple(typed.prompt_lengths)) == (None, (), (1, 0))


@pytest.mark.parametrize(
    ("typed", "body", "reason"),
    [
        (True, bytes(12), "expected 15 bytes of token ids for 3 tokens, got 12"),
        (False, bytes(15), "expected 12 bytes of token ids for 3 tokens, got 15"),
        (True, bytes(12) + bytes([0, 2, 0]), "token type 2 is out of range; the model has 2"),
    ],
)
def test_types_that_do_not_match_the_batch_or_the_model_are_refused(model_info, typed, body, reason) -> None:
    with pytest.raises(BatchError, match=reason):
        checked_batch(Run(0, (2, 1), typed=typed), body, model_info(token_types=2))
