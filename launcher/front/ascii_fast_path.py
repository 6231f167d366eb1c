"""The model's tokenizer, with a fast path for texts in which its normalizer can only change the case.

BERT's normalizer cleans a text, isolates Chinese characters, strips accents and lower-cases, in four passes that record
the origin of each character. That takes 20 of the 53 µs of an average text of the built-in distribution. In a text of
printable ASCII only the case can change, so such texts are lower-cased here and encoded by a second tokenizer with the
same model and no normalizer. All other texts, and models with another normalizer, take the regular path. Only the batch
calls are used, even for one text: they release the GIL, which ``encode`` does not; ``encode_batch_fast`` omits the
offsets.

Both paths are compared on the check texts before the fast one is used. The worker compares the regular one with the
tokenizer of transformers (``worker.compare_tokenizers``) on the same texts, so that both give the ids of transformers.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from tokenizers import Encoding, Tokenizer
from tokenizers.normalizers import BertNormalizer

from launcher.core.check_texts import check_pairs, check_texts
from launcher.core.protocol.model_info import ModelInfo
from launcher.errors import UsageError
from launcher.front.pairs import Pair

# Each text is searched for each added token; BERT has 5.
_MAX_ADDED = 16
# The checks of a text hold the GIL, which the tokenizer releases: about 0.2 ms for this many characters.
_MAX_CHARACTERS = 32_000


class Encoder:
    """Encodes texts for one model, without truncation or padding. ``offsets``: whether encodings include them.
    ``special_ids`` are the ids of the special tokens. ``tokenizer`` is the model's tokenizer as it is.

    Raises ``UsageError`` if there is no tokenizer or it cannot be read.
    """

    def __init__(self, model_info: ModelInfo, *, offsets: bool) -> None:
        self._regular = self.tokenizer = _load(model_info)
        self._offsets = offsets
        self._special_tokens = model_info.special_tokens
        added = self._regular.get_added_tokens_decoder()
        self._added = [token.content.lower() for token in added.values()]
        self.special_ids = frozenset(id for id, token in added.items() if token.special)
        self._lowers = False
        self._fast: Tokenizer | None = None
        normalizer = self._regular.normalizer
        # The normalizer strips accents from both texts and added tokens, so a non-ASCII token could match ASCII text.
        searchable = len(self._added) <= _MAX_ADDED and all(t.isascii() and t.isprintable() for t in self._added)
        if isinstance(normalizer, BertNormalizer) and normalizer.clean_text and searchable:
            self._lowers = normalizer.lowercase
            self._fast = _without_normalizer(self._regular)
            contents = [token.content for token in added.values()]
            if not self._agree(check_texts(contents), check_pairs(contents)):
                self._fast = None

    def encode(self, texts: Sequence[str | Pair]) -> list[Encoding]:
        """The encoding of each text or pair of texts, including special tokens. Raises a plain ``Exception``, as the
        Rust library does, for a text that the model cannot encode.
        """
        if self._fast is None:
            return self._call(self._regular, texts)
        plain = [self._plain(text) if isinstance(text, str) else self._plain_pair(text) for text in texts]
        if None not in plain:
            return self._call(self._fast, plain)
        fast = iter(self._call(self._fast, [text for text in plain if text is not None]))
        regular = iter(self._call(self._regular, [text for text, p in zip(texts, plain, strict=True) if p is None]))
        return [next(regular if p is None else fast) for p in plain]

    def _call(self, tokenizer: Tokenizer, texts: Sequence[str | Pair | None]) -> list[Encoding]:
        encode = tokenizer.encode_batch if self._offsets else tokenizer.encode_batch_fast
        return encode(texts, add_special_tokens=self._special_tokens)

    def _plain(self, text: str) -> str | None:
        """The normalized text; None if normalizing could change more than the case.

        Also None if the text may contain an added token, since the tokenizer matches those before it normalizes.
        """
        if not text.isascii() or len(text) > _MAX_CHARACTERS:
            return None
        lowered = text.lower()
        if not lowered.isprintable():
            return None
        for added in self._added:
            if added in lowered:
                return None
        return lowered if self._lowers else text

    def _plain_pair(self, pair: Pair) -> Pair | None:
        first, second = self._plain(pair[0]), self._plain(pair[1])
        return None if first is None or second is None else (first, second)

    def _agree(self, texts: Sequence[str], pairs: Sequence[Pair]) -> bool:
        """Whether both paths give the same for ``texts`` and ``pairs``, some of which take the fast path."""
        if all(self._plain(text) is None for text in texts):
            return False
        inputs: list[str | Pair] = [*texts, *pairs]
        found, expected = self.encode(inputs), self._call(self._regular, inputs)
        return all(
            fast.ids == regular.ids and fast.type_ids == regular.type_ids and fast.offsets == regular.offsets
            for fast, regular in zip(found, expected, strict=True)
        )


def _without_normalizer(regular: Tokenizer) -> Tokenizer:
    """A tokenizer with the same model (shared, not copied), without normalizer and added tokens."""
    tokenizer = Tokenizer(regular.model)
    tokenizer.pre_tokenizer = regular.pre_tokenizer
    tokenizer.post_processor = regular.post_processor
    return tokenizer


def _load(model_info: ModelInfo) -> Tokenizer:
    path = Path(model_info.tokenizer_path)
    if not path.is_file():
        raise UsageError(f"the model {model_info.requested!r} has no tokenizer.json (expected at {path})")
    try:
        tokenizer = Tokenizer.from_file(str(path))
    except Exception as error:  # the Rust library raises plain Exception for a file that it cannot read
        raise UsageError(f"the tokenizer of {model_info.requested!r} cannot be read: {path}: {error}") from error
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer
