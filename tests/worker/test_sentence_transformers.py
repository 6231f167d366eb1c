"""Models that sentence-transformers builds and saves, compared with its own results in the same run.

For what the table in ``tests/models`` has no row for: forms of the files, prompts of requests, orders of modules.

The encoder and all modules have random weights of a scale at which a wrong mode, module, prompt or mask changes the
results by far more than the tolerance.
"""

from __future__ import annotations

import asyncio
import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from launcher.core.protocol.messages import Setup
from launcher.core.protocol.model_info import ModelInfo
from launcher.errors import UsageError
from launcher.front.item_details import ItemDetails
from launcher.front.tokenizer import FrontTokenizer
from launcher.host.model.resolve import demo_folder, resolve
from launcher.options import ModelOptions
from launcher.worker.interfaces import Item, ItemBatch

pytestmark = pytest.mark.slow

TEXTS = (
    "no",
    "A cat sat on the mat.",
    "The committee will publish its findings on Thursday, after the figures have been checked a second time.",
    "naïve café, 12 °C",
    "It rained for days, and nobody went out. " * 12,
)
WIDTH = 32
TOLERANCE = 1e-5


def randomize(module: Any, seed: int) -> Any:
    """``module`` with random weights at which all its parts matter."""
    import torch

    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            if parameter.dim() > 1:
                parameter.copy_(noise * 1.2 / parameter.shape[-1] ** 0.5)
            else:
                parameter.add_(noise * 0.3)
    return module


