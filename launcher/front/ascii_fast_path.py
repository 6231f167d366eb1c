"""The model's own tokenizer, with a shorter way for texts that its normalizer changes in nothing but their case.

BERT's normalizer cleans a text, sets Chinese characters apart, strips accents and lowers the case, in four passes
with a record of where each character came from. That is 20 of the 53 µs that the mean text of the built-in mix takes.
In a text of printable ASCII only the case can change, so such texts are lowered here and encoded by a second
tokenizer, which has the same model and no normalizer. All others, and all models with another normalizer, take the
whole way. Only the batch calls are used, also for one text: they let go of the interpreter lock, which ``encode``
does not; ``encode_batch_fast`` leaves out the offsets.
"""

from __future__ import annotations

import string
from collections.abc import Sequence
from pathlib import Path

from tokenizers import Encoding, Tokenizer
from tokenizers.normalizers import BertNormalizer

from launcher.core.protocol.model_info import ModelInfo
from launcher.errors import UsageError

# Each is looked for in each text; BERT has 5.
_MOST_ADDED = 16
# Looking through a text holds the interpreter lock, which the tokenizer lets go: about 0.2 ms for so many characters.
_MOST_CHARACTERS = 32_000
# What the two ways are compared on: each printable character alone, beside itself and within a word.
_PRINTABLE = string.digits + string.ascii_letters + string.punctuation + " "
_PROBE = " ".join(f"{c} {c}{c} a{c}b" for c in _PRINTABLE)


class Encoder:
    """Encodes texts for one model, without truncation or padding.

    Raises ``UsageError`` when there is no tokenizer, or when it cannot be read.

    ``offsets`` is whether the encodings have them.
    """

    def __init__(self, model_info: ModelInfo, *, offsets: bool) -> None:
        self._whole = _load(model_info)
        self._added = [token.content.lower() for token in self._whole.get_added_tokens_decoder().values()]
        self._offsets = offsets
        self._lowers = False
        self._short: Tokenizer | None = None
        normalizer = self._whole.normalizer
        # An added token with an accent would be found where the accent is missing, as the normalizer strips both.
        sought = len(self._added) <= _MOST_ADDED and all(t.isascii() and t.isprintable() for t in self._added)
        if isinstance(normalizer, BertNormalizer) and normalizer.clean_text and sought:
            self._lowers = normalizer.lowercase
            self._short = _without_normalizer(self._whole)
            if self._plain(_PROBE) is None or not self._agree(_PROBE):
                self._short = None

    def encode(self, texts: list[str]) -> list[Encoding]:
        """The encoding of each text, special tokens included. Raises what the Rust side raises: plain ``Exception``
        for a text that the model cannot take."""
        if self._short is None:
            return self._call(self._whole, texts)
        plain = [self._plain(text) for text in texts]
        if None not in plain:
            return self._call(self._short, plain)
        short = iter(self._call(self._short, [text for text in plain if text is not None]))
        whole = iter(self._call(self._whole, [text for text, p in zip(texts, plain, strict=True) if p is None]))
        return [next(whole if p is None else short) for p in plain]

    def _call(self, tokenizer: Tokenizer, texts: Sequence[str | None]) -> list[Encoding]:
        return tokenizer.encode_batch(texts) if self._offsets else tokenizer.encode_batch_fast(texts)

    def _plain(self, text: str) -> str | None:
        """The text as the normalizer would leave it, or None where that takes more than the case.

        So it does where the text may hold a token that was added to the vocabulary: those are looked for before.
        """
        if not text.isascii() or len(text) > _MOST_CHARACTERS:
            return None
        lowered = text.lower()
        if not lowered.isprintable():
            return None
        for added in self._added:
            if added in lowered:
                return None
        return lowered if self._lowers else text

    def _agree(self, text: str) -> bool:
        short, whole = self.encode([text])[0], self._call(self._whole, [text])[0]
        return bool(short.ids == whole.ids and short.offsets == whole.offsets)


def _without_normalizer(whole: Tokenizer) -> Tokenizer:
    """A tokenizer with the same model (not a copy), without normalizer and added tokens."""
    tokenizer = Tokenizer(whole.model)
    tokenizer.pre_tokenizer = whole.pre_tokenizer
    tokenizer.post_processor = whole.post_processor
    return tokenizer


def _load(model_info: ModelInfo) -> Tokenizer:
    path = Path(model_info.tokenizer_path)
    if not path.is_file():
        raise UsageError(f"the model {model_info.asked!r} has no tokenizer.json (looked for {path})")
    try:
        tokenizer = Tokenizer.from_file(str(path))
    except Exception as error:  # the Rust side raises plain Exception for a file that it cannot read
        raise UsageError(f"the tokenizer of {model_info.asked!r} cannot be read: {path}: {error}") from error
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer
