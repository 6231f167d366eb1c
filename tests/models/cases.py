"""The table of models: families and tasks, how each is built, and what the library computes for it.

To add a model, write a builder in ``families`` (or use one with other arguments), a function in ``references`` if its
task has none, and a ``ModelCase`` here; then run ./scripts/docs, which writes docs/models.md from this table. A model
that is refused is a ``RefusedCase``. Nothing may be built or imported from transformers when this module is imported.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Literal

from launcher.host.model.encoders import REFUSED as NOT_SUPPORTED
from tests.models import families, references, sentence_models, vocabularies
from tests.models.references import Results
from tests.models.texts import MASKED, PAIRS, PREMISES_AND_HYPOTHESES, TEXTS

Build = Callable[[Path], None]
Layout = Literal["packed", "padded", "equal lengths"]


@dataclass(frozen=True, slots=True)
class ModelCase:
    """A model whose results are those of the library.

    ``family`` is the ``model_type`` of its config.json, ``variant`` what distinguishes models of the same family and
    task. ``build`` writes the folder, ``reference`` computes the expected rows of each input. ``layout`` is how its
    items are computed by default; padded results are always compared too. ``bound`` is the largest relative difference
    in fp32 that is allowed, a power of ten of at most 1e-5. ``options`` are those of the command line. ``bf16`` and
    ``int8`` are parts of the messages with which these dtypes are refused; empty if they are not. ``slow`` cases are
    not part of scripts/check. ``as_vector``: the rows of an input are compared as one vector, because single rows are
    logits that can all be near 0.
    """

    family: str
    task: str
    build: Build
    reference: Callable[[Path, Sequence[Any]], Results]
    layout: Layout = "packed"
    bound: float = 1e-5
    variant: str = ""
    options: Mapping[str, Any] = field(default_factory=dict)
    inputs: Sequence[Any] = TEXTS
    bf16: str = ""
    int8: str = ""
    slow: bool = False
    as_vector: bool = False

    @property
    def name(self) -> str:
        """The name of the case in tests; unique."""
        return "-".join(filter(None, (self.family, self.task, self.variant.replace(" ", "_"))))


@dataclass(frozen=True, slots=True)
class RefusedCase:
    """A model that is refused at start. ``reason`` is for the document, ``message`` a part of the error message."""

    family: str
    task: str
    build: Build
    reason: str
    message: str
    variant: str = ""
    options: Mapping[str, Any] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """The name of the case in tests; unique."""
        return "-".join(filter(None, (self.family, self.task, self.variant.replace(" ", "_"))))


# The tokenizer of each family, in the class that its real models use; the others have that of BERT.
TOKENIZERS: Mapping[str, Callable[[], Any]] = {
    "albert": vocabularies.albert,
    "bert-generation": vocabularies.unigram_as_it_is,
    "big_bird": vocabularies.unigram_as_it_is,
    "camembert": vocabularies.camembert,
    "data2vec-text": vocabularies.roberta,
    "deberta": vocabularies.deberta,
    "deberta-v2": vocabularies.deberta_v2,
    "eurobert": vocabularies.modernbert,
    "fnet": vocabularies.unigram_as_it_is,
    "gte": vocabularies.xlm_roberta,
    "ibert": vocabularies.roberta,
    "jina_embeddings_v3": vocabularies.xlm_roberta,
    "longformer": vocabularies.roberta,
    "luke": vocabularies.modernbert,
    "modernbert": vocabularies.modernbert,
    "mpnet": vocabularies.mpnet,
    "openai_privacy_filter": vocabularies.modernbert,
    "rembert": vocabularies.rembert,
    "roberta": vocabularies.roberta,
    "roberta-prelayernorm": vocabularies.roberta,
    "ultrabert": vocabularies.modernbert,
    "xlm-roberta": vocabularies.xlm_roberta,
    "xlm-roberta-xl": vocabularies.unigram_as_it_is,
    "xlnet": vocabularies.xlnet,
    "xmod": vocabularies.xlm_roberta,
    "yoso": vocabularies.albert,
    **dict.fromkeys(("gemma", "gemma2", "gemma3_text", "llama", "mistral", "qwen2", "qwen3"), vocabularies.decoder),
    **dict.fromkeys(("mt5", "t5", "umt5"), vocabularies.t5),
}
# The launcher converts the tokenizers of these families in a process of its own, which takes seconds.
CONVERTED = (
    "albert", "bert-generation", "big_bird", "camembert", "convbert", "deberta", "deberta-v2", "fnet", "gte",
    "jina_embeddings_v3", "luke", "nystromformer", "openai_privacy_filter", "rembert", "roformer", "splinter",
    "ultrabert", "xlm-roberta", "xlnet", "xmod", "yoso",
)  # fmt: skip

# Encoders of transformers. They are padded where their attention cannot be replaced.
PACKED_ENCODERS = (
    "albert", "bert", "bert-generation", "camembert", "data2vec-text", "distilbert", "electra", "ernie", "eurobert",
    "gte", "jina_embeddings_v3", "modernbert", "nomic_bert", "roberta", "roberta-prelayernorm", "ultrabert",
    "xlm-roberta", "xlm-roberta-xl", "xmod",
)  # fmt: skip
PADDED_ENCODERS = (
    "big_bird", "deberta", "deberta-v2", "ibert", "longformer", "luke", "megatron-bert", "mobilebert", "mpnet",
    "openai_privacy_filter", "rembert", "roformer", "splinter", "squeezebert",
)  # fmt: skip
# Encoders of which only items of equal length are computed together, because padding changes their results.
EQUAL_LENGTHS = ("convbert", "fnet", "nystromformer", "xlnet", "yoso")
DECODERS = ("gemma", "gemma2", "gemma3_text", "llama", "mistral", "qwen2", "qwen3")
ENCODERS_OF_SEQ2SEQ = ("mt5", "t5", "umt5")
# Families without these heads in transformers.
WITHOUT_CLASSIFIER = ("bert-generation", "openai_privacy_filter", "splinter")
WITHOUT_TAGGER = ("bert-generation", "splinter")
# Families with operations that torch does not have in bf16.
NO_BF16 = ("fnet",)
# Families without nn.Linear, which --dtype int8 replaces, except in their heads.
NO_LINEAR = ("ibert", "squeezebert")
# Their differences in fp32 are larger than 1e-6, from rounding alone: SqueezeBERT adds a large number to what it masks.
MORE_ROUNDING = ("eurobert", "modernbert", "squeezebert", "xlnet")


def _encoder(family: str) -> list[ModelCase]:
    layout: Layout = "packed" if family in PACKED_ENCODERS else "padded"
    layout = "equal lengths" if family in EQUAL_LENGTHS else layout
    bound = 1e-5 if family in MORE_ROUNDING else 1e-6
    int8 = "the model has no linear layers" if family in NO_LINEAR else ""
    build = _build(families.save_embedder, family)
    bf16 = "cannot be computed in bf16" if family in NO_BF16 else ""
    case = partial(ModelCase, family, bf16=bf16, slow=family in CONVERTED)
    cases = [case("embed", build, references.embed, layout, bound, int8=int8)]
    if family not in WITHOUT_CLASSIFIER:
        build = _build(families.save_classifier, family)
        cases.append(case("classify", build, references.classify, layout, bound))
    if family not in WITHOUT_TAGGER:
        cases.append(case("tag", _build(families.save_tagger, family), references.tag, layout))
    return cases


def _outputs(family: str, mask: str) -> list[ModelCase]:
    """The tasks other than one vector, or one list of scores, for each text; ``mask`` is the family's mask token."""
    layout: Layout = "packed" if family in PACKED_ENCODERS else "padded"
    slow = family in CONVERTED
    masked = tuple(text.replace("[MASK]", mask) for text in MASKED)
    return [
        ModelCase(family, "sparse-embed", _build(families.save_splade, family), references.sparse_embed, layout,
                  slow=slow),
        ModelCase(family, "token-embed", _build(families.save_embedder, family), references.token_embed, layout,
                  options={"task": "token-embed"}, slow=slow),
        ModelCase(family, "fill-mask", _build(families.save_transformer, family, auto="AutoModelForMaskedLM"),
                  references.fill_mask, layout, inputs=masked, slow=slow),
        ModelCase(family, "question-answering",
                  _build(families.save_transformer, family, auto="AutoModelForQuestionAnswering"),
                  references.question_answering, layout, inputs=PAIRS, slow=slow, as_vector=True),
    ]  # fmt: skip


