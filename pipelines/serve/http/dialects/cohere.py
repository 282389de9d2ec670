"""Cohere's dialect: /v2/rerank, /v2/embed and /v1/embed; /v1/rerank is in jina.py."""

from __future__ import annotations

import base64
from collections.abc import Iterator, Sequence
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Request
from pydantic import BaseModel, Field
from starlette.responses import Response

from pipelines.serve.http.bodies import Body, Int, Many, NonEmpty, new_router, route_docs
from pipelines.serve.http.dialects.shared import RERANK_EXAMPLE, embed, rerank, truncation_options
from pipelines.serve.http.errors import Dialect
from pipelines.serve.http.handler import HandledRequest, RequestHandler, Truncation
from pipelines.serve.protocol import Info

EmbeddingType = Literal["float", "int8", "binary", "ubinary", "base64"]
_PRECISIONS: dict[str, str] = {"float": "float32", "base64": "float32"}
"""The precision of each embedding type; of the others it has the same name."""
_PROMPTS = {
    "search_query": ("search_query", "query"),
    "search_document": ("search_document", "document", "passage"),
    "classification": ("classification",),
    "clustering": ("clustering",),
}
"""The names of a model's prompts that an input type may mean."""


class CohereError(BaseModel):
    """The shape of an error."""

    message: str


class CohereRequest(Body):
    """A query and documents."""

    model: str
    query: NonEmpty
    documents: Many[NonEmpty]
    top_n: Int | None = Field(default=None, ge=1, description="how many results (default: all)")
    return_documents: bool | None = Field(
        default=None, description="give each document's text back (default: false)"
    )
    max_tokens_per_doc: Int | None = Field(
        default=None, ge=1, description="cut longer documents to so many tokens"
    )
    priority: Int | None = Field(
        default=None, description="not used: requests are answered in turn"
    )


class CohereEmbedRequest(Body):
    """Texts to embed."""

    model: str
    texts: Many[NonEmpty]
    input_type: (
        Literal["search_query", "search_document", "classification", "clustering"] | None
    ) = Field(
        default=None,
        description="the prompt of this name, or query or document, is put before each text",
    )
    embedding_types: (
        Annotated[list[EmbeddingType], Field(fail_fast=True, min_length=1, max_length=5)] | None
    ) = Field(default=None, description="default: float")
    output_dimension: Int | None = Field(
        default=None, ge=1, description="give only the first numbers of each vector"
    )
    truncate: Literal["NONE", "START", "END"] | None = Field(
        default=None,
        description="where texts that are too long are cut off (default: as the checkpoint says)",
    )
    max_tokens: Int | None = Field(default=None, ge=1, description="cut texts to so many tokens")
    priority: Int | None = Field(
        default=None, description="not used: requests are answered in turn"
    )


def routes(handler: RequestHandler) -> Sequence[APIRouter]:
    """Make the routes of rerankers and embedders."""
    router = new_router(COHERE, tags=["Cohere"])
    example = {"model": handler.first("rerank") or "none here", **RERANK_EXAMPLE, "top_n": 1}

    @router.post("/v2/rerank", **route_docs(dict[str, Any], example, COHERE))
    async def cohere(body: CohereRequest, request: Request) -> Response:
        """{id, results: [{index, relevance_score}], meta} from best to worst."""
        info = await handler.pick("rerank", body.model)
        documents, cut = body.documents, set[int]()
        if body.max_tokens_per_doc is not None:
            documents, cut = await _first_tokens(handler, info, documents, body.max_tokens_per_doc)
        handled, order = await rerank(handler, info, body.query, documents, "documents")
        handled.truncated |= cut
        text = (
            (lambda i: {"document": {"text": body.documents[i]}})
            if body.return_documents
            else lambda _: {}
        )
        results = [
            {"index": i, "relevance_score": score, **text(i)} for i, score in order[: body.top_n]
        ]
        meta = _meta(handled, "2", "documents", {"search_units": 1})
        return handled.reply(
            {"id": request.scope.get("request_id"), "results": results, "meta": meta}
        )

    example = {"model": handler.first("embed") or "none here", "texts": ["What is Deep Learning?"]}
    example |= {"input_type": "search_query", "embedding_types": ["float"]}

    @router.post("/v2/embed", **route_docs(dict[str, Any], example, COHERE))
    async def embed_texts(body: CohereEmbedRequest, request: Request) -> Response:
        """{id, embeddings: {float or another type: vectors}, texts, meta}."""
        handled, vectors = await _embed(handler, body)
        content = {
            "id": request.scope.get("request_id"),
            "embeddings": vectors,
            "texts": body.texts,
        }
        return handled.reply(content | {"meta": _embed_meta(handled, "2")})

    @router.post("/v1/embed", **route_docs(dict[str, Any], example, COHERE))
    async def embed_texts_v1(body: CohereEmbedRequest, request: Request) -> Response:
        """As /v2/embed; without embedding_types, embeddings are vectors of float themselves."""
        handled, vectors = await _embed(handler, body)
        by_type = body.embedding_types is not None
        content = {
            "id": request.scope.get("request_id"),
            "response_type": "embeddings_by_type" if by_type else "embeddings_floats",
            "embeddings": vectors if by_type else vectors["float"],
            "texts": body.texts,
        }
        return handled.reply(content | {"meta": _embed_meta(handled, "1")})

    return [router]


