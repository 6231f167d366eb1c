"""The result of a reranker: documents by their score.

Separate from HTTP because the Python API returns the same. The order is that of ``CrossEncoder.rank`` of
sentence-transformers 6.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from launcher.front.request_results import Vectors

# The columns of the rows that workers compute.
LOGIT, SCORE = 0, 1


def ranked(results: Vectors, *, raw_scores: bool, top_k: int | None) -> Iterator[tuple[int, float]]:
    """The indices and scores of the best documents, best first; equal scores in the order of the documents.

    ``results`` has the logit and the score of each document; ``raw_scores`` selects the logit.
    """
    scores = results[:, LOGIT if raw_scores else SCORE]
    # The shortest decimal that reads back as the same float32.
    for index in np.argsort(-scores, kind="stable")[:top_k].tolist():
        yield index, float(str(scores[index]))
