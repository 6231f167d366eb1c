"""``Engine``: values, order, laziness, errors, and its lifecycle in one process."""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import pickle
import signal
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from launcher import AsyncEngine, Engine
from launcher.engine.streaming import chunk_limit
from launcher.errors import InstanceError, LauncherError, RequestError, UsageError
from tests.api.conftest import FAKE, children, kill_permanently, wait_until, worker_pids
from tests.e2e.running import gone
from tests.e2e.test_results import sentences

pytestmark = pytest.mark.slow


# --- values and order


def test_vectors_are_those_of_transformers() -> None:
    import torch
    from transformers import AutoModel, AutoTokenizer

    from launcher.host.model.resolve import demo_folder

    texts = sentences(20)
    tokenizer = AutoTokenizer.from_pretrained(demo_folder())
    model = AutoModel.from_pretrained(demo_folder(), dtype=torch.float32).eval()
    with Engine("demo", instances=2, oversubscribe=True, dtype="fp32") as engine:
        vectors = engine.embed(texts)
    assert (vectors.shape, vectors.dtype) == ((20, 384), np.float32)
    for text, vector in zip(texts, vectors, strict=True):
        encoded = tokenizer(text, truncation=True, max_length=256, return_tensors="pt")
        with torch.no_grad():
            pooled = model(**encoded).last_hidden_state[0].mean(0)
        np.testing.assert_allclose(vector, (pooled / pooled.norm()).numpy(), atol=1e-5)


def test_results_are_in_the_order_of_the_texts_for_any_kind_of_iterable(engine: Engine) -> None:
    texts = [f"{'word ' * (number % 40)}{number}" for number in range(1500)]
    alone = np.stack([engine.embed(text) for text in texts[:50]])
    every = engine.embed(texts)
    assert every.shape == (1500, engine.info()["model"]["width"])
    np.testing.assert_array_equal(every[:50], alone)
    np.testing.assert_array_equal(engine.embed(iter(texts)), every)
    np.testing.assert_array_equal(np.stack(list(engine.embed_stream(text for text in texts))), every)


def test_a_vector_that_is_kept_keeps_no_others_in_memory(engine: Engine) -> None:
    for vector in (*engine.embed_stream(["one", "two", "three"]), engine.embed("one")):
        assert vector.base is None
        assert vector.flags.owndata


def test_one_text_gives_one_result_and_none_gives_none(engine: Engine) -> None:
    width = engine.info()["model"]["width"]
    assert engine.embed("one").shape == (width,)
    assert engine.embed(["one"]).shape == (1, width)
    assert engine.embed([]).shape == (0, width)
    assert list(engine.embed_stream([])) == []


def test_a_classifier_gives_labels_with_scores_best_first() -> None:
    with Engine("random:tiny", task="classify", instances=1, reserve_cores=0) as engine:
        one, two = engine.classify(["first", "a second text"])
        assert [label.score for label in one] == sorted((label.score for label in one), reverse=True)
        assert {label.label for label in one} == set(engine.info()["model"]["labels"])
        assert engine.classify("a second text") == two
        assert list(engine.classify_stream(["first", "a second text"])) == [one, two]
        with pytest.raises(UsageError, match=r"'classify', not 'embed'; use classify\(\)"):
            engine.embed("first")


def test_a_progress_bar_counts_the_texts(engine: Engine, capfd: pytest.CaptureFixture[str]) -> None:
    engine.embed([f"text {number}" for number in range(300)], progress=True)
    assert "300/300" in capfd.readouterr().err


# --- laziness


def test_texts_are_read_a_bounded_number_ahead_of_the_results(engine: Engine) -> None:
    taken = 0

    def texts() -> Iterator[str]:
        nonlocal taken
        while True:
            taken += 1
            yield f"text {taken}"

    stream = engine.embed_stream(texts())
    assert taken == 0
    most = chunk_limit(2) * 256
    for done in range(1, 20_001):
        next(stream)
        if done % 1000 == 0:
            assert taken <= done + most
    stream.close()
    assert engine.embed("still there").ndim == 1


def test_an_exception_of_the_generator_reaches_the_caller(engine: Engine) -> None:
    def texts() -> Iterator[str]:
        yield "fine"
        raise LookupError("no more")

    with pytest.raises(LookupError, match="no more"):
        engine.embed(texts())
    assert engine.embed("still there").ndim == 1


