"""Model metadata that is known before the model is loaded, and the shapes of random models.

A ``ModelInfo`` is created once on the host from the model's files (``host.model.resolve``) and sent to front and
workers, so that pooling, limits and labels are read in one place. Files are not read here.
"""

from __future__ import annotations

from typing import Literal

import msgspec

from launcher.core.protocol.embedding_modules import Activation, EmbeddingModule, PoolingMode, output_width
from launcher.core.protocol.task_settings import AnswerTokens, MaskTokens, SparsePooling, TokenVectors
from launcher.options.choices import Task

Pooling = PoolingMode | tuple[PoolingMode, ...]
Scores = Literal["softmax", "sigmoid", "raw"] | Activation
Batching = Literal["packed", "padded", "equal"]
Rows = Literal["item", "token", "varying", "bytes"]

FLOAT32_BYTES = 4


class ModelInfo(msgspec.Struct, frozen=True):
    """Metadata of one model. Lengths and limits are in tokens, including special tokens."""

    name: str
    """The name for clients."""
    requested: str
    """The value of ``--model``."""
    task: Task
    folder: str
    """The folder with configuration and weights."""
    shape: str | None
    """The name in ``SHAPES`` of a ``random:`` model, which has no weights on disk."""
    architecture: str
    """The class that config.json names, or else its model type."""
    hidden_size: int
    layers: int
    """0 for static embeddings, which are the mean of fixed vectors of the tokens."""
    vocab_size: int
    max_length: int
    """The longest item; for a custom task, the largest size."""
    pad_id: int
    pooling: Pooling
    """For ``embed``: how the embeddings of tokens become a vector; the vectors of several modes are concatenated."""
    normalize: bool
    """For ``embed``: whether vectors are normalized after ``modules``."""
    labels: tuple[str, ...]
    """The names of the labels, in the order of the logits."""
    weight_bytes: int
    """The size of all parameters in fp32."""

    tokenizer_file: str = ""
    """The ``tokenizer.json`` to use; empty: the one in ``folder``."""
    tokenizer_check: str = ""
    """The file in which a worker notes that it has compared the tokenizer with that of transformers; empty: do not
    compare."""
    tokens_without_rows: dict[str, int] = {}
    """The tokens of the tokenizer, with their ids, for which the model has no embeddings."""
    special_tokens: bool = True
    """Whether texts get the special tokens of the tokenizer."""
    token_types: int = 0
    """The number of token types that the model distinguishes; 0: it ignores them."""
    sends_token_types: bool = False
    """Whether the tokenizer passes token types to the model."""

    entailment: int = -1
    """For ``zero-shot``: the index of the label for entailment."""
    scores: Scores = "softmax"
    """How the logits of a classifier, tagger or reranker become scores."""
    batching: Batching = "packed"
    """How items may be computed together: ``packed``, if the checks at load find the same results; ``padded``; or
    ``equal``, only items of equal length."""
    text_features: bool = False
    """Whether embeddings are those of the text part of a model of texts and images."""
    bf16: bool = True
    """Whether torch can compute the model in bf16."""
    custom_class: str = ""
    """The ``module:Class`` of a custom task."""
    notes: tuple[str, ...] = ()
    """Messages for the user about how these values were found."""

    include_prompt: bool = True
    """Whether pooling includes the tokens of the prompt."""
    token_modules: tuple[EmbeddingModule, ...] = ()
    """The modules that are applied to the embedding of each token, before pooling."""
    modules: tuple[EmbeddingModule, ...] = ()
    """The modules that are applied to the vector of an item, after pooling."""
    truncate_dim: int | None = None
    """The number of leading values to which vectors are cut, after normalization."""
    prompts: dict[str, str] = {}
    """The texts, by name, that a request can have prepended to its inputs."""
    default_prompt: str = ""
    """The text that is prepended if a request does not choose a prompt."""

    sparse: SparsePooling | None = None
    """Set for ``sparse-embed``."""
    routes: Routes | None = None
    """Set if queries and documents have modules of their own."""
    token_vectors: TokenVectors | None = None
    """Set for ``token-embed``."""
    masks: MaskTokens | None = None
    """Set for ``fill-mask``."""
    answers: AnswerTokens | None = None
    """Set for ``question-answering``."""

    @property
    def tokenizer_path(self) -> str:
        """The path of the ``tokenizer.json`` to use."""
        return self.tokenizer_file or f"{self.folder}/tokenizer.json"

    @property
    def result_width(self) -> int:
        """The number of float32 values in a row of results.

        A row of ``sparse-embed`` is (token id, weight), one of ``fill-mask`` is (position, token id, score), and one of
        ``question-answering`` is the logits that an answer starts and ends at a token.
        float32 holds integers up to 2**24 exactly.
        """
        if self.task == "embed" and isinstance(self.pooling, str) and not (self.modules or self.token_modules):
            # The usual case first: backends read this for each batch.
            return self.hidden_size if self.truncate_dim is None else min(self.hidden_size, self.truncate_dim)
        if self.token_vectors is not None:
            return output_width(self.token_vectors.width, self.token_modules)
        if self.task == "rerank":
            return 2  # the logit and the score
        if self.task == "custom":
            return 1
        if self.task != "embed":
            widths: dict[Task, int] = {"sparse-embed": 2, "fill-mask": 3, "question-answering": 2}
            return widths.get(self.task, len(self.labels))
        modes = 1 if isinstance(self.pooling, str) else len(self.pooling)
        width = output_width(output_width(self.hidden_size, self.token_modules) * modes, self.modules)
        return width if self.truncate_dim is None else min(width, self.truncate_dim)

    @property
    def unit_vectors(self) -> bool:
        """Whether embeddings have the length 1."""
        own = self.normalize and self.truncate_dim is None
        return own and (self.routes is None or self.routes.model_info.unit_vectors)

    @property
    def static(self) -> bool:
        """Whether the model has fixed embeddings of tokens, and no encoder."""
        return self.layers == 0 and self.task != "custom"

    @property
    def takes_pairs(self) -> bool:
        """Whether an item can be a pair of texts."""
        return self.task in ("classify", "rerank", "zero-shot", "question-answering")

    @property
    def rows(self) -> Rows:
        """The rows of an item's result: ``item``: a single one; ``token``: one per token, including special tokens;
        ``varying``: a number that the worker decides; ``bytes``: likewise, and a row is a byte instead of numbers.
        """
        rows: dict[Task, Rows] = {
            "custom": "bytes",
            "tag": "token",
            "token-embed": "token",
            "question-answering": "token",
            "sparse-embed": "varying",
            "fill-mask": "varying",
        }
        return rows.get(self.task, "item")