@pytest.fixture(scope="module")
def encoder(tmp_path_factory) -> Path:
    """A small BERT with the tokenizer of the demo model."""
    import torch
    from transformers import AutoTokenizer, BertConfig, BertModel

    torch.set_num_threads(1)  # tiny batches, and other tests run beside this one
    folder = tmp_path_factory.mktemp("encoder")
    sizes = {"hidden_size": WIDTH, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
    randomize(BertModel(BertConfig(max_position_embeddings=64, **sizes)), 7).save_pretrained(folder)
    AutoTokenizer.from_pretrained(demo_folder(verify=False), model_max_length=64).save_pretrained(folder)
    return folder


@pytest.fixture
def save(encoder, tmp_path) -> Callable[..., Path]:
    """Saves a model of the encoder and the given modules, and returns its folder."""
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import Transformer

    def save(*modules: Any, first: Any = None, safe: bool = True, **arguments: Any) -> Path:
        chain = [first or Transformer(str(encoder)), *modules]
        model = SentenceTransformer(modules=chain, device="cpu", **arguments)
        model.save(str(tmp_path), create_model_card=False, safe_serialization=safe)
        return tmp_path

    return save


class Served:
    """A model as ``launch serve`` computes it, in this process."""

    def __init__(self, folder: Path, *, pack: bool = True, dtype: str = "fp32", task: str = "auto") -> None:
        import torch

        from launcher.worker.backends.eager import EagerBackend
        from launcher.worker.backends.static import StaticBackend

        self.model_info = resolve(ModelOptions(model=str(folder), task=task))  # type: ignore[arg-type]
        setup = Setup(self.model_info, dtype, "eager", (), pack=pack)  # type: ignore[arg-type]
        self._backend = StaticBackend(setup) if self.model_info.static else EagerBackend(setup)
        with torch.no_grad():
            self.loaded = self._backend.load(lambda stage, done, detail: None)

    def encode(self, texts: Sequence[str], size: int, prompt: str | None = None) -> np.ndarray:
        """The vectors of the texts, computed in batches of ``size``."""
        tokenizer = FrontTokenizer(self.model_info, text_characters=100_000)
        tokenized = asyncio.run(tokenizer.texts(texts, truncate=True, prompt=prompt))
        tokenizer.close()
        prompts = (tokenized.details or ItemDetails()).prompt_lengths or [0] * len(texts)
        items = [Item(ids, None, length) for ids, length in zip(tokenized.items, prompts, strict=True)]
        order = sorted(range(len(items)), key=lambda index: -len(items[index]))
        results = np.empty((len(items), self.model_info.result_width), np.float32)
        for start in range(0, len(order), size):
            part = order[start : start + size]
            results[part] = self._backend.run(ItemBatch.of([items[index] for index in part])).values
        return results


def reference(folder: Path, texts: Sequence[str] = TEXTS, **arguments: Any) -> np.ndarray:
    from sentence_transformers import SentenceTransformer

    model = SentenceTransformer(str(folder), device="cpu", local_files_only=True)
    return model.encode(list(texts), show_progress_bar=False, **arguments)


def difference(expected: np.ndarray, actual: np.ndarray) -> float:
    """The largest distance between two vectors, relative to the norm of the expected one."""
    assert expected.shape == actual.shape
    return float(np.max(np.linalg.norm(expected - actual, axis=1) / np.linalg.norm(expected, axis=1)))


def assert_exact(folder: Path, chosen: str | None = None, **arguments: Any) -> np.ndarray:
    """Compare single texts and batches, packed and padded, and return the reference.

    ``chosen`` is the prompt that ``arguments`` select."""
    expected = reference(folder, **arguments)
    for pack in (True, False):
        served = Served(folder, pack=pack)
        assert served.loaded.packed == (pack or served.model_info.static)
        for size in (1, 3, len(TEXTS)):
            assert difference(expected, served.encode(TEXTS, size, chosen)) <= TOLERANCE, (pack, size)
    return expected


# --- pooling


@pytest.mark.parametrize(
    "config",
    [
        {"word_embedding_dimension": WIDTH, "pooling_mode_cls_token": True, "pooling_mode_mean_tokens": False},
        {"word_embedding_dimension": WIDTH, "pooling_mode_mean_tokens": True, "pooling_mode_cls_token": True},
        {"word_embedding_dimension": WIDTH, "pooling_mode_lasttoken": True, "pooling_mode_weightedmean_tokens": True},
        {"word_embedding_dimension": WIDTH, "pooling_mode_mean_tokens": False, "pooling_mode_max_tokens": False},
        {"word_embedding_dimension": WIDTH},
        {"embedding_dimension": WIDTH, "pooling_mode": "max", "pooling_mode_mean_tokens": True},
        {"embedding_dimension": WIDTH, "pooling_mode": ["weightedmean"]},
    ],
)
def test_every_form_of_the_pooling_config_is_exact(save, config) -> None:
    from sentence_transformers.sentence_transformer.modules import Pooling

    folder = save(Pooling(WIDTH, "mean"))
    (folder / "1_Pooling/config.json").write_text(json.dumps(config))

    assert_exact(folder)


@pytest.mark.parametrize("prompt", ["query: ", "Represent the sentence for retrieval: ", "a " * 90])
@pytest.mark.parametrize("mode", [("cls", "mean", "mean_sqrt_len_tokens", "weightedmean", "lasttoken"), "max"])
def test_prompts_are_left_out_of_the_pooling_where_the_model_says_so(save, mode, prompt) -> None:
    from sentence_transformers.sentence_transformer.modules import Pooling

    folder = save(Pooling(WIDTH, mode, include_prompt=False), prompts={"it": prompt})
    expected = reference(folder, prompt_name="it")
    if not np.isfinite(expected).all():
        pytest.skip("nothing is left of a text, whose maximum is infinite in the library too")

    included = save(Pooling(WIDTH, mode), prompts={"it": prompt})
    assert difference(reference(included, prompt_name="it"), expected) > 0.01
    save(Pooling(WIDTH, mode, include_prompt=False), prompts={"it": prompt})
    for pack in (True, False):
        served = Served(folder, pack=pack)
        for size in (1, 3, len(TEXTS)):
            np.testing.assert_allclose(served.encode(TEXTS, size, prompt), expected, rtol=1e-4, atol=1e-5)


# --- prompts and settings


def test_the_default_prompt_is_prepended_and_can_be_replaced(save) -> None:
    from sentence_transformers.sentence_transformer.modules import Pooling

    prompts = {"query": "query: ", "passage": "passage: ", "none": ""}
    folder = save(Pooling(WIDTH, "mean"), prompts=prompts, default_prompt_name="query")

    default = assert_exact(folder)
    other = assert_exact(folder, "passage: ", prompt_name="passage")
    plain = assert_exact(folder, "", prompt_name="none")
    own = assert_exact(folder, "find: ", prompt="find: ")
    assert min(difference(one, two) for one, two in [(default, other), (default, plain), (other, own)]) > 0.01


@pytest.mark.parametrize("dimensions", [5, WIDTH, 100])
@pytest.mark.parametrize("normalize", [True, False])
def test_vectors_are_cut_after_they_are_normalized(save, normalize, dimensions) -> None:
    from sentence_transformers.sentence_transformer.modules import Normalize, Pooling

    last = [Normalize()] if normalize else []
    folder = save(Pooling(WIDTH, "mean"), *last, truncate_dim=dimensions)

    expected = assert_exact(folder)

    assert expected.shape[1] == min(WIDTH, dimensions)
    if normalize and dimensions < WIDTH:
        assert np.linalg.norm(expected, axis=1).max() < 0.99


# --- modules


def dense(width: int, out: int, seed: int = 1, **arguments: Any) -> Any:
    from sentence_transformers.sentence_transformer.modules import Dense

    return randomize(Dense(width, out, **arguments), seed)


def layer_norm(width: int) -> Any:
    from sentence_transformers.sentence_transformer.modules import LayerNorm

    return randomize(LayerNorm(width), 2)


@pytest.mark.parametrize(
    ("arguments", "out", "safe"),
    [
        ({}, 12, True),
        ({}, 80, False),
        ({"bias": False, "activation_function": None}, 12, True),
        ({"use_residual": True}, WIDTH, False),
        ({"use_residual": True}, 80, True),
    ],
)
def test_a_dense_module_is_exact(save, arguments, out, safe) -> None:
    from sentence_transformers.sentence_transformer.modules import Pooling

    expected = assert_exact(save(Pooling(WIDTH, "mean"), dense(WIDTH, out, **arguments), safe=safe))

    assert expected.shape[1] == out


def test_every_activation_of_a_dense_module_is_exact(save) -> None:
    from typing import get_args

    import torch
    from sentence_transformers.sentence_transformer.modules import Pooling

    from launcher.core.protocol.embedding_modules import Activation

    for name in get_args(Activation):
        folder = save(Pooling(WIDTH, "mean"), dense(WIDTH, 20, activation_function=getattr(torch.nn, name)()))
        expected = reference(folder)
        actual = Served(folder).encode(TEXTS, 3)
        np.testing.assert_allclose(actual, expected, rtol=1e-4, atol=2e-5, err_msg=name)


@pytest.mark.parametrize("case", ["sandwich", "normalize first", "twice pooled", "two poolings"])
def test_modules_in_any_number_and_order_are_exact(save, case) -> None:
    from sentence_transformers.sentence_transformer.modules import Normalize, Pooling

    tokens = {"module_input_name": "token_embeddings"}
    modules: dict[str, list[Any]] = {
        "sandwich": [Pooling(WIDTH, ("cls", "mean")), dense(64, 40), layer_norm(40), dense(40, 24, 3), Normalize()],
        "normalize first": [Normalize(), Pooling(WIDTH, "mean"), Normalize(), layer_norm(WIDTH), Normalize()],
        "twice pooled": [Pooling(WIDTH, "mean"), dense(WIDTH, 10), Pooling(WIDTH, "cls"), Normalize()],
        "two poolings": [Pooling(WIDTH, "cls"), dense(WIDTH, 16, **tokens), Pooling(16, "mean"), Normalize()],
    }

    assert_exact(save(*modules[case]))


def test_modules_are_computed_in_fp32_beside_an_encoder_in_bf16(save) -> None:
    from sentence_transformers.sentence_transformer.modules import Normalize, Pooling

    folder = save(Pooling(WIDTH, "mean"), dense(WIDTH, 16), Normalize())
    served = Served(folder, dtype="bf16")

    assert served.loaded.accuracy is not None
    assert served.loaded.accuracy > 0.99
    cosines = np.sum(reference(folder) * served.encode(TEXTS, 3), axis=1)
    assert cosines.min() > 0.99


def test_a_pickle_with_other_names_is_refused_by_the_worker(save) -> None:
    import torch
    from sentence_transformers.sentence_transformer.modules import Pooling

    from launcher.worker.interfaces import ModelError

    folder = save(Pooling(WIDTH, "mean"), dense(WIDTH, 11), safe=False)
    torch.save({"linear.weight": torch.zeros(11, WIDTH)}, folder / "2_Dense/pytorch_model.bin")

    with pytest.raises(ModelError, match=r'2_Dense do not fit its config: .*"linear\.bias"'):
        Served(folder)


# --- static embeddings


def static(width: int = 24) -> Any:
    from sentence_transformers.sentence_transformer.modules import StaticEmbedding
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(demo_folder(verify=False) / "tokenizer.json"))
    tokenizer.no_truncation()
    return randomize(StaticEmbedding(tokenizer, embedding_dim=width), 5)


