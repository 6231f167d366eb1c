"""Families of encoders: each gives the results of transformers, alone and in any batch, or is refused.

The models are built here, small and with random weights large enough for a wrong mask or token type to show. The
reference is transformers with its own tokenizer, one text at a time. Models that need many lengths, such as those of
attention windows and blocks, get texts around these lengths; a letter is a token.
"""

from __future__ import annotations

import json
import random
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from launcher.core.protocol.messages import Setup
from launcher.errors import UsageError
from launcher.host.model.architectures import POSITIONS_AFTER_PADDING
from launcher.host.model.encoders import ENCODERS, REFUSED, TEXT_TOWERS
from launcher.host.model.resolve import resolve
from launcher.options import ModelOptions
from launcher.worker.interfaces import Item, ItemBatch

LETTERS = "abcdefghijklmnopqrstuvwxyzäñøßéλжщקعकあ漢字한🙂👍🏽 .,!-0123456789"
LENGTHS = (1, 2, 3, 7, 8, 9, 15, 16, 17, 31, 33, 57, 64, 65, 100, 126, 140)  # the last one is truncated
BOUND = 1e-5

# Sizes under the names that each config has for them.
SIZES: Mapping[str, Mapping[str, Any]] = {
    "distilbert": {"dim": 64, "n_layers": 2, "n_heads": 4, "hidden_dim": 128},
    "xlnet": {"d_model": 64, "n_layer": 2, "n_head": 4, "d_inner": 128},
}  # fmt: skip
PLAIN: Mapping[str, Any] = {
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "hidden_size": 64,
    "intermediate_size": 128,
    "embedding_size": 64,
}
EXTRA: Mapping[str, Mapping[str, Any]] = {
    "big_bird": {"block_size": 8, "num_random_blocks": 1, "attention_type": "original_full"},
    "eurobert": {"head_dim": 16, "num_key_value_heads": 4},
    "longformer": {"attention_window": [16, 8]},
    "luke": {"entity_vocab_size": 20, "entity_emb_size": 16},
    "nystromformer": {"num_landmarks": 8, "segment_means_seq_len": 8},
    "openai_privacy_filter": {"head_dim": 16, "num_key_value_heads": 2, "sliding_window": 8, "num_local_experts": 4},
    "ultrabert": {"sliding_window": 8, "layer_types": ["sliding_attention", "full_attention"]},
    "modernbert": {"local_attention": 16, "global_attn_every_n_layers": 2},
    "xmod": {"languages": ["en_XX", "de_DE"], "default_language": "de_DE"},
}
# The special tokens at the end, where the tokenizer of the family sets the token type 2 for one of them.
LAST_TYPED = frozenset({"xlnet"})


def save_tokenizer(folder: Path, kind: str) -> None:
    """A tokenizer whose tokens are single characters, with special tokens as in the family."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors

    special = {"<pad>": 1, "<s>": 2, "</s>": 3, "<unk>": 4, "<mask>": 5}
    letters = {letter: 6 + place for place, letter in enumerate(dict.fromkeys(LETTERS))}
    tokenizer = Tokenizer(models.WordLevel({"<unused>": 0, **special, **letters}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    single = "<s> $A </s>"
    if kind in LAST_TYPED:
        single = "$A </s> <s>:2"
    tokenizer.post_processor = processors.TemplateProcessing(single=single, special_tokens=[("<s>", 2), ("</s>", 3)])
    tokenizer.add_special_tokens(list(special))
    tokenizer.save(str(folder / "tokenizer.json"))
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "pad_token": "<pad>", "cls_token": "<s>",
                "sep_token": "</s>", "unk_token": "<unk>", "mask_token": "<mask>", "model_max_length": 128,
                "model_input_names": ["input_ids", "token_type_ids", "attention_mask"]}  # fmt: skip
    if kind in {"roberta", "xlm-roberta", "distilbert", "modernbert"}:
        settings["model_input_names"] = ["input_ids", "attention_mask"]
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))


def save_model(folder: Path, kind: str, auto_class: str = "AutoModel", **config: Any) -> None:
    """A model of the given type with random weights, and its tokenizer."""
    import torch
    import transformers

    torch.manual_seed(0)
    sizes = {"vocab_size": 100, "max_position_embeddings": 132, "pad_token_id": 1, "bos_token_id": 2,
             "eos_token_id": 3, "cls_token_id": 2, "sep_token_id": 3, "initializer_range": 0.3,
             **SIZES.get(kind, PLAIN), **EXTRA.get(kind, {}), **config}  # fmt: skip
    if kind == "xlnet":
        del sizes["max_position_embeddings"]
    made = transformers.AutoConfig.for_model(kind, **sizes)
    model = getattr(transformers, auto_class).from_config(made)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.dim() > 1:  # the row of the padding token, too, which some checkpoints have trained
                parameter.normal_(0, 0.25)
            elif "bias" in name:
                parameter.normal_(0, 0.1)
    folder.mkdir(parents=True, exist_ok=True)
    model.save_pretrained(folder)
    save_tokenizer(folder, kind)


def texts(lengths: Sequence[int] = LENGTHS) -> list[str]:
    """Random texts with these numbers of letters."""
    chance = random.Random(7)
    return ["".join(chance.choice(LETTERS) for _ in range(length)) for length in lengths]


def expected_rows(folder: Path, auto_class: str, inputs: Sequence[str], **arguments: Any) -> list[np.ndarray]:
    """The rows of each text alone, by transformers."""
    import torch
    import transformers

    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    model = getattr(transformers, auto_class).from_pretrained(folder, **arguments).eval()
    rows = []
    for text in inputs:
        encoded = tokenizer(text, truncation=True, return_tensors="pt")
        with torch.no_grad():
            output = model(**{key: value for key, value in encoded.items() if accepts(model, key)})
        if auto_class == "AutoModel":
            hidden = output[0] if isinstance(output, tuple) else output.last_hidden_state
            rows.append(hidden.mean(1).numpy())
        else:
            rows.append(torch.softmax(output.logits, -1).reshape(-1, output.logits.shape[-1]).numpy())
    return rows


def accepts(model: Any, key: str) -> bool:
    import inspect

    parameters = inspect.signature(model.forward).parameters
    return key in parameters or any(each.kind is each.VAR_KEYWORD for each in parameters.values())


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """Small models are fastest in one thread."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