MASK_TOKENS: Mapping[str, str] = {
    "bert": "[MASK]", "distilbert": "[MASK]", "electra": "[MASK]", "modernbert": "<mask>", "roberta": "<mask>",
    "albert": "[MASK]", "deberta-v2": "[MASK]", "xlm-roberta": "<mask>",
}  # fmt: skip


def _build(save: Callable[..., None], family: str, **settings: Any) -> Build:
    """``save`` for a model of this family, with its tokenizer and these settings."""
    return partial(save, family=family, tokenizer=TOKENIZERS.get(family, vocabularies.bert), **settings)


def _build_routes(folder: Path) -> None:
    """Static embeddings for queries, an encoder for documents."""
    sentence_models.save_routes(
        folder,
        query=lambda: [sentence_models.static(families.HIDDEN)],
        document=lambda: [sentence_models.transformer("bert", vocabularies.bert), sentence_models.pooling("mean")],
    )


def _variants() -> list[ModelCase]:
    """Models of the same families with other files or settings."""
    plain = partial(_build, families.save_transformer, auto="AutoModel")
    classifier = partial(_build, families.save_classifier)
    return [
        *(
            ModelCase(family, "embed", plain(family), references.embed, bound=1e-6, variant="transformers files only")
            for family in ("bert", "roberta")
        ),
        ModelCase("deberta-v2", "embed", _build(families.save_embedder, "deberta-v2", conv_kernel_size=3),
                  references.embed, "padded", variant="with a convolution", slow=True),
        ModelCase("bert", "classify", classifier("bert", labels=1), references.classify, variant="one label",
                  options={"task": "classify"}),
        ModelCase("bert", "classify", classifier("bert", labels=1, problem_type="regression"),
                  references.classify, variant="regression", options={"task": "classify"}),
        ModelCase("bert", "classify", classifier("bert", problem_type="multi_label_classification"),
                  references.classify, variant="several labels per text"),
        ModelCase("modernbert", "classify", classifier("modernbert", classifier_pooling="mean"),
                  references.classify, variant="mean of the tokens"),
    ]  # fmt: skip