# --- errors


def test_a_text_that_cannot_be_used_is_named_by_its_index(engine: Engine) -> None:
    texts = [*(f"text {number}" for number in range(700)), "word " * 600]
    with pytest.raises(RequestError, match=r"'texts\[700\]' has 602 tokens.* pass truncate=True"):
        engine.embed(texts)
    assert engine.embed(texts, truncate=True).shape[0] == 701
    with pytest.raises(RequestError, match=r"^'texts' has 602 tokens"):
        engine.embed("word " * 600)
    with pytest.raises(UsageError, match=r"'texts\[1\]' is of type int"):
        engine.embed(["fine", 1])  # type: ignore[list-item]


def test_a_single_text_is_no_stream_of_its_characters(engine: Engine) -> None:
    with pytest.raises(UsageError, match="texts is a single str"):
        next(engine.embed_stream("one text"))
    with pytest.raises(UsageError, match="texts is a single bytes"):
        engine.embed(b"one text")  # type: ignore[arg-type]


def test_results_before_a_bad_text_are_streamed(engine: Engine) -> None:
    stream = engine.embed_stream([*(f"text {number}" for number in range(512)), ""])
    assert sum(1 for _ in zip(range(512), stream, strict=False)) == 512
    with pytest.raises(RequestError, match=r"texts\[512\].* empty"):
        next(stream)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"instanzes": 2}, "'instanzes'; did you mean 'instances'"),
        ({"instances": 0}, "instances 0: must be an integer of at least 1"),
        ({"port": 80}, "port is an option of `launch serve`"),
        ({"dtype": "fp64"}, "dtype fp64: must be one of"),
    ],
)
def test_bad_options_are_refused_before_anything_starts(options: dict[str, object], words: str) -> None:
    before = children()
    with pytest.raises(UsageError, match=words):
        Engine("random:tiny", **options)  # type: ignore[arg-type]
    assert children() == before


def test_a_model_may_be_a_path(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"has no config\.json"):
        Engine(tmp_path)


def test_calls_raise_when_all_instances_have_failed() -> None:
    with Engine("random:tiny", max_failures=1, backoff_seconds=0.01, **FAKE) as engine:
        for pid in worker_pids(engine.info()):
            os.kill(pid, signal.SIGSTOP)
        errors: list[LauncherError] = []

        def waits() -> None:
            try:
                engine.embed("waits")
            except LauncherError as error:
                errors.append(error)

        thread = threading.Thread(target=waits)
        thread.start()
        kill_permanently(engine.info)
        thread.join(20)
        assert len(errors) == 1
        with pytest.raises(InstanceError, match="no instance is left"):
            engine.embed("comes later")


def test_a_start_that_fails_says_why_and_leaves_no_worker() -> None:
    before = children()
    with pytest.raises(InstanceError, match="no instance is left"):
        Engine("random:tiny", start_seconds=0.1, max_failures=1, **FAKE)
    assert children() == before


def test_a_lost_worker_costs_no_result() -> None:
    with Engine("random:tiny", backoff_seconds=0.01, **FAKE) as engine:
        expected = engine.embed("text 1")
        stream = engine.embed_stream(f"text {number % 10}" for number in range(20_000))
        results = [next(stream)]
        os.kill(worker_pids(engine.info())[0], signal.SIGKILL)
        results += stream
        assert len(results) == 20_000
        np.testing.assert_array_equal(results[-9], expected)


# --- its life


def test_close_can_be_repeated_and_later_calls_report_that_the_engine_is_closed() -> None:
    engine = Engine("random:tiny", **FAKE)
    pids = worker_pids(engine.info())
    stream = engine.embed_stream(f"text {number}" for number in range(100_000))
    next(stream)
    engine.close()
    engine.close()
    assert gone(pids)
    for call in (lambda: engine.embed("late"), lambda: list(stream), engine.info):
        with pytest.raises(UsageError, match="the engine is closed"):
            call()