class Served:
    """A model as the worker computes it, in this process."""

    def __init__(self, folder: Path, **options: Any) -> None:
        from launcher.worker.backends.eager import EagerBackend

        self.model_info = resolve(ModelOptions(model=str(folder), **options))
        trust = options.get("trust_remote_code", False)

        class Plain(EagerBackend):
            def optimize(self, run: object, unchanged: object) -> tuple[str, ...]:
                return ()  # tests/models has the optimizations

        self.backend = Plain(Setup(self.model_info, "fp32", "eager", (), trust_remote_code=trust))
        self.loaded = self.backend.load(lambda stage, done, detail: None)

    def items(self, inputs: Sequence[str]) -> list[Item]:
        from tokenizers import Tokenizer

        tokenizer = Tokenizer.from_file(self.model_info.tokenizer_path)
        tokenizer.no_padding()
        tokenizer.enable_truncation(self.model_info.max_length)
        items = []
        for encoding in tokenizer.encode_batch(list(inputs)):
            types = np.array(encoding.type_ids, dtype=np.uint8) if any(encoding.type_ids) else None
            items.append(Item(np.array(encoding.ids, dtype=np.int32), types))
        return items

    def rows(self, inputs: Sequence[str], size: int) -> list[np.ndarray]:
        """The rows of each text, in batches of this many."""
        items = self.items(inputs)
        rows: dict[int, np.ndarray] = {}
        for start in range(0, len(items), size):
            order = sorted(range(start, min(start + size, len(items))), key=lambda index: -len(items[index]))
            values = self.backend.run(ItemBatch.of([items[index] for index in order])).values
            counts = [len(items[index]) if self.model_info.rows == "token" else 1 for index in order]
            rows.update(zip(order, np.split(values, np.cumsum(counts)[:-1]), strict=True))
        return [rows[index] for index in range(len(items))]


def difference(expected: Sequence[np.ndarray], found: Sequence[np.ndarray]) -> float:
    return max(
        float(np.linalg.norm(one - other) / np.linalg.norm(one)) for one, other in zip(expected, found, strict=True)
    )


def assert_equal(expected: Sequence[np.ndarray], served: Served, inputs: Sequence[str]) -> None:
    assert min(difference(expected[:1], [rows]) for rows in expected[1:] if rows.shape == expected[0].shape) > 1e-3
    for size in (1, 3, len(inputs)):
        assert difference(expected, served.rows(inputs, size)) <= BOUND


# The others are in tests/models.
KINDS = (*(kind for kind, batching in ENCODERS.items() if batching != "packed"), "bert-generation",
         "jina_embeddings_v3", "ultrabert", "xmod")  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
def test_an_embedder_gives_the_vectors_of_transformers_alone_and_in_any_batch(kind, tmp_path) -> None:
    save_model(tmp_path, kind)
    served = Served(tmp_path, task="embed", max_length=128 if kind == "xlnet" else None)

    assert_equal(expected_rows(tmp_path, "AutoModel", texts()), served, texts())