# Of the labels of MultiNLI, in an order that is not that of the letters.
NLI = {"id2label": {0: "contradiction", 1: "entailment", 2: "neutral"},
       "label2id": {"contradiction": 0, "entailment": 1, "neutral": 2}}  # fmt: skip
# Families with and without token types, one and two separators between the texts of a pair, packed and padded.
PAIR_FAMILIES = ("albert", "bert", "deberta", "deberta-v2", "electra", "modernbert", "roberta", "xlm-roberta")
TYPED = {"type_vocab_size": 2}


def _pairs(family: str) -> list[ModelCase]:
    tokenizer = TOKENIZERS.get(family, vocabularies.bert)
    layout: Layout = "packed" if family in PACKED_ENCODERS else "padded"
    settings = TYPED if family in ("deberta", "deberta-v2") else {}
    built = {"family": family, "tokenizer": tokenizer, **settings}
    cases = [
        ModelCase(family, "rerank", partial(families.save_cross_encoder, **built), references.rerank, layout,
                  inputs=PAIRS, slow=family in CONVERTED),
        ModelCase(family, "classify", partial(families.save_classifier, **built), references.classify, layout,
                  variant="pairs", inputs=PAIRS, slow=family in CONVERTED),
    ]  # fmt: skip
    if family in ("bert", "deberta-v2", "roberta"):
        build = partial(families.save_classifier, **built, **NLI)
        cases.append(ModelCase(family, "zero-shot", build, references.zero_shot, layout,
                               options={"task": "zero-shot"}, inputs=PREMISES_AND_HYPOTHESES,
                               slow=family in CONVERTED))  # fmt: skip
    return cases


