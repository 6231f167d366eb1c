"""A front without processes: real channels over socket pairs, with workers whose responses the test controls."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import httpx
import msgspec
import numpy as np
import pytest
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

from launcher.core.planning.length_classes import LengthClass
from launcher.core.protocol.frames import Decoder, encode, to_worker_decoder
from launcher.core.protocol.messages import Done, Failed, Ready, Run, Setup, Stop
from launcher.core.protocol.model_info import ModelInfo
from launcher.core.scheduling.scheduler import InstanceSpec, Scheduler, SchedulerLimits
from launcher.front.dispatcher import Dispatcher
from launcher.front.http.api import FAMILIES
from launcher.front.http.app import Services, create_app
from launcher.front.metrics import FrontMetrics
from launcher.front.tokenizer import FrontTokenizer
from launcher.options import FrontOptions
from tests.scheduling import limits

WIDTH = 8
WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *(f"w{number}" for number in range(60))]
DEADLINE = 10.0


@pytest.fixture
def anyio_backend() -> tuple[str, dict[str, bool]]:
    """The loop that the server runs on."""
    return "asyncio", {"use_uvloop": True}


@pytest.fixture
def vector_of() -> Callable[[Any], np.ndarray]:
    """The result of the test workers for token ids: of length 1, and different for different sums."""

    def vector(ids: Any) -> np.ndarray:
        values = np.cos(np.arange(1, WIDTH + 1) * (float(np.sum(ids)) + 0.5)).astype(np.float32)
        return (values / np.linalg.norm(values)).astype(np.float32)

    return vector


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a small real tokenizer: 60 words, BERT's special tokens."""
    tokenizer = Tokenizer(models.WordLevel({word: id for id, word in enumerate(WORDS)}, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    # Published files often contain these; the front must not apply them.
    tokenizer.enable_truncation(4)
    tokenizer.enable_padding(length=16)
    folder = tmp_path_factory.mktemp("model")
    tokenizer.save(str(folder / "tokenizer.json"))
    return folder


@pytest.fixture
def model_info(model_folder: Path) -> ModelInfo:
    """An embedder with vectors of 8 values and a limit of 16 tokens."""
    return ModelInfo(
        name="words",
        requested="demo",
        task="embed",
        folder=str(model_folder),
        shape=None,
        architecture="BertModel",
        hidden_size=WIDTH,
        layers=1,
        vocab_size=len(WORDS),
        max_length=16,
        pad_id=0,
        pooling="mean",
        normalize=True,
        labels=(),
        weight_bytes=1,
    )


class Recorder:
    """A listener that records its notifications."""

    def __init__(self) -> None:
        self.events: list[tuple[str, int, Any]] = []
        self._changed = asyncio.Event()

    def _add(self, kind: str, instance: int, value: Any) -> None:
        self.events.append((kind, instance, value))
        self._changed.set()

    def loading(self, instance: int, message: Any) -> None:
        self._add("loading", instance, message)

    def ready(self, instance: int, message: Any) -> None:
        self._add("ready", instance, message)

    def unusable(self, instance: int, reason: str) -> None:
        self._add("unusable", instance, reason)

    def overdue(self, instance: int, batch: int) -> None:
        self._add("overdue", instance, batch)

    def lost(self, instance: int, reason: str) -> None:
        self._add("lost", instance, reason)

    async def wait(self, kind: str, instance: int) -> Any:
        """Wait for the first such event; returns its value."""

        async def found() -> Any:
            while True:
                for event in self.events:
                    if event[:2] == (kind, instance):
                        return event[2]
                self._changed.clear()
                await self._changed.wait()

        return await asyncio.wait_for(found(), DEADLINE)


class ScriptedWorker:
    """The other end of a channel, on the same loop."""

    def __init__(self, sock: socket.socket, vector_of: Callable[[Any], np.ndarray]) -> None:
        self._sock = sock
        self._vector_of = vector_of
        self._decoder: Decoder[Any] = to_worker_decoder()
        self._inbox: list[tuple[Any, bytes]] = []
        self._serving: asyncio.Task[None] | None = None
        self.batches: list[tuple[int, ...]] = []

    async def receive(self) -> tuple[Any, bytes]:
        """The next message; (None, b"") at the end of the stream."""
        loop = asyncio.get_running_loop()
        while not self._inbox:
            try:
                data = await loop.sock_recv(self._sock, 1 << 16)
            except ConnectionError:  # closed by the front with something of ours unread
                data = b""
            if not data:
                return None, b""
            self._inbox += list(self._decoder.feed(data))
        return self._inbox.pop(0)

    async def expect(self, kind: type) -> tuple[Any, bytes]:
        """The next message, which must be of this kind."""
        message, body = await asyncio.wait_for(self.receive(), DEADLINE)
        assert isinstance(message, kind), message
        return message, body

    async def send(self, message: msgspec.Struct, body: bytes = b"") -> None:
        await self.write(b"".join(bytes(part) for part in encode(message, body)))

    async def write(self, data: bytes) -> None:
        await asyncio.get_running_loop().sock_sendall(self._sock, data)

    async def become_ready(self, width: int = WIDTH) -> Setup:
        setup, _ = await self.expect(Setup)
        await self.send(
            Ready(
                pid=1, threads=1, dtype="fp32", backend="fake", width=width, labels=(), torch_version="",
                load_seconds=0.0, warmup_seconds=0.0, measured=((1, 16, 256, 0.001),), accuracy=None,
            )
        )  # fmt: skip
        return setup

    def results(self, run: Run, body: bytes) -> bytes:
        """The correct body of the response to ``run``."""
        ids = np.frombuffer(body, dtype=np.int32)
        assert len(ids) == sum(run.lengths)
        items = np.split(ids, np.cumsum(run.lengths)[:-1])
        return b"".join(self._vector_of(item).tobytes() for item in items)

    async def answer(self, run: Run, body: bytes, **changes: Any) -> None:
        done = Done(run.batch, len(run.lengths), WIDTH, 0.0001, max(run.lengths) * len(run.lengths))
        await self.send(msgspec.structs.replace(done, **changes), self.results(run, body))

    async def serve(self) -> None:
        """Answer every batch until asked to stop, or until the channel ends."""
        while True:
            message, body = await self.receive()
            if message is None:
                return
            if isinstance(message, Stop):
                self.close()
                return
            self.batches.append(message.lengths)
            await self.answer(message, body)

    def serve_in_background(self) -> None:
        self._serving = asyncio.ensure_future(self.serve())

    async def fail(self, run: Run, reason: str) -> None:
        await self.send(Failed(run.batch, reason))

    def close(self) -> None:
        """Close the channel, as the end of the process does."""
        self._sock.close()

    async def end(self) -> None:
        if self._serving is not None:
            self._serving.cancel()
            await asyncio.gather(self._serving, return_exceptions=True)
        self.close()


class Front:
    """A dispatcher, its scheduler, its listener and its workers."""

    def __init__(
        self, specs: list[InstanceSpec], limits: SchedulerLimits, model_info: ModelInfo, vector_of: Any
    ) -> None:
        names = {spec.id: spec.length_class.name if spec.length_class else "all" for spec in specs}
        self.metrics = FrontMetrics(names)
        self.scheduler = Scheduler(specs, limits)
        self.metrics.watch_queue(self.scheduler.queued_by_class)
        self.listener = Recorder()
        self.dispatcher = Dispatcher(
            self.scheduler,
            self.listener,
            self.metrics,
            width=model_info.result_width,
            rows=model_info.rows,
        )
        self.setup = Setup(model_info=model_info, dtype="fp32", backend="fake", warmup=((1, 16),))
        self.workers: list[ScriptedWorker] = []
        self._model_info, self._vector_of = model_info, vector_of

    async def attach(self, instance: int = 0) -> ScriptedWorker:
        """Connect a worker that has not sent anything yet."""
        ours, theirs = socket.socketpair()
        theirs.setblocking(False)
        worker = ScriptedWorker(theirs, self._vector_of)
        self.workers.append(worker)
        await self.dispatcher.attach(instance, ours, self.setup)
        return worker

    async def ready(self, instance: int = 0) -> ScriptedWorker:
        """Connect a worker that is ready and does not answer by itself."""
        worker = await self.attach(instance)
        await worker.become_ready(self._model_info.result_width)
        await self.listener.wait("ready", instance)
        return worker

    async def ready_again(self, instance: int) -> None:
        """Wait until the second worker of an instance is ready."""
        await until(lambda: sum(event[:2] == ("ready", instance) for event in self.listener.events) == 2)

    async def serving(self, instance: int = 0) -> ScriptedWorker:
        """Connect a worker that answers every batch."""
        worker = await self.ready(instance)
        worker.serve_in_background()
        return worker

    def services(self, model_info: ModelInfo, options: FrontOptions, **changes: Any) -> Services:
        values: dict[str, Any] = {
            "dispatcher": self.dispatcher,
            "tokenizer": FrontTokenizer(
                model_info, text_characters=options.text_characters, threads=options.tokenizer_threads
            ),
            "model_info": model_info,
            "options": options,
            "info": lambda: {"model": model_info.name},
            "states": lambda: {0: {"state": "ready"}},
            "is_ready": lambda: True,
            "probe": self._probe,
            "metrics": self.metrics,
        }
        return Services(**{**values, **changes})

    async def _probe(self) -> dict[str, bool]:
        return {str(instance): await self.dispatcher.finishes_batch(instance, DEADLINE) for instance in (0,)}

    async def end(self) -> None:
        for worker in self.workers:
            await worker.end()
        await until(lambda: not self.dispatcher._workers)


async def until(condition: Callable[[], bool]) -> None:
    """Let the loop run until ``condition`` holds; fails after the deadline."""
    loop = asyncio.get_running_loop()
    end = loop.time() + DEADLINE
    while not condition():
        assert loop.time() < end, "the condition did not become true"
        await asyncio.sleep(0.001)


@pytest.fixture(name="until")
def until_fixture() -> Callable[[Callable[[], bool]], Awaitable[None]]:
    """``await until(condition)``."""
    return until


MakeFront = Callable[..., Front]


@pytest.fixture
async def make_front(model_info: ModelInfo, vector_of: Any) -> AsyncIterator[MakeFront]:
    """Makes a front; ``classes`` are the longest lengths of the instances' classes, None for all lengths."""
    made: list[Front] = []

    def make(
        instances: int = 1,
        *,
        classes: tuple[LengthClass, ...] | None = None,
        queue_items: int = 1000,
        batch_tokens: int = 256,
        model_info: ModelInfo = model_info,
    ) -> Front:
        specs = [InstanceSpec(i, 1, classes[i] if classes else None) for i in range(instances)]
        front = Front(specs, limits(queue_items, batch_tokens), model_info, vector_of)
        made.append(front)
        return front

    yield make
    for front in made:
        await front.end()


@pytest.fixture
def make_client() -> Callable[..., httpx.AsyncClient]:
    """Makes an HTTP client that calls the application without a socket."""

    def make(services: Services, families: Any = FAMILIES) -> httpx.AsyncClient:
        transport = httpx.ASGITransport(create_app(services, families), raise_app_exceptions=False)
        return httpx.AsyncClient(transport=transport, base_url="http://front")

    return make