async def _embed(
    handler: RequestHandler, body: CohereEmbedRequest
) -> tuple[HandledRequest, dict[str, Iterator[Any]]]:
    """Return the handled request, and the vectors of each embedding type."""
    info = await handler.pick("embed", body.model)
    types = [*dict.fromkeys(body.embedding_types or ["float"])]
    side = {"START": "left", "END": "right"}.get(body.truncate or "")
    prompt = next(
        (name for name in _PROMPTS.get(body.input_type or "", ()) if name in info.prompts), None
    )
    most = body.max_tokens
    if most is not None and most > info.max_length:
        most = None  # a wish that is met anyway
    more = truncation_options(info, "max_tokens", most)
    by_precision: dict[str, HandledRequest] = {}
    for precision in dict.fromkeys(_PRECISIONS.get(each, each) for each in types):
        by_precision[precision] = await embed(
            handler,
            info,
            body.texts,
            "texts",
            prompt_name=prompt,
            dimensions=body.output_dimension,
            truncation=Truncation(body.truncate != "NONE", side),
            more={**more, "precision": precision},
        )
    vectors = {
        each: _vectors(by_precision[_PRECISIONS.get(each, each)], each == "base64")
        for each in types
    }
    return next(iter(by_precision.values())), vectors


def _vectors(handled: HandledRequest, packed: bool) -> Iterator[Any]:
    if not packed:
        return handled.vectors
    return (
        base64.b64encode(row.astype("<f4").tobytes()).decode() for row in handled.response.results
    )


def _embed_meta(handled: HandledRequest, version: str) -> dict[str, Any]:
    return _meta(handled, version, "texts", {"input_tokens": handled.n_tokens})


def _meta(
    handled: HandledRequest, version: str, field: str, billed: dict[str, int]
) -> dict[str, Any]:
    tokens = {"input_tokens": handled.n_tokens}
    # Cohere's clients do not read an answer without billed_units.
    meta: dict[str, Any] = {
        "api_version": {"version": version},
        "billed_units": billed,
        "tokens": tokens,
    }
    if handled.truncated:
        meta["warnings"] = [f"{field}[{i}] was cut off" for i in sorted(handled.truncated)]
    return meta


async def _first_tokens(
    handler: RequestHandler, info: Info, texts: list[str], count: int
) -> tuple[list[str], set[int]]:
    """Cut each text after its first `count` tokens; also return the indices of texts that this
    shortens.
    """
    out, cut = [*texts], set()
    for i, tokens in enumerate(await handler.tokenize(info, texts, "documents", False)):
        if len(tokens.ids) > count:
            out[i] = texts[i][: (tokens.offsets[count - 1] or (0, 0))[1]]
            cut.add(i)
    return out, cut


COHERE = Dialect(
    "Cohere",
    CohereError,
    lambda error: {"message": error.message},
    prefixes=("/v2", "/v1/embed"),
    routes=routes,
)