def _decoders() -> list[ModelCase]:
    """Embedders with a decoder, or with the encoder of an encoder-decoder model."""
    last = partial(_build, families.save_embedder, pooling="lasttoken")
    embedder = partial(ModelCase, task="embed", reference=references.embed, slow=True)
    return [
        *(embedder(family, build=last(family)) for family in DECODERS),
        embedder("gemma3_text", build=_build(families.save_embedder, "gemma3_text", use_bidirectional_attention=True),
                 variant="with bidirectional attention"),
        *(
            embedder(family, build=_build(families.save_embedder, family),
                     int8="does not support replaced linear layers")
            for family in ENCODERS_OF_SEQ2SEQ
        ),
    ]  # fmt: skip


def _sentence_transformers() -> list[ModelCase]:
    """Models that differ in the modules and settings of sentence-transformers."""
    sm, tokens = sentence_models, {"module_input_name": "token_embeddings"}
    prompts = {"prompts": {"query": "find this: ", "text": "about: "}, "default_prompt_name": "query"}
    cut = {"truncate_dim": 7}
    modes = ("cls", "max", "mean_sqrt_len_tokens", "weightedmean", "lasttoken")
    builds: dict[str, Build] = {
        **{f"{mode} pooling": partial(sm.save_modules, modules=lambda mode=mode: [sm.pooling(mode)]) for mode in modes},
        "two poolings concatenated": partial(sm.save_modules, modules=lambda: [sm.pooling("lasttoken", "mean")]),
        "Dense": partial(sm.save_modules, modules=lambda: [sm.pooling("mean"), sm.dense(32, 12), sm.normalize()]),
        "Dense with a residual": partial(
            sm.save_modules, modules=lambda: [sm.pooling("cls"), sm.dense(32, 12, bias=False, use_residual=True)]
        ),
        "LayerNorm and Dropout": partial(
            sm.save_modules,
            modules=lambda: [sm.pooling("mean", "max"), sm.dense(64, 20), sm.layer_norm(20), sm.dropout()],
        ),
        "modules on tokens": partial(
            sm.save_modules,
            modules=lambda: [sm.dense(32, 16, **tokens), sm.normalize(**tokens), sm.pooling("weightedmean", width=16)],
        ),
        "default prompt": partial(sm.save_modules, modules=lambda: [sm.pooling("mean")], settings=prompts),
        "prompt left out of the pooling": partial(
            sm.save_modules,
            modules=lambda: [sm.pooling("cls", "weightedmean", "mean", include_prompt=False)],
            settings=prompts,
        ),
        "truncate_dim": partial(sm.save_modules, modules=lambda: [sm.pooling("mean"), sm.normalize()], settings=cut),
    }
    return [
        *(ModelCase("bert", "embed", build, references.embed, variant=name) for name, build in builds.items()),
        ModelCase(
            "bert", "embed",
            partial(sm.save_modules, modules=lambda: [sm.pooling("mean")], max_seq_length=20, do_lower_case=True,
                    tokenizer_args={"do_lower_case": False}),
            references.embed, variant="max_seq_length, do_lower_case and tokenizer_args", slow=True,
        ),
        ModelCase("StaticEmbedding", "embed", sm.save_static, references.embed, int8="no linear layers"),
        ModelCase("StaticEmbedding", "embed",
                  partial(sm.save_static, modules=lambda: [sm.dense(24, 10), sm.normalize()], model2vec=True),
                  references.embed, variant="model2vec, Dense and Normalize", int8="no linear layers"),
    ]  # fmt: skip


