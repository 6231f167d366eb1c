"""``POST /predict`` for rerankers: documents by their relevance to a query."""

from __future__ import annotations

from typing import Annotated, Literal

from msgspec import UNSET, Meta, Struct, UnsetType

from launcher.errors import RequestError
from launcher.front.http.api.predict.task_route import TaskHandler, TaskRoute, encode_json
from launcher.front.http.inference_route import Tokenize
from launcher.front.http.inputs import Truncate, too_many_inputs
from launcher.front.http.json_results import Usage
from launcher.front.input_names import RankingNames
from launcher.front.pairs import Pair
from launcher.front.request_results import Vectors
from launcher.front.tasks.ranking import ranked
from launcher.front.tokenizer import Tokenized


class RerankRequest(Struct, frozen=True):
    """Body of ``POST /predict`` if the served model is a reranker."""

    query: str
    documents: list[str]
    top_k: Annotated[
        Annotated[int, Meta(ge=1)] | None, Meta(description="Return this many of the best documents. Default: all.")
    ] = None
    return_documents: Annotated[bool, Meta(description="Include the text of each document.")] = False
    raw_scores: Annotated[
        bool, Meta(description="Return the logits of the model instead of the scores of its activation function.")
    ] = False
    truncate: Truncate = False


class RankedDocument(Struct, frozen=True):
    """A document by its index in the request, and its score."""

    index: int
    score: float
    text: str | UnsetType = UNSET


class RerankResponse(Struct, frozen=True):
    """Response of ``POST /predict`` if the served model is a reranker: the documents, best first."""

    model: str
    task: Literal["rerank"]
    predictions: list[RankedDocument]
    usage: Usage


class RerankHandler(TaskHandler[RerankRequest]):
    """Ranks documents."""

    inputs_field = "documents"

    def prepare(self, body: RerankRequest) -> tuple[int, Tokenize]:
        """See the base class."""
        documents = body.documents
        if not documents:
            raise RequestError(
                "'documents' is an empty list; send at least one document", code="empty_input", param="documents"
            )
        if len(documents) > self._options.request_items:
            raise too_many_inputs("documents", str(len(documents)), self._options.request_items)
        pairs: list[Pair] = [(body.query, document) for document in documents]
        names = RankingNames("documents")
        return len(pairs), lambda wait: self._tokenizer.pairs(pairs, truncate=body.truncate, field=names, wait=wait)

    async def encode_all_results(self, body: RerankRequest, results: Vectors, tokenized: Tokenized) -> list[bytes]:
        """See the base class."""
        found = ranked(results, raw_scores=body.raw_scores, top_k=body.top_k)
        if body.return_documents:
            return [encode_json(RankedDocument(index, score, body.documents[index])) for index, score in found]
        return [encode_json(RankedDocument(index, score)) for index, score in found]


RERANK = TaskRoute(
    handler=RerankHandler,
    request=RerankRequest,
    response=RerankResponse,
    example={"query": "What is a core?", "documents": ["A core executes instructions.", "A node has memory."]},
    returns="The documents with their scores, best first.",
)