@pytest.mark.parametrize("kind", ["convbert", "longformer", "xlnet"])
@pytest.mark.parametrize(("task", "auto_class"), [
    ("classify", "AutoModelForSequenceClassification"), ("tag", "AutoModelForTokenClassification"),
])  # fmt: skip
def test_a_head_gives_the_scores_of_transformers_alone_and_in_any_batch(kind, task, auto_class, tmp_path) -> None:
    """The heads read other tokens: Longformer's gives the first token global attention, XLNet's reads the last one."""
    save_model(tmp_path, kind, auto_class, num_labels=3)
    served = Served(tmp_path, max_length=128 if kind == "xlnet" else None)
    expected = expected_rows(tmp_path, auto_class, texts())

    assert served.model_info.task == task
    assert max(float(rows.max()) for rows in expected) - min(float(rows.max()) for rows in expected) > 1e-2
    for size in (1, 3, len(LENGTHS)):
        assert difference(expected, served.rows(texts(), size)) <= BOUND


# --- models with their own code

OWN_CONFIG = """
from transformers import PretrainedConfig


class NearConfig(PretrainedConfig):
    model_type = "near_test"

    def __init__(self, d_model=32, n_layer=2, vocab_size=100, max_position_embeddings=140, **options):
        self.d_model, self.n_layer, self.vocab_size = d_model, n_layer, vocab_size
        self.max_position_embeddings = max_position_embeddings
        super().__init__(**options)
"""
OWN_MODEL = """
import torch
from transformers import PreTrainedModel

from .configuration_near import NearConfig


class NearModel(PreTrainedModel):
    config_class = NearConfig
    base_model_prefix = "near"

    def __init__(self, config):
        super().__init__(config)
        self.words = torch.nn.Embedding(config.vocab_size, config.d_model)
        self.types = torch.nn.Embedding(2, config.d_model)
        size = config.d_model
        self.layers = torch.nn.ModuleList(torch.nn.Conv1d(size, size, 3, padding=1) for _ in range(config.n_layer))
        self.post_init()

    def forward(self, input_ids, ARGUMENTS):
        hidden = self.words(input_ids)
        USE
        for layer in self.layers:
            hidden = torch.tanh(layer(hidden.transpose(1, 2)).transpose(1, 2))
        return (hidden,)
"""
# Arguments of a forward method, and what it does with them.
FORWARDS = {
    "no_mask": ("unused=None", "pass"),
    "mask_required": ("attention_mask", "hidden = hidden * attention_mask.sum(1, keepdim=True)[:, :, None] ** -0.5"),
    "types": ("attention_mask, token_type_ids=None",
              "hidden = hidden if token_type_ids is None else hidden + self.types(token_type_ids)"),
    "keywords": ("**options", "hidden = hidden + options['attention_mask'][:, :, None]"),
}  # fmt: skip


def save_own_code(folder: Path, forward: str, **config: Any) -> None:
    """A model whose code is in its folder: convolutions, which read padding, with sizes under other names."""
    import torch
    import transformers

    arguments, use = FORWARDS[forward]
    save_tokenizer(folder, "near_test")
    # Each model has a class name of its own, because transformers caches the modules of folders by name.
    (folder / "configuration_near.py").write_text(OWN_CONFIG)
    (folder / "modeling_near.py").write_text(OWN_MODEL.replace("ARGUMENTS", arguments).replace("USE", use))
    auto_map = {"AutoConfig": "configuration_near.NearConfig", "AutoModel": "modeling_near.NearModel"}
    (folder / "config.json").write_text(json.dumps({
        "model_type": "near_test", "architectures": ["NearModel"], "auto_map": auto_map, "d_model": 32, "n_layer": 2,
        "vocab_size": 100, "max_position_embeddings": 140, **config,
    }))  # fmt: skip
    torch.manual_seed(0)
    made = transformers.AutoConfig.from_pretrained(folder, trust_remote_code=True)
    model = transformers.AutoModel.from_config(made, trust_remote_code=True)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0, 0.4)
    import safetensors.torch

    safetensors.torch.save_file(model.state_dict(), folder / "model.safetensors", metadata={"format": "pt"})


@pytest.mark.parametrize("forward", sorted(FORWARDS))
def test_code_in_the_folder_gives_its_own_vectors_alone_and_in_any_batch(forward, tmp_path) -> None:
    folder = tmp_path / f"model_{forward}"
    folder.mkdir()
    save_own_code(folder, forward)
    served = Served(folder, trust_remote_code=True)
    expected = expected_rows(folder, "AutoModel", texts(), trust_remote_code=True)

    assert (served.model_info.hidden_size, served.model_info.layers) == (32, 2)
    assert_equal(expected, served, texts())


