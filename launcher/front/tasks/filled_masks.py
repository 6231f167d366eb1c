"""The result of masked language modelling: the most probable tokens for each mask token, and the text with each.

Separate from HTTP because the Python API returns the same. The reference is the fill-mask pipeline of transformers 5.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from msgspec import Struct
from tokenizers import Tokenizer

from launcher.core.protocol.model_info import ModelInfo
from launcher.errors import RequestError
from launcher.front.input_names import InputNames
from launcher.front.request_results import Vectors

Ids = npt.NDArray[np.int32]

DEFAULT_TOP_K = 5
# What transformers' clean_up_tokenization does, in this order.
_CLEAN_UP = ((" .", "."), (" ?", "?"), (" !", "!"), (" ,", ","), (" ' ", "'"), (" n't", "n't"), (" 'm", "'m"),
             (" 's", "'s"), (" 've", "'ve"), (" 're", "'re"))  # fmt: skip


class FilledMask(Struct, frozen=True):
    """A token for a mask token: its probability, its id, its text, and the whole text with it."""

    score: float
    token: int
    token_str: str
    sequence: str


class MaskFiller:
    """Decodes the results of a model that fills masks."""

    def __init__(self, tokenizer: Tokenizer, model_info: ModelInfo) -> None:
        assert model_info.masks is not None, "set for this task"
        self._tokenizer, self._masks = tokenizer, model_info.masks
        mask = tokenizer.id_to_token(self._masks.mask_id)
        self._no_mask = f"has no mask token; mark the place to fill with {mask}"

    def count(self, ids: Ids, names: InputNames, index: int) -> int:
        """The number of mask tokens in the input with this index. Raises ``RequestError`` if there is none."""
        found = int(np.count_nonzero(ids == self._masks.mask_id))
        if not found:
            raise RequestError(f"{names.of(index)} {self._no_mask}", code="no_mask", param=names.field)
        return found

    def fill(self, ids: Ids, rows: Vectors, top_k: int) -> list[list[FilledMask]]:
        """For each mask token of an input, in order, the ``top_k`` most probable tokens, best first.

        ``rows`` are the results of a worker: (position, token id, score). Other mask tokens stay in the texts; special
        tokens are omitted if there are none, as in the pipeline.
        """
        positions = np.flatnonzero(ids == self._masks.mask_id)
        by_mask = rows.reshape(len(positions), -1, rows.shape[1])[:, :top_k]
        return [
            [self._filled(ids, position, int(token), score, len(positions) == 1) for _, token, score in candidates]
            for position, candidates in zip(positions.tolist(), by_mask, strict=True)
        ]

    def _filled(self, ids: Ids, position: int, token: int, score: np.float32, single: bool) -> FilledMask:
        filled = ids.copy()
        filled[position] = token
        kept = filled[filled != self._masks.pad_id].tolist()
        # The shortest decimal that reads back as the same float32.
        return FilledMask(float(str(score)), token, self._decode([token]), self._decode(kept, skip_special=single))

    def _decode(self, ids: list[int], skip_special: bool = False) -> str:
        text: str = self._tokenizer.decode(ids, skip_special_tokens=skip_special)
        if self._masks.clean_up:
            for old, new in _CLEAN_UP:
                text = text.replace(old, new)
        return text
