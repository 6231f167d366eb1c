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
    """Metadata of one model.

    ``name`` is the name for clients, ``asked`` the value of ``--model``. ``folder`` contains configuration and weights;
    ``shape`` is set for ``random:`` models, which have no weights on disk. ``tokenizer_file`` is the ``tokenizer.json``
    to use (empty: the one in ``folder``), ``tokenizer_check`` the file in which a worker notes that it has compared it
    with the tokenizer that transformers builds (empty: not to be compared). ``max_length`` is in tokens, including
    special tokens. ``weight_bytes`` is the size of all parameters in fp32. ``token_types`` is the number of token types
    (segments) that the model distinguishes, and ``sends_token_types`` tells whether its tokenizer passes them to it.
    ``entailment`` is the index of the label of that meaning, for ``zero-shot``. ``scores`` is how the logits of a
    classifier, tagger or reranker become scores. ``batching`` is how items may be computed together: ``packed``, if the
    checks at load find the same results; ``padded``; or ``equal``, items of equal length only. ``custom_class`` is the
    ``module:Class`` of a task of the user's own; its ``max_length`` is a size. ``text_features`` is whether embeddings
    are those of the text part of a model of texts and images. ``notes`` are messages for the user about how these
    values were found.

    For ``embed``, ``token_modules`` are applied to the embedding of each token, ``pooling`` (the vectors of several
    modes are concatenated) makes one vector per item, without the tokens of its prompt unless ``include_prompt``, then
    ``modules`` are applied, the vector is normalized if ``normalize`` is set, and cut to ``truncate_dim`` values.
    ``prompts`` are texts by name that a request can have prepended to its inputs; ``default_prompt`` is prepended if a
    request does not choose. ``layers`` is 0 for static embeddings, which are the mean of fixed vectors of the tokens;
    ``special_tokens`` is whether texts get the special tokens of the tokenizer.

    ``sparse``, ``token_vectors``, ``masks`` and ``answers`` are set for the tasks that need them.
    """

    name: str
    asked: str
    task: Task
    folder: str
    shape: str | None
    architecture: str
    hidden_size: int
    layers: int
    vocab_size: int
    max_length: int
    pad_id: int
    pooling: Pooling
    normalize: bool
    labels: tuple[str, ...]
    weight_bytes: int
    tokenizer_file: str = ""
    tokenizer_check: str = ""
    token_types: int = 0
    sends_token_types: bool = False
    entailment: int = -1
    scores: Scores = "softmax"
    batching: Batching = "packed"
    text_features: bool = False
    custom_class: str = ""
    notes: tuple[str, ...] = ()
    include_prompt: bool = True
    token_modules: tuple[EmbeddingModule, ...] = ()
    modules: tuple[EmbeddingModule, ...] = ()
    truncate_dim: int | None = None
    prompts: dict[str, str] = {}
    default_prompt: str = ""
    special_tokens: bool = True
    sparse: SparsePooling | None = None
    token_vectors: TokenVectors | None = None
    masks: MaskTokens | None = None
    answers: AnswerTokens | None = None

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
        return self.normalize and self.truncate_dim is None

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