CASES: tuple[ModelCase, ...] = (
    *(case for family in sorted((*PACKED_ENCODERS, *PADDED_ENCODERS, *EQUAL_LENGTHS)) for case in _encoder(family)),
    *_variants(),
    *_sentence_transformers(),
    *_decoders(),
    *(case for family in PAIR_FAMILIES for case in _pairs(family)),
    *(case for family, mask in MASK_TOKENS.items() for case in _outputs(family, mask)),
    ModelCase("bert", "sparse-embed", _build(families.save_splade, "bert", pooling={"pooling_strategy": "sum"}),
              references.sparse_embed, variant="sum"),
    ModelCase("bert", "sparse-embed",
              _build(families.save_splade, "bert", pooling={"activation_function": "log1p_relu"}, max_active_dims=20),
              references.sparse_embed, variant="log1p_relu, 20 values"),
    ModelCase("bert", "sparse-embed", _build(families.save_transformer, "bert", auto="AutoModelForMaskedLM"),
              references.sparse_embed, variant="transformers files only", options={"task": "sparse-embed"}),
    ModelCase("bert", "sparse-embed", _build(families.save_router, "bert"), references.sparse_embed,
              variant="Router, documents"),
    ModelCase("bert", "embed", _build_routes, references.embed, variant="Router, documents"),
    ModelCase("bert", "rerank",
              partial(families.save_cross_encoder, family="bert", tokenizer=vocabularies.bert, activation="Tanh"),
              references.rerank, variant="activation Tanh", inputs=PAIRS),
)  # fmt: skip

GENERATES = "generates text"
OF_BART = {"d_model": families.HIDDEN, "encoder_layers": 2, "decoder_layers": 2, "encoder_ffn_dim": 64,
           "decoder_ffn_dim": 64, "encoder_attention_heads": 4, "decoder_attention_heads": 4}  # fmt: skip


def _refused() -> list[RefusedCase]:
    plain = partial(_build, families.save_transformer)
    return [
        *(
            RefusedCase(family, "any", partial(families.save_config, family=family), reason, reason)
            for family, reason in NOT_SUPPORTED.items()
        ),
        RefusedCase("big_bird", "embed",
                    plain("big_bird", auto="AutoModel", attention_type="block_sparse", block_size=4,
                          num_random_blocks=1),
                    "transformers uses sparse attention only until it gets a short text",
                    "sets attention_type to 'block_sparse'", variant="with sparse attention"),
        RefusedCase("xmod", "embed", plain("xmod", auto="AutoModel", default_language=None),
                    "no language is chosen", "default_language to None", variant="without a language"),
        RefusedCase("bart", "embed", plain("bart", auto="AutoModel", **OF_BART), GENERATES,
                    "a bart model (BartModel) generates text"),
        RefusedCase("gpt2", "embed", plain("gpt2", auto="AutoModelForCausalLM", n_embd=32, n_layer=2, n_head=4),
                    GENERATES, "a gpt2 model (GPT2LMHeadModel) generates text"),
        RefusedCase("bert", "embed", plain("bert", auto="AutoModel", is_decoder=True), GENERATES,
                    "a bert model (BertModel) generates text", variant="as a decoder"),
        RefusedCase("gte", "embed",
                    plain("gte", auto="AutoModel", rope_parameters={"rope_type": "dynamic", "factor": 2.0,
                                                                    "rope_theta": 10000.0}),
                    "its positions depend on the longest text of a batch",
                    "sets the type of rope_parameters to 'dynamic'", variant="with dynamic rotary positions"),
    ]  # fmt: skip


REFUSED: tuple[RefusedCase, ...] = tuple(_refused())