class Routes(msgspec.Struct, frozen=True):
    """The two routes of a model that computes queries and documents with modules of their own.

    ``first`` and ``second`` are their names. The ``ModelInfo`` that has this describes the first route, which takes the
    longer texts; ``model_info`` describes the second. ``default`` is the route of a text for which none is chosen, if
    there is one.
    """

    first: str
    second: str
    default: str | None
    model_info: ModelInfo


class Shape(msgspec.Struct, frozen=True):
    """The dimensions of a BERT encoder; vocabulary and positions default to those of the uncased BERT models."""

    hidden_size: int
    layers: int
    heads: int
    intermediate_size: int
    vocab_size: int = 30522
    positions: int = 512
    token_types: int = 2

    @property
    def parameters(self) -> int:
        """The number of parameters, without pooler and heads."""
        hidden, inner = self.hidden_size, self.intermediate_size
        norm = 2 * hidden
        embeddings = (self.vocab_size + self.positions + self.token_types) * hidden + norm
        attention = 4 * (hidden * hidden + hidden) + norm
        feed_forward = hidden * inner + inner + inner * hidden + hidden + norm
        return embeddings + self.layers * (attention + feed_forward)


# Published sizes: Devlin et al. 2018 (base, large), Turc et al. 2019 (tiny), MiniLM-L6-H384-uncased (minilm).
SHAPES: dict[str, Shape] = {
    "tiny": Shape(hidden_size=128, layers=2, heads=2, intermediate_size=512),
    "minilm": Shape(hidden_size=384, layers=6, heads=12, intermediate_size=1536),
    "bert-base": Shape(hidden_size=768, layers=12, heads=12, intermediate_size=3072),
    "bert-large": Shape(hidden_size=1024, layers=24, heads=16, intermediate_size=4096),
}
