"""The eager backend with real models: the demo, models built here, and all supported kinds of encoders.

The reference is plain transformers in fp32, one text at a time.
"""

from __future__ import annotations

import json
import resource
import shutil
from pathlib import Path

import msgspec
import numpy as np
import pytest

from launcher.bench.workload import builtin_workload
from launcher.core.protocol.messages import Setup
from launcher.core.protocol.model_info import ModelInfo
from launcher.host.model.architectures import POSITIONS_AFTER_PADDING
from launcher.host.model.resolve import RANDOM_HEADS, resolve
from launcher.options import ModelOptions
from launcher.worker.interfaces import ItemBatch
from launcher.worker.numerics import largest_relative_error
from tests.worker.letter_tokenizer import save_letter_tokenizer

pytestmark = pytest.mark.slow

TEXTS = (
    "no",
    "A cat sat on the mat.",
    "The committee will publish its findings on Thursday, after the figures have been checked a second time.",
    "Разрешите представиться: меня зовут Анна.",
    "def add(a, b):\n    return a + b",
    "It rained. " * 20,
    "It rained. " * 60,
    "How do I reset the password of an account whose owner has left the company, if nobody has the recovery key?",
    "🙂🙂🙂",
    "naïve café, 12 °C",
)


def cosines(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    return np.sum(first * second, axis=1) / np.linalg.norm(first, axis=1) / np.linalg.norm(second, axis=1)


def token_ids(model_info: ModelInfo, texts: tuple[str, ...] = TEXTS) -> list[list[int]]:
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(model_info.tokenizer_path)
    tokenizer.no_padding()
    tokenizer.enable_truncation(model_info.max_length)
    return [encoding.ids for encoding in tokenizer.encode_batch(list(texts))]


def run_in_batches(worker, items: list[list[int]], size: int) -> np.ndarray:
    """Results in the order of ``items``, which are sent longest first, ``size`` at a time."""
    order = sorted(range(len(items)), key=lambda index: -len(items[index]))
    results: dict[int, np.ndarray] = {}
    for start in range(0, len(order), size):
        part = order[start : start + size]
        worker.run(start, [items[index] for index in part])
        done, values = worker.results()
        assert done.batch == start
        results.update(zip(part, values, strict=True))
    return np.stack([results[index] for index in range(len(items))])


@pytest.fixture(scope="module")
def demo_reference() -> np.ndarray:
    """The results of transformers for each text alone: normalized mean over the tokens, as in the model card."""
    import torch
    from transformers import AutoModel, AutoTokenizer

    model_info = resolve(ModelOptions())
    tokenizer, model = AutoTokenizer.from_pretrained(model_info.folder), AutoModel.from_pretrained(model_info.folder)
    vectors = []
    with torch.no_grad():
        for text in TEXTS:
            encoded = tokenizer(text, return_tensors="pt", truncation=True, max_length=256)
            hidden = model(**encoded).last_hidden_state[0]
            vectors.append(torch.nn.functional.normalize(hidden.mean(0), dim=0).numpy())
    return np.stack(vectors)


@pytest.mark.parametrize(("dtype", "least"), [("fp32", 0.9995), ("bf16", 0.999)])
def test_the_demo_model_matches_transformers_for_single_items_and_in_batches(
    start, demo_reference, dtype, least
) -> None:
    model_info = resolve(ModelOptions())
    worker = start()
    worker.send(Setup(model_info, dtype, "eager", ((2, 16),)))
    ready = worker.ready()
    assert (ready.width, ready.dtype, ready.threads) == (384, dtype, 1)
    assert (ready.accuracy is None) == (dtype == "fp32")
    assert ready.accuracy is None or 0.999 < ready.accuracy < 1

    items = token_ids(model_info)
    for size in (1, 3, len(items)):
        vectors = run_in_batches(worker, items, size)
        assert cosines(vectors, demo_reference).min() >= least
        np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, rtol=1e-5)
    assert worker.stop() == 0