def test_static_embeddings_get_no_special_tokens_and_no_limit(save) -> None:
    folder = save(first=static())
    served = Served(folder)

    assert served.model_info.max_length == 32_768
    assert any("no limit" in note for note in served.model_info.notes)
    long = ("It rained for days. " * 900,)
    assert difference(reference(folder, long), served.encode(long, 1)) <= TOLERANCE


def test_a_limit_in_the_tokenizer_of_static_embeddings_is_applied(save) -> None:
    folder = save(first=static())
    settings = json.loads((folder / "tokenizer.json").read_text())
    settings["truncation"] = {"max_length": 9, "strategy": "LongestFirst", "stride": 0, "direction": "Right"}
    (folder / "tokenizer.json").write_text(json.dumps(settings))

    assert_exact(folder)


def test_static_embeddings_in_bf16_are_checked_against_fp32(save) -> None:
    served = Served(save(first=static()), dtype="bf16")

    assert served.loaded.accuracy is not None
    assert 0.999 < served.loaded.accuracy < 1


def test_a_text_without_tokens_is_refused_by_name(save) -> None:
    served = Served(save(first=static()))

    with pytest.raises(Exception, match="has no tokens for this model"):
        served.encode(["   "], 1)


# --- what the library loads and other loaders do not


def test_a_folder_of_transformers_alone_has_the_mean_without_normalization(encoder) -> None:
    assert_exact(encoder)


