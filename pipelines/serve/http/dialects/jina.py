"""Jina's dialect: /v1/multi-vector, and /v1/rerank, which vLLM, Infinity and Cohere's older clients
speak, too.

`raw_scores` is Infinity's alone: where it is there, `document` is a text, as Infinity gives it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Literal

from fastapi import APIRouter
from pydantic import BaseModel, Discriminator, Field, Tag
from starlette.responses import Response

from pipelines.serve.http.bodies import (
    Int,
    Many,
    NonEmpty,
    Texts,
    TolerantBody,
    new_router,
    route_docs,
)
from pipelines.serve.http.dialects.shared import RERANK_EXAMPLE, rerank, truncation_options
from pipelines.serve.http.errors import ApiError, Dialect
from pipelines.serve.http.handler import RequestHandler, Truncation


class JinaError(BaseModel):
    """The shape of an error."""

    detail: str


class JinaDocument(TolerantBody):
    """A document as an object: its text, or with rank_fields others."""

    text: NonEmpty | None = None

    @property
    def ignored(self) -> list[str]:
        return []  # documents bring their metadata along


TextOrObject = Annotated[
    Annotated[NonEmpty, Tag("<text>")] | Annotated[JinaDocument, Tag("<object>")],
    Discriminator(
        lambda document: "<object>" if isinstance(document, dict | JinaDocument) else "<text>"
    ),
]


class JinaRequest(TolerantBody):
    """A query and documents."""

    model: str | None = Field(default=None, description="default: the first that reranks")
    query: NonEmpty
    documents: Many[TextOrObject]
    top_n: Int | None = Field(
        default=None, ge=0, description="how many results (default, and 0: all)"
    )
    return_documents: bool | None = Field(
        default=None, description="give each document's text back (default: true)"
    )
    rank_fields: (
        Annotated[list[NonEmpty], Field(fail_fast=True, min_length=1, max_length=50)] | None
    ) = Field(
        default=None,
        description="Cohere's: the fields of a document that are ranked, in this order",
    )
    max_chunks_per_doc: Int | None = Field(
        default=None, description="Cohere's; not used: documents are not chunked"
    )
    raw_scores: bool | None = Field(
        default=None, description="Infinity's: give the model's own numbers"
    )
    truncate_prompt_tokens: Int | None = Field(
        default=None,
        ge=-1,
        description="vLLM's: cut each pair to so many tokens (-1: to what the model reads)",
    )


class MultiVectorRequest(TolerantBody):
    """Texts whose vectors of tokens are wanted."""

    model: str | None = Field(default=None, description="default: the first multi-vector encoder")
    input: Texts
    input_type: Literal["query", "document"] | None = Field(
        default=None, description="default: document"
    )
    truncate: bool | None = Field(
        default=None, description="false: refuse inputs that are too long"
    )


def routes(handler: RequestHandler) -> Sequence[APIRouter]:
    """Make the routes /v1/rerank and /v1/multi-vector."""
    router = new_router(JINA, tags=["Jina, vLLM, Infinity"])
    example = {"model": handler.first("rerank") or "none here", **RERANK_EXAMPLE, "top_n": 1}

    @router.post("/v1/rerank", **route_docs(dict[str, Any], example, JINA))
    async def jina(body: JinaRequest) -> Response:
        """{model, usage, results: [{index, relevance_score, document: {text}}]} from best to
        worst.
        """
        return await jina_rerank(handler, body, body.model)

    example = {
        "model": handler.first("multi_vector") or "none here",
        "input": ["Where is my parcel?"],
    }

    @router.post(
        "/v1/multi-vector", **route_docs(dict[str, Any], example | {"input_type": "query"}, JINA)
    )
    async def multi_vector(body: MultiVectorRequest) -> Response:
        """{model, usage, data: [{object: embeddings, index, embeddings: a vector for each
        token}]}.
        """
        info = await handler.pick("multi_vector", body.model)
        texts = [body.input] if isinstance(body.input, str) else body.input
        options = {} if body.input_type is None else {"as_query": body.input_type == "query"}
        truncation = Truncation(body.truncate is not False)
        handled = await handler.predict(
            info, texts, field="input", options=options, truncation=truncation
        )
        data = (
            {"object": "embeddings", "index": i, "embeddings": (row.tolist() for row in vectors)}
            for i, vectors in enumerate(handled.response.results)
        )
        usage = {"prompt_tokens": handled.n_tokens, "total_tokens": handled.n_tokens}
        return handled.reply({"object": "list", "model": info.name, "usage": usage, "data": data})

    return [router]


async def jina_rerank(handler: RequestHandler, body: JinaRequest, name: str | None) -> Response:
    """Answer a request for the model called `name`, or for the first that reranks."""
    asked = handler.models.aliases.get(body.model or "", body.model)
    if name and asked not in (None, name, handler.models.aliases.get(name)):
        raise ApiError(
            "unknown_model",
            f"model {str(body.model)[:60]!r} is not here; this is {name}",
            field="model",
        )
    info = await handler.pick("rerank", name or body.model)
    texts = [_text(i, document, body.rank_fields) for i, document in enumerate(body.documents)]
    more = truncation_options(info, "truncate_prompt_tokens", body.truncate_prompt_tokens)
    handled, order = await rerank(
        handler,
        info,
        body.query,
        texts,
        "documents",
        raw=bool(body.raw_scores),
        truncation=Truncation(),
        more=more,
    )
    infinity = body.raw_scores is not None
    shown = body.return_documents if body.return_documents is not None else not infinity
    results = [
        {"index": i, "relevance_score": score} | _document(texts[i], shown, infinity)
        for i, score in order[: body.top_n or None]
    ]
    usage = {"prompt_tokens": handled.n_tokens, "total_tokens": handled.n_tokens}
    return handled.reply(
        {"object": "rerank", "model": info.name, "usage": usage, "results": results}
    )


def _text(number: int, document: str | JinaDocument, rank_fields: list[str] | None) -> str:
    """Return what is ranked of a document; ApiError where it has none of the fields."""
    if isinstance(document, str):
        return document
    fields = document.model_dump()
    found = [
        fields[name]
        for name in rank_fields or ["text"]
        if isinstance(fields.get(name), str) and fields[name]
    ]
    if not found:
        wanted = ", ".join((rank_fields or ["text"])[:10])
        raise ApiError("invalid", f"documents[{number}] has no text in {wanted}", field="documents")
    return "\n".join(found)


def _document(text: str, shown: bool, infinity: bool) -> dict[str, Any]:
    return {"document": text if infinity else {"text": text}} if shown else {}


JINA = Dialect(
    "Jina",
    JinaError,
    lambda error: {"detail": error.message},
    prefixes=("/v1/rerank", "/v1/multi-vector"),
    routes=routes,
)