def test_large_packed_batches_of_texts_of_all_lengths_match_single_texts(start) -> None:
    import torch
    from transformers import AutoModel

    model_info = resolve(ModelOptions())
    items = token_ids(model_info, builtin_workload(400, seed=9).texts)
    model = AutoModel.from_pretrained(model_info.folder).eval()
    with torch.inference_mode():
        hidden = [model(torch.tensor([item])).last_hidden_state[0] for item in items]
    alone = np.stack([torch.nn.functional.normalize(each.mean(0), dim=0).numpy() for each in hidden])
    for dtype, least in (("fp32", 0.9995), ("bf16", 0.999)):
        worker = start()
        worker.send(Setup(model_info, dtype, "eager", ()))
        assert worker.ready().packed
        assert cosines(run_in_batches(worker, items, 48), alone).min() >= least
        assert worker.stop() == 0


def test_every_instance_of_a_random_model_has_the_same_weights(start) -> None:
    model_info = resolve(ModelOptions(model="random:tiny"))
    results = []
    for _ in range(2):
        worker = start()
        worker.send(Setup(model_info, "fp32", "eager", ()))
        worker.ready()
        results.append(run_in_batches(worker, [[101, 2023, 102], [101, 102]], 2))

    np.testing.assert_array_equal(results[0], results[1])


def test_it_computes_with_the_given_number_of_threads(start) -> None:
    worker = start("--threads", "2")
    worker.send(Setup(resolve(ModelOptions(model="random:tiny")), "fp32", "eager", ((4, 64),)))

    assert worker.ready().threads == 2


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_weights_are_in_memory_of_the_worker_and_not_in_the_file_cache(start, dtype) -> None:
    worker = start()
    worker.send(Setup(resolve(ModelOptions()), dtype, "eager", ()))
    pid = worker.ready().pid

    assert "model.safetensors" not in Path(f"/proc/{pid}/maps").read_text()


def test_a_batch_that_does_not_fit_in_memory_fails_alone(start) -> None:
    worker = start()
    worker.send(Setup(resolve(ModelOptions(model="random:tiny")), "fp32", "eager", ((1, 8),)))
    pid = worker.ready().pid
    before = resource.prlimit(pid, resource.RLIMIT_AS)
    used = int(Path(f"/proc/{pid}/statm").read_text().split()[0]) * resource.getpagesize()
    resource.prlimit(pid, resource.RLIMIT_AS, (used + (16 << 20), before[1]))
    worker.run(1, [[5] * 512] * 256)
    assert "memory" in worker.failed().reason

    resource.prlimit(pid, resource.RLIMIT_AS, before)
    worker.run(2, [[5] * 512] * 2)
    assert worker.results()[0].batch == 2


# --- classifiers, built here


def save_classifier(folder: Path, demo_folder: Path, **config: object) -> None:
    import torch
    from transformers import BertConfig, BertForSequenceClassification

    torch.manual_seed(1)
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
    model = BertForSequenceClassification(BertConfig(**sizes, **config))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(4)  # so that scores are far from equal
    model.save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(demo_folder / name, folder / name)


@pytest.mark.parametrize(
    ("config", "labels"),
    [
        ({"id2label": {0: "red", 1: "green", 2: "blue"}}, ("red", "green", "blue")),
        ({"num_labels": 3, "problem_type": "multi_label_classification"}, ("LABEL_0", "LABEL_1", "LABEL_2")),
        ({"num_labels": 1}, ("LABEL_0",)),
    ],
)
def test_a_classifier_matches_the_pipeline_of_transformers(start, tmp_path, demo_folder, config, labels) -> None:
    from transformers import pipeline

    save_classifier(tmp_path, demo_folder, **config)
    model_info = resolve(ModelOptions(model=str(tmp_path), task="classify"))
    assert (model_info.task, model_info.labels) == ("classify", labels)
    worker = start()
    worker.send(Setup(model_info, "fp32", "eager", ((1, 8),)))
    assert worker.ready().width == len(labels)

    scores = run_in_batches(worker, token_ids(model_info), 4)

    classify = pipeline("text-classification", model=str(tmp_path), top_k=None)
    for text, found in zip(TEXTS, scores, strict=True):
        expected = {entry["label"]: entry["score"] for entry in classify([text], truncation=True, max_length=256)[0]}
        np.testing.assert_allclose(found, [expected[label] for label in labels], atol=1e-5)