def test_code_in_the_folder_needs_trust_remote_code(tmp_path) -> None:
    save_own_code(tmp_path, "keywords")

    with pytest.raises(UsageError, match=r"near_test model .* runs only with --trust-remote-code"):
        resolve(ModelOptions(model=str(tmp_path)))


def test_code_in_the_folder_without_a_class_for_the_task_is_refused(tmp_path) -> None:
    save_own_code(tmp_path, "keywords", architectures=["NearForSequenceClassification"])

    with pytest.raises(
        UsageError, match=r"auto_map .* names no AutoModelForSequenceClassification, which --task classify needs"
    ):
        resolve(ModelOptions(model=str(tmp_path), trust_remote_code=True))


def test_the_models_own_tokenizer_class_is_refused(tmp_path) -> None:
    save_own_code(tmp_path, "keywords")
    path = tmp_path / "tokenizer_config.json"
    settings = json.loads(path.read_text())
    code = {"auto_map": {"AutoTokenizer": [None, "tokenization_near.NearTokenizer"]}}
    path.write_text(json.dumps({**settings, **code, "tokenizer_class": "NearTokenizer"}))

    with pytest.raises(UsageError, match="tokenizer"):
        resolve(ModelOptions(model=str(tmp_path), trust_remote_code=True))


# --- refusals


def save_config(folder: Path, **config: Any) -> str:
    folder.mkdir(exist_ok=True)
    save_tokenizer(folder, "bert")
    plain = {"vocab_size": 100, "max_position_embeddings": 1000, "hidden_size": 64, "num_hidden_layers": 2}
    (folder / "config.json").write_text(json.dumps({**plain, **config}))
    import safetensors.numpy

    safetensors.numpy.save_file({"weight": np.zeros(1, np.float32)}, folder / "model.safetensors")
    path = folder / "tokenizer_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "model_max_length": 1000}))
    return str(folder)


@pytest.mark.parametrize("kind", sorted(REFUSED))
def test_a_refused_encoder_is_named_with_the_cause(kind, tmp_path) -> None:
    with pytest.raises(UsageError, match=f"config.json has the model_type {kind} .* not supported: ") as raised:
        resolve(ModelOptions(model=save_config(tmp_path, model_type=kind)))
    assert REFUSED[kind] in str(raised.value)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"model_type": "big_bird"}, "attention_type to 'block_sparse'.* more than 704 tokens.*set --max-length 704"),
        ({"model_type": "xmod", "languages": ["en_XX", "de_DE"]}, "default_language to None.* one of en_XX, de_DE"),
        ({"model_type": "xmod", "languages": ["en_XX"], "default_language": "fr"}, "default_language to 'fr'"),
        ({"model_type": "yoso", "use_expectation": False}, "use_expectation to False.* must be true"),
        ({"model_type": "nomic_bert", "hidden_size": 768, "n_embd": 384}, "n_embd to 384.*computes? with 768"),
        ({"model_type": "nomic_bert", "rotary_emb_fraction": 0.5}, "rotary_emb_fraction to 0.5.* must be 1.0"),
        ({"model_type": "nomic_bert", "moe_every_n_layers": 2}, "moe_every_n_layers to 2"),
    ],
)
def test_a_setting_that_changes_results_is_refused_with_its_value(config, message, tmp_path) -> None:
    with pytest.raises(UsageError, match=message):
        resolve(ModelOptions(model=save_config(tmp_path, **config)))


@pytest.mark.parametrize("kind", sorted(POSITIONS_AFTER_PADDING & {"longformer", "luke", "xlm-roberta", "xmod"}))
def test_positions_that_start_after_the_padding_id_are_subtracted_from_the_limit(kind, tmp_path) -> None:
    languages = {"languages": ["en_XX"], "default_language": "en_XX"}
    folder = save_config(tmp_path, model_type=kind, pad_token_id=1, **(languages if kind == "xmod" else {}))

    assert resolve(ModelOptions(model=folder)).max_length == 998


def test_a_big_bird_is_served_up_to_the_length_of_its_full_attention(tmp_path) -> None:
    folder = save_config(tmp_path, model_type="big_bird")

    assert resolve(ModelOptions(model=folder, max_length=704)).max_length == 704