@pytest.mark.parametrize("stated", [{"max_seq_length": 20}, {"processor_kwargs": {"model_max_length": 12}}])
def test_limits_in_the_config_of_the_transformer_are_applied(save, stated) -> None:
    from sentence_transformers.sentence_transformer.modules import Pooling

    folder = save(Pooling(WIDTH, "mean"))
    before = reference(folder)
    (folder / "sentence_bert_config.json").write_text(json.dumps({"max_seq_length": 30, **stated}))

    assert difference(before, assert_exact(folder)) > 0.01


@pytest.mark.parametrize(
    "stated",
    [
        {"processor_kwargs": {"do_lower_case": False}},
        {"tokenizer_args": {"do_lower_case": False, "strip_accents": False}, "processor_kwargs": {}},
        {"processor_kwargs": {"do_lower_case": False}, "do_lower_case": True, "max_seq_length": 40},
    ],
)
def test_the_tokenizer_is_built_with_the_arguments_and_the_case_of_the_model(
    save, stated, tmp_path, monkeypatch
) -> None:
    from sentence_transformers.sentence_transformer.modules import Pooling

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    folder = save(Pooling(WIDTH, "mean"))
    before = reference(folder)
    (folder / "sentence_bert_config.json").write_text(json.dumps(stated))

    expected = assert_exact(folder)

    assert (difference(before, expected) > 0.01) == ("do_lower_case" not in stated or stated["max_seq_length"] < 64)


@pytest.mark.parametrize("name", ["BertForMaskedLM", "BertModel"])
def test_other_heads_have_the_mean_too(encoder, tmp_path, name) -> None:
    shutil.copytree(encoder, tmp_path / "model")
    config = json.loads((encoder / "config.json").read_text())
    (tmp_path / "model/config.json").write_text(json.dumps({**config, "architectures": [name]}))

    expected = reference(tmp_path / "model")

    assert difference(expected, Served(tmp_path / "model", task="embed").encode(TEXTS, 2)) <= TOLERANCE


def test_a_decoder_without_files_of_the_library_has_the_last_token(save, tmp_path) -> None:
    from transformers import AutoTokenizer, Qwen2Config, Qwen2ForCausalLM

    sizes = {"hidden_size": WIDTH, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2}
    config = Qwen2Config(intermediate_size=64, max_position_embeddings=64, vocab_size=30600, **sizes)
    randomize(Qwen2ForCausalLM(config), 7).save_pretrained(tmp_path)
    AutoTokenizer.from_pretrained(demo_folder(verify=False), model_max_length=64).save_pretrained(tmp_path)

    expected = reference(tmp_path)

    served = Served(tmp_path, task="embed")
    assert served.model_info.pooling == "lasttoken"
    assert difference(expected, served.encode(TEXTS, 2)) <= TOLERANCE


@pytest.mark.parametrize("task", ["classify", "tag"])
def test_static_embeddings_have_no_other_task(save, task) -> None:
    folder = save(first=static())

    with pytest.raises(UsageError, match="this is a StaticEmbedding; use --task embed"):
        resolve(ModelOptions(model=str(folder), task=task))


def test_the_memory_of_modules_is_counted(save) -> None:
    from sentence_transformers.sentence_transformer.modules import Pooling

    plain: ModelInfo = resolve(ModelOptions(model=str(save(Pooling(WIDTH, "mean")))))
    with_dense = resolve(ModelOptions(model=str(save(Pooling(WIDTH, "mean"), dense(WIDTH, 80)))))

    assert with_dense.weight_bytes - plain.weight_bytes == (WIDTH * 80 + 80) * 4
