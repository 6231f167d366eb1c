"""What a worker found out about its model when it loaded it, so that the next one need not find it out again.

It holds for workers that load the same files with the same settings on the same kind and number of cores
(``engine.load_proofs``). Everything else about a loaded model is in ``messages.Ready``.
"""

from __future__ import annotations

from typing import Literal

import msgspec

Optimization = Literal["prepacked", "fp32 attention", "traced", "compiled"]


class LoadProof(msgspec.Struct, frozen=True):
    """The checks of ``worker.result_checks`` passed with these choices.

    ``packed_variant`` is the index of the packed layout among those of the model; None: items are padded.
    ``optimizations`` are those that were kept, ``accuracy`` and ``notes`` those of ``messages.Ready``.
    """

    packed_variant: int | None
    optimizations: tuple[Optimization, ...]
    accuracy: float | None
    notes: tuple[str, ...]
