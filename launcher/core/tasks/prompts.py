"""Chooses the prompt of a call: the text that is prepended to each of its inputs.

The rules are those of ``SentenceTransformer.encode`` in sentence-transformers 6. Prepending is done where texts are
tokenized.
"""

from __future__ import annotations

from launcher.core.protocol.model_info import ModelInfo
from launcher.errors import UsageError

# Every model has those of encode_query and encode_document; its files may give them a text.
STANDARD_PROMPTS = {"query": "", "document": ""}
# Each input gets a copy of the prompt, so that a short request could ask for much work.
MAX_CHARACTERS = 10_000


def choose_prompt(model_info: ModelInfo, prompt: str | None, prompt_name: str | None) -> str:
    """``prompt`` if it is given, else the model's prompt with the name ``prompt_name``, else its default prompt.

    Empty if there is none. Raises ``UsageError`` for a name that the model does not have, and for a long prompt.
    """
    if prompt is not None:
        if len(prompt) > MAX_CHARACTERS:
            raise UsageError(f"'prompt' has {len(prompt)} characters; the limit is {MAX_CHARACTERS}")
        return prompt
    if prompt_name is None:
        return model_info.default_prompt
    prompts = {**STANDARD_PROMPTS, **model_info.prompts}
    if prompt_name not in prompts:
        known = ", ".join(map(repr, sorted(prompts)))
        raise UsageError(f"'prompt_name' is {prompt_name[:200]!r}; the prompts of this model are {known}")
    return prompts[prompt_name]