def test_a_classifier_without_the_weights_of_its_head_is_refused(start, tmp_path, demo_folder) -> None:
    from transformers import BertConfig, BertModel

    config = BertConfig(hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=64)
    BertModel(config).save_pretrained(tmp_path)
    shutil.copy(demo_folder / "tokenizer.json", tmp_path / "tokenizer.json")
    saved = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**saved, "architectures": ["BertForSequenceClassification"]}))
    worker = start()
    worker.send(Setup(resolve(ModelOptions(model=str(tmp_path))), "fp32", "eager", ()))

    reason = worker.unusable()

    assert "the model files lack 2 of the tensors" in reason
    assert "classifier.bias" in reason
    assert worker.exit_status() == 4


def test_a_model_whose_files_are_gone_is_refused_in_one_sentence(start, tmp_path, demo_folder) -> None:
    model_info = msgspec.structs.replace(resolve(ModelOptions()), folder=str(tmp_path / "gone"), requested="gone")
    worker = start()
    worker.send(Setup(model_info, "fp32", "eager", ()))

    reason = worker.unusable()

    assert reason.startswith("gone: transformers cannot load ")
    assert "\n" not in reason
    assert worker.exit_status() == 4


def test_weights_whose_size_contradicts_the_config_are_refused(start, tmp_path, demo_folder) -> None:
    shutil.copytree(demo_folder, tmp_path, dirs_exist_ok=True)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "intermediate_size": 768}))
    worker = start()
    worker.send(Setup(resolve(ModelOptions(model=str(tmp_path))), "fp32", "eager", ()))

    reason = worker.unusable()
    assert "config.json and the weights in" in reason
    assert "has the shape [1536]" in reason
    assert worker.exit_status() == 4


# --- all kinds of encoders


def tiny_config(kind: str) -> dict[str, object]:
    sizes: dict[str, object] = {"vocab_size": 200, "max_position_embeddings": 130}
    if kind == "distilbert":
        return {**sizes, "dim": 64, "n_layers": 2, "n_heads": 4, "hidden_dim": 128}
    sizes |= {"num_hidden_layers": 2, "num_attention_heads": 4, "hidden_size": 64, "intermediate_size": 128}
    sizes |= {"embedding_size": 64, "bos_token_id": 2, "eos_token_id": 3, "cls_token_id": 2, "sep_token_id": 3}
    if kind == "eurobert":
        sizes |= {"head_dim": 16, "num_key_value_heads": 4}
    if kind == "xmod":
        sizes |= {"languages": ["en_XX", "de_DE"], "default_language": "de_DE"}
    if kind in ("eurobert", "modernbert"):
        sizes |= {"pad_token_id": 0}
    return sizes


def save_encoder(kind: str, folder: Path) -> None:
    import torch
    from transformers import AutoConfig, AutoModel

    torch.manual_seed(0)
    model = AutoModel.from_config(AutoConfig.for_model(kind, **tiny_config(kind)))
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.mul_(5)
    model.save_pretrained(folder)
    save_letter_tokenizer(folder, 200)


# Kinds that cannot be packed with the installed version of transformers, because their attention cannot be replaced.
PADDED = {
    "deberta",
    "deberta-v2",
    "ibert",
    "megatron-bert",
    "mpnet",
    "rembert",
    "roformer",
    "squeezebert",
}


# Kinds that need other configs are in test_encoder_families.
PACKED = {
    "albert",
    "bert",
    "camembert",
    "data2vec-text",
    "distilbert",
    "electra",
    "ernie",
    "eurobert",
    "gte",
    "modernbert",
    "nomic_bert",
    "roberta",
    "roberta-prelayernorm",
    "xlm-roberta",
    "xlm-roberta-xl",
}


