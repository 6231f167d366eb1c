"""What ``worker.convert_tokenizer`` reports about the tokenizer that transformers builds for a model.

Separate from ``model_info``, which the host fills with some of these facts. Host and worker share this format only.
"""

from __future__ import annotations

import msgspec

# The files in the folder that the conversion writes. The second is written last.
TOKENIZER_FILE = "tokenizer.json"
FACTS_FILE = "facts.json"
# The exit status if the files could not be written, although the tokenizer could be built.
EXIT_NOT_WRITTEN = 3
# The packages that build a tokenizer.
BUILDERS = ("transformers", "tokenizers", "sentencepiece", "protobuf")


class BuiltTokenizer(msgspec.Struct, frozen=True):
    """Facts about a tokenizer that are not in its tokenizer.json.

    ``class_name`` is its class in transformers. ``max_length`` is in tokens, ``None`` without a limit. ``segment_ids``:
    whether transformers passes them to the model.
    """

    class_name: str
    max_length: int | None
    pad_id: int | None
    truncation_side: str
    padding_side: str
    split_special_tokens: bool
    segment_ids: bool
