"""Jina's dialect: /v1/multi-vector, and rerank, which vLLM, Infinity, llama.cpp and Cohere's older
clients speak, too; its paths are in rerank_paths.py.

`raw_scores` is Infinity's alone: where it is there, `document` is a text, as Infinity gives it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Literal

from fastapi import APIRouter
from pydantic import BaseModel, Discriminator, Field, Tag
from starlette.responses import Response

from modernbert.stored import Json
from pipelines.serve.http.bodies import Flag, Int, Many, NonEmpty, Texts, TolerantBody, as_list
from pipelines.serve.http.dialect import Dialect
from pipelines.serve.http.dialects.shared import rerank, truncation_options
from pipelines.serve.http.errors import ApiError
from pipelines.serve.http.handler import RequestHandler, Truncation
from pipelines.serve.http.routes import new_router, route_docs


class JinaError(BaseModel):
    """The shape of an error."""

    detail: str


class JinaDocument(TolerantBody):
    """A document as an object: its text, or with rank_fields others."""

    text: NonEmpty | None = None

    @property
    def ignored(self) -> list[str]:
        return []  # documents bring their metadata along


def _document_tag(document: object) -> str:
    return "<object>" if isinstance(document, dict | JinaDocument) else "<text>"


TextOrObject = Annotated[
    Annotated[NonEmpty, Tag("<text>")] | Annotated[JinaDocument, Tag("<object>")],
    Discriminator(_document_tag),
]


class JinaRequest(TolerantBody):
    """A query and documents."""

    model: str | None = Field(default=None, description="default: the first that reranks")
    query: NonEmpty
    documents: Many[TextOrObject]
    top_n: Int | None = Field(
        default=None, ge=0, description="how many results (default, and 0: all)"
    )
    return_documents: Flag | None = Field(
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
    raw_scores: Flag | None = Field(
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
    truncate: Flag | None = Field(
        default=None, description="false: refuse inputs that are too long"
    )


def _add_multi_vector(router: APIRouter, handler: RequestHandler) -> None:
    model = handler.example_model("multi_vector")
    example = {"model": model, "input": ["Where is my parcel?"], "input_type": "query"}

    @router.post("/v1/multi-vector", **route_docs(Json, example, JINA))
    async def multi_vector(body: MultiVectorRequest) -> Response:
        """{model, usage, data: [{object: embeddings, index, embeddings: a vector for each
        token}]}.
        """
        info = await handler.pick("multi_vector", body.model)
        texts = as_list(body.input)
        options = {} if body.input_type is None else {"as_query": body.input_type == "query"}
        handled = await handler.predict(
            info,
            texts,
            field="input",
            options=options,
            truncation=Truncation(body.truncate is not False),
        )
        data = (
            {"object": "embeddings", "index": i, "embeddings": vectors}
            for i, vectors in enumerate(handled.token_vectors)
        )
        content = {"object": "list", "model": info.name, "usage": handled.usage, "data": data}
        return handled.reply(content)


def routes(handler: RequestHandler) -> Sequence[APIRouter]:
    """Make the route /v1/multi-vector."""
    router = new_router(JINA, tags=["Jina"])
    _add_multi_vector(router, handler)
    return [router]


async def jina_rerank(handler: RequestHandler, body: JinaRequest) -> Response:
    """Answer with {model, usage, results: [{index, relevance_score, document}]}, best first."""
    info = await handler.pick("rerank", body.model)
    texts = [_text(i, document, body.rank_fields) for i, document in enumerate(body.documents)]
    handled, ranked = await rerank(
        handler,
        info,
        body.query,
        texts,
        "documents",
        raw=bool(body.raw_scores),
        more=truncation_options(info, "truncate_prompt_tokens", body.truncate_prompt_tokens),
    )
    # Jina gives documents back unless told otherwise, Infinity only where it is asked to.
    is_infinity = body.raw_scores is not None
    with_documents = body.return_documents
    if with_documents is None:
        with_documents = not is_infinity
    results: list[Json] = []
    for i, score in ranked[: body.top_n or None]:
        result: Json = {"index": i, "relevance_score": score}
        if with_documents:
            result["document"] = texts[i] if is_infinity else {"text": texts[i]}
        results.append(result)
    content = {"object": "rerank", "model": info.name, "usage": handled.usage, "results": results}
    return handled.reply(content)


def _text(number: int, document: str | JinaDocument, rank_fields: list[str] | None) -> str:
    """Return what is ranked of a document; ApiError where it has none of the fields."""
    if isinstance(document, str):
        return document
    names = rank_fields or ["text"]
    fields = document.model_dump()
    values = [fields.get(name) for name in names]
    texts = [value for value in values if isinstance(value, str) and value]
    if not texts:
        message = f"documents[{number}] has no text in {', '.join(names[:10])}"
        raise ApiError("invalid", message, field="documents")
    return "\n".join(texts)


JINA = Dialect(
    "Jina",
    JinaError,
    lambda error: {"detail": error.message},
    prefixes=("/v1/rerank", "/reranking", "/v1/reranking", "/v1/multi-vector"),
    routes=routes,
)
