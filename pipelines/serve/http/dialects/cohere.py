"""Cohere's dialect: /v2/rerank, /v2/embed and /v1/embed; /v1/rerank is in jina.py."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Annotated, Literal

from fastapi import APIRouter, Request
from pydantic import BaseModel, Field
from starlette.responses import Response

from modernbert.stored import Json
from pipelines.serve.http.bodies import Body, Int, Many, NonEmpty
from pipelines.serve.http.dialect import Dialect
from pipelines.serve.http.dialects.shared import (
    RERANK_EXAMPLE,
    embed,
    prompt_of,
    rerank,
    truncation_options,
)
from pipelines.serve.http.handler import HandledRequest, RequestHandler, Truncation
from pipelines.serve.http.routes import new_router, route_docs
from pipelines.serve.protocol import Info

EmbeddingType = Literal["float", "int8", "binary", "ubinary", "base64"]
_Vectors = Iterator[list[float]] | Iterator[str]
_PRECISIONS: dict[str, str] = {"float": "float32", "base64": "float32"}
"""The precision of each embedding type; of the others it has the same name."""
_SIDES = {"START": "left", "END": "right"}
"""Where texts are cut off, by the value of `truncate`."""


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
    _add_rerank(router, handler)
    _add_embed(router, handler)
    return [router]


def _add_rerank(router: APIRouter, handler: RequestHandler) -> None:
    example = {"model": handler.example_model("rerank"), **RERANK_EXAMPLE, "top_n": 1}

    @router.post("/v2/rerank", **route_docs(Json, example, COHERE))
    async def cohere(body: CohereRequest, request: Request) -> Response:
        """{id, results: [{index, relevance_score}], meta} from best to worst."""
        info = await handler.pick("rerank", body.model)
        most_tokens = body.max_tokens_per_doc
        documents, shortened = await _first_tokens(handler, info, body.documents, most_tokens)
        handled, ranked = await rerank(handler, info, body.query, documents, "documents")
        handled.truncated |= shortened
        results: list[Json] = []
        for i, score in ranked[: body.top_n]:
            result: Json = {"index": i, "relevance_score": score}
            if body.return_documents:
                result["document"] = {"text": body.documents[i]}
            results.append(result)
        meta = _meta(handled, "2", "documents", {"search_units": 1})
        content = {"id": request.scope.get("request_id"), "results": results, "meta": meta}
        return handled.reply(content)


def _add_embed(router: APIRouter, handler: RequestHandler) -> None:
    example = {
        "model": handler.example_model("embed"),
        "texts": ["What is Deep Learning?"],
        "input_type": "search_query",
        "embedding_types": ["float"],
    }

    @router.post("/v2/embed", **route_docs(Json, example, COHERE))
    async def embed_texts(body: CohereEmbedRequest, request: Request) -> Response:
        """{id, embeddings: {float or another type: vectors}, texts, meta}."""
        handled, vectors = await _embed(handler, body)
        content = {
            "id": request.scope.get("request_id"),
            "embeddings": vectors,
            "texts": body.texts,
            "meta": _embed_meta(handled, "2"),
        }
        return handled.reply(content)

    @router.post("/v1/embed", **route_docs(Json, example, COHERE))
    async def embed_texts_v1(body: CohereEmbedRequest, request: Request) -> Response:
        """As /v2/embed; without embedding_types, embeddings are vectors of float themselves."""
        handled, vectors = await _embed(handler, body)
        by_type = body.embedding_types is not None
        content = {
            "id": request.scope.get("request_id"),
            "response_type": "embeddings_by_type" if by_type else "embeddings_floats",
            "embeddings": vectors if by_type else vectors["float"],
            "texts": body.texts,
            "meta": _embed_meta(handled, "1"),
        }
        return handled.reply(content)


async def _embed(
    handler: RequestHandler, body: CohereEmbedRequest
) -> tuple[HandledRequest, dict[str, _Vectors]]:
    """Return the handled request, and the vectors of each embedding type."""
    info = await handler.pick("embed", body.model)
    side = _SIDES.get(body.truncate or "")
    truncation = Truncation(body.truncate != "NONE", side)
    prompt_name = prompt_of(info, body.input_type) if body.input_type else None
    # To more tokens than the model reads, texts are cut anyway.
    most_tokens = body.max_tokens
    if most_tokens is not None and most_tokens > info.max_length:
        most_tokens = None
    more: dict[str, object] = {**truncation_options(info, "max_tokens", most_tokens)}
    # The model runs once for each precision: float and base64 are the same numbers.
    types: list[str] = list(dict.fromkeys(body.embedding_types or ["float"]))
    by_precision: dict[str, HandledRequest] = {}
    for embedding_type in types:
        precision = _PRECISIONS.get(embedding_type, embedding_type)
        if precision in by_precision:
            continue
        by_precision[precision] = await embed(
            handler,
            info,
            body.texts,
            "texts",
            prompt_name=prompt_name,
            dimensions=body.output_dimension,
            truncation=truncation,
            more={**more, "precision": precision},
        )
    vectors: dict[str, _Vectors] = {}
    for embedding_type in types:
        handled = by_precision[_PRECISIONS.get(embedding_type, embedding_type)]
        is_base64 = embedding_type == "base64"
        vectors[embedding_type] = handled.base64_vectors if is_base64 else handled.vectors
    return next(iter(by_precision.values())), vectors


def _embed_meta(handled: HandledRequest, version: str) -> Json:
    return _meta(handled, version, "texts", {"input_tokens": handled.n_tokens})


def _meta(handled: HandledRequest, version: str, field: str, billed_units: dict[str, int]) -> Json:
    meta: Json = {
        "api_version": {"version": version},
        "billed_units": billed_units,  # Cohere's clients do not read an answer without them
        "tokens": {"input_tokens": handled.n_tokens},
    }
    if handled.truncated:
        meta["warnings"] = [f"{field}[{i}] was cut off" for i in sorted(handled.truncated)]
    return meta


async def _first_tokens(
    handler: RequestHandler, info: Info, texts: list[str], count: int | None
) -> tuple[list[str], set[int]]:
    """Cut each text after its first `count` tokens; None: not at all.

    Also returns the indices of the texts that this shortens.
    """
    if count is None:
        return texts, set()
    all_tokens = await handler.tokenize(info, texts, "documents", special=False)
    shorter = list(texts)
    shortened = set()
    for i, tokens in enumerate(all_tokens):
        if len(tokens.ids) <= count:
            continue
        end = int(tokens.offsets[count - 1, 1])
        shorter[i] = texts[i][: max(end, 0)]
        shortened.add(i)
    return shorter, shortened


COHERE = Dialect(
    "Cohere",
    CohereError,
    lambda error: {"message": error.message},
    prefixes=("/v2", "/v1/embed"),
    routes=routes,
)