def test_close_finishes_what_another_thread_has_begun() -> None:
    engine = Engine("random:tiny", **FAKE)
    for pid in worker_pids(engine.info()):
        os.kill(pid, signal.SIGSTOP)
    results: list[object] = []
    thread = threading.Thread(target=lambda: results.append(engine.embed("begun")))
    thread.start()
    wait_until(lambda: engine._thread.session.engine.dispatcher.in_flight > 0)
    closing = threading.Thread(target=engine.close)
    closing.start()
    for pid in worker_pids(engine.info()):
        os.kill(pid, signal.SIGCONT)
    closing.join(20)
    thread.join(20)
    assert len(results) == 1


def test_close_can_be_interrupted_and_called_again() -> None:
    before = children()
    engine = Engine("random:tiny", fake_seconds_per_token=0.002, **FAKE)
    call = threading.Thread(target=lambda: engine.embed([f"text {number}" for number in range(1000)]))
    call.start()
    wait_until(lambda: engine._thread.session.engine.dispatcher.in_flight > 0)
    interrupt = threading.Timer(0.2, os.kill, (os.getpid(), signal.SIGINT))
    interrupt.start()
    with pytest.raises(KeyboardInterrupt):
        engine.close()
    assert children() > before, "the admitted work is not done yet"
    engine.close()
    assert children() == before
    call.join()


def test_an_exception_in_the_block_leaves_no_worker() -> None:
    pids: list[int] = []

    def use() -> None:
        with Engine("random:tiny", **FAKE) as engine:
            pids.extend(worker_pids(engine.info()))
            raise LookupError("not found")

    with pytest.raises(LookupError, match="not found"):
        use()
    assert len(pids) == 2
    assert gone(pids)


def test_an_engine_cannot_be_pickled_and_says_so(engine: Engine) -> None:
    for one in (engine, AsyncEngine()):
        with pytest.raises(TypeError, match="create one in the process that uses it"):
            pickle.dumps(one)


def test_an_engine_that_is_dropped_leaves_no_worker() -> None:
    engine = Engine("random:tiny", **FAKE)
    pids = worker_pids(engine.info())
    del engine
    gc.collect()
    assert gone(pids)


def test_two_engines_at_once_and_one_after_another(engine: Engine) -> None:
    expected = engine.embed(["a", "b"])
    for _ in range(2):
        with Engine("random:tiny", **FAKE) as other:
            np.testing.assert_array_equal(other.embed(["a", "b"]), expected)
            np.testing.assert_array_equal(engine.embed(["a", "b"]), expected)


def test_many_threads_share_an_engine(engine: Engine) -> None:
    texts = [[f"{thread} {number}" for number in range(200)] for thread in range(8)]
    expected = [engine.embed(own) for own in texts]
    results: dict[int, object] = {}
    threads = [
        threading.Thread(target=lambda index=index: results.update({index: engine.embed(texts[index])}))
        for index in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    for index in range(8):
        np.testing.assert_array_equal(results[index], expected[index])


def test_more_texts_than_the_queue_holds_wait_for_room() -> None:
    with Engine("random:tiny", max_queue_items=3, **FAKE) as engine:
        assert engine.embed([f"text {number}" for number in range(50)]).shape[0] == 50


def test_it_works_while_a_loop_is_running() -> None:
    async def notebook() -> int:
        with Engine("random:tiny", **FAKE) as engine:
            return len(engine.embed(["a cell", "of a notebook"]))

    assert asyncio.run(notebook()) == 2


def test_it_leaves_signals_affinity_loggers_and_loops_alone() -> None:
    numbers = [signal.SIGINT, signal.SIGTERM, signal.SIGCHLD, signal.SIGHUP]

    def state() -> tuple[object, ...]:
        policy = type(asyncio.get_event_loop_policy())
        handlers = [signal.getsignal(number) for number in numbers]
        root = logging.getLogger()
        return handlers, os.sched_getaffinity(0), list(root.handlers), root.level, policy, signal.set_wakeup_fd(-1)

    before = state()
    with Engine("random:tiny", **FAKE) as engine:
        engine.embed("text")
        assert state() == before
    assert state() == before


def test_plan_and_info_say_where_instances_run(engine: Engine) -> None:
    info = engine.info()
    assert [entry["cpus"] for entry in info["instances"]] == [list(one.cpus) for one in engine.plan.instances]
    assert info["model"]["name"] == "random:tiny"
