"""What items have besides token ids: token types, and prompts that pooling ignores.

Separate from the dispatcher because most requests have none of it, and their path must not pay for it. How a tokenizer
finds these details does not belong here.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from launcher.core.protocol.messages import Run

# The token ids of an item, int32, or the bytes of its JSON, uint8.
Tokens = npt.NDArray[Any]
TypeIds = npt.NDArray[np.uint8]


@dataclass(frozen=True, slots=True)
class ItemDetails:
    """What items have besides token ids. Each field is parallel to the items, or empty if no item has it.

    ``type_ids`` has the token type (segment) of each token, and ``prompt_lengths`` the number of leading tokens that
    pooling ignores. ``routes`` are those of ``Run``. ``sizes`` are the sizes of items of a custom class, which are JSON
    instead of token ids.
    """

    type_ids: Sequence[TypeIds] = ()
    prompt_lengths: Sequence[int] = ()
    sizes: Sequence[int] = ()
    routes: Sequence[int] = ()


_NONE = ItemDetails()


def with_details(run: Run, items: Sequence[tuple[ItemDetails | None, int]], parts: list[Any]) -> Run:
    """``run`` with the details of its items: each is an index into the details of its request, or has none.

    Their token types are appended to ``parts``, the body of the frame.
    """
    if any(found is not None and found.sizes for found, _ in items):
        return Run(run.batch, run.lengths, payload_bytes=tuple(map(len, parts)))
    details = [(found or _NONE, index, length) for (found, index), length in zip(items, run.lengths, strict=True)]
    typed = any(found.type_ids for found, _, _ in details)
    if typed:
        parts += [found.type_ids[index] if found.type_ids else bytes(length) for found, index, length in details]
    prompts = tuple(found.prompt_lengths[index] if found.prompt_lengths else 0 for found, index, _ in details)
    routes = tuple(found.routes[index] if found.routes else 0 for found, index, _ in details)
    return Run(run.batch, run.lengths, typed, prompts if any(prompts) else (), routes=routes if any(routes) else ())