@pytest.mark.parametrize("kind", sorted(PACKED | PADDED))
def test_each_kind_of_encoder_gives_the_same_vectors_alone_and_in_a_batch_up_to_its_limit(kind, tmp_path) -> None:
    """In this process, because a worker for each would take minutes. Alone means plain transformers."""
    import torch
    from transformers import AutoModel

    from launcher.worker.backends.eager import EagerBackend

    save_encoder(kind, tmp_path)
    model_info = resolve(ModelOptions(model=str(tmp_path)))
    backend = EagerBackend(Setup(model_info, "fp32", "eager", ()))
    loaded = backend.load(lambda stage, done, detail: None)
    lengths = (model_info.max_length, 60, 17, 17, 1)
    ids = 5 + np.arange(sum(lengths), dtype=np.int32) * 31 % 190
    ids[[3, -40, -20, -2]] = model_info.pad_id  # as in texts that contain its name: real tokens, not padding

    output = backend.run(ItemBatch(ids, lengths))
    plain = AutoModel.from_pretrained(tmp_path).eval()
    alone = []
    with torch.no_grad():
        for item in np.split(ids.astype(np.int64), np.cumsum(lengths)[:-1]):
            inputs = torch.from_numpy(item[None])
            hidden = plain(inputs, attention_mask=torch.ones_like(inputs)).last_hidden_state
            alone.append(hidden[0].mean(0).numpy())

    assert output.values.shape == (5, model_info.hidden_size)
    assert largest_relative_error(np.stack(alone), output.values) < 1e-5
    assert loaded.packed == (kind not in PADDED)
    assert any("not packed" in note for note in loaded.notes) == (kind in PADDED)
    assert (output.computed_tokens <= sum(lengths) * 1.04) == loaded.packed
    if kind in POSITIONS_AFTER_PADDING:
        assert model_info.max_length == 128
        with pytest.raises((IndexError, RuntimeError)):
            backend.run(ItemBatch(np.full(129, 5, dtype=np.int32), [129]))


@pytest.mark.parametrize("kind", ["fnet", "convbert"])
def test_a_model_that_mixes_padding_into_its_results_is_refused_at_load(kind, tmp_path, model_info) -> None:
    from launcher.worker.backends.eager import EagerBackend
    from launcher.worker.interfaces import ModelError

    save_encoder(kind, tmp_path)
    made = model_info(folder=str(tmp_path), hidden_size=64, vocab_size=200)
    backend = EagerBackend(Setup(made, "fp32", "eager", ()))

    with pytest.raises(ModelError, match="depends on the padding in its batch"):
        backend.load(lambda stage, done, detail: None)


def test_a_compiled_model_gives_the_same_vectors_for_any_number_of_tokens(start, tmp_path) -> None:
    model_info = resolve(ModelOptions(model="random:tiny"))
    items = [[5] * 30, [7, 8, 9], [11], [12] * 200]
    results = []
    for backend in ("eager", "compile"):
        worker = start("--threads", "1", environment={"TORCHINDUCTOR_CACHE_DIR": str(tmp_path)})
        worker.send(Setup(model_info, "fp32", backend, ()))
        assert ("compiled" in worker.ready().notes) == (backend == "compile")
        results.append(np.concatenate([run_in_batches(worker, items, size) for size in (1, 2, 4)]))
        assert worker.stop() == 0
    assert cosines(*results).min() > 0.99999


@pytest.mark.parametrize("task", RANDOM_HEADS)
def test_random_models_have_the_head_of_their_task(task) -> None:
    from launcher.worker.backends.eager import EagerBackend

    model_info = resolve(ModelOptions(model="random:tiny", task=task, max_length=128))
    backend = EagerBackend(Setup(model_info, "fp32", "eager", ()))
    loaded = backend.load(lambda stage, done, detail: None)

    assert loaded.packed
    values = backend.run(backend.sample_batch((9, 3))).values
    assert values.shape[1] == model_info.result_width
    assert np.isfinite(values).all()


def test_a_model_that_cannot_be_compiled_runs_eagerly_with_a_note(start, tmp_path) -> None:
    worker = start("--threads", "1", environment={"CXX": "false", "TORCHINDUCTOR_CACHE_DIR": str(tmp_path)})
    worker.send(Setup(resolve(ModelOptions(model="random:tiny")), "fp32", "compile", ()))
    assert [note for note in worker.ready().notes if note.startswith("not compiled, running eagerly: ")]
    assert run_in_batches(worker, [[5, 6], [7]], 2).shape == (2, 128)


@pytest.mark.parametrize("stage", ["import", "load"])
def test_it_exits_immediately_if_the_channel_is_closed_while_it_starts(start, stage) -> None:
    worker = start()
    worker.send(Setup(resolve(ModelOptions(model="random:bert-base")), "fp32", "eager", ((8, 512),) * 50))
    worker.wait_for_stage(stage)
    worker.socket.close()

    assert worker.process.wait(60) == 0