def test_a_nomic_bert_with_the_keys_of_its_former_code_has_the_sizes_of_transformers(tmp_path) -> None:
    former = {"n_embd": 768, "n_layer": 12, "n_head": 12, "n_inner": 3072, "n_positions": 8192,
              "activation_function": "swiglu", "rotary_emb_base": 1000, "rotary_emb_fraction": 1.0}  # fmt: skip
    folder = Path(save_config(tmp_path, model_type="nomic_bert"))
    (folder / "config.json").write_text(json.dumps({"model_type": "nomic_bert", "vocab_size": 100, **former}))
    from transformers import AutoConfig

    made = AutoConfig.from_pretrained(folder)
    model_info = resolve(ModelOptions(model=str(folder)))

    assert (model_info.hidden_size, model_info.layers) == (made.hidden_size, made.num_hidden_layers) == (768, 12)
    assert model_info.max_length == 1000 < made.max_position_embeddings


# --- models of texts and images

TEXT_PART: Mapping[str, Any] = {
    "vocab_size": 100, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64,
    "max_position_embeddings": 40, "projection_dim": 24, "pad_token_id": 1, "bos_token_id": 2, "eos_token_id": 3,
}  # fmt: skip
IMAGE_PART: Mapping[str, Any] = {
    "hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 64, "image_size": 32,
    "patch_size": 16, "projection_dim": 24,
}  # fmt: skip


def save_text_and_image_model(folder: Path, kind: str, **text_part: Any) -> None:
    import torch
    import transformers

    torch.manual_seed(0)
    parts = {"text_config": {**TEXT_PART, **text_part}, "vision_config": dict(IMAGE_PART)}
    model = transformers.AutoModel.from_config(transformers.AutoConfig.for_model(kind, **parts, projection_dim=24))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0, 0.3)
    model.save_pretrained(folder)
    save_tokenizer(folder, kind)
    path = folder / "tokenizer_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "model_max_length": 38}))


@pytest.mark.parametrize("kind", sorted(TEXT_TOWERS))
def test_a_model_of_texts_and_images_gives_its_text_features(kind, tmp_path) -> None:
    import torch
    import transformers

    # In older configs of CLIP, which have this id, the largest id of a text takes the place of its end.
    save_text_and_image_model(tmp_path, kind, **({"eos_token_id": 2} if kind == "clip" else {}))
    served = Served(tmp_path)
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path)
    model = transformers.AutoModel.from_pretrained(tmp_path).eval()
    expected = []
    for text in texts():
        encoded = tokenizer(text, truncation=True, return_tensors="pt")
        with torch.no_grad():
            features = model.get_text_features(encoded.input_ids, attention_mask=encoded.attention_mask)
        expected.append(features.pooler_output.numpy())

    assert (served.model_info.task, served.model_info.result_width) == ("embed", 24)
    assert_equal(expected, served, texts())


@pytest.mark.parametrize("saved_as", ["Transformer", "CLIPModel"])
def test_a_clip_saved_by_sentence_transformers_gives_its_vectors(saved_as, tmp_path) -> None:
    from sentence_transformers import SentenceTransformer
    from transformers import CLIPImageProcessor

    plain, folder = tmp_path / "plain", tmp_path / "saved"
    save_text_and_image_model(plain, "clip")
    CLIPImageProcessor(size=32, crop_size=32).save_pretrained(plain)
    SentenceTransformer(str(plain)).save(str(folder))
    if saved_as == "CLIPModel":
        modules = [{"idx": 0, "name": "0", "path": "", "type": "sentence_transformers.models.CLIPModel"}]
        (folder / "modules.json").write_text(json.dumps(modules))
        (folder / "sentence_bert_config.json").unlink()
    reference = SentenceTransformer(str(folder))
    expected = [reference.encode([text]) for text in texts()]

    assert_equal(expected, Served(folder), texts())


def test_other_outputs_of_a_clip_are_refused(tmp_path) -> None:
    save_text_and_image_model(tmp_path, "clip")
    modules = [{"idx": 0, "name": "0", "path": "", "type": "sentence_transformers.models.Transformer"}]
    (tmp_path / "modules.json").write_text(json.dumps(modules))
    with pytest.raises(UsageError, match="module_output_name must be 'sentence_embedding'"):
        resolve(ModelOptions(model=str(tmp_path)))

    settings = {"module_output_name": "sentence_embedding", "modality_config": {
        "text": {"method": "get_text_features", "method_output_name": "last_hidden_state"}}}  # fmt: skip
    (tmp_path / "sentence_bert_config.json").write_text(json.dumps(settings))
    with pytest.raises(UsageError, match=r"sets modality_config to .*; text must be"):
        resolve(ModelOptions(model=str(tmp_path)))
