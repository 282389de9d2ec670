"""Jina's dialect, which vLLM speaks too: /v1/rerank."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any

from fastapi import APIRouter
from pydantic import BaseModel, Discriminator, Field, Tag
from starlette.responses import Response

from pipelines.serve.http.errors import ApiError, Dialect
from pipelines.serve.http.handler import Body, Int, NonEmpty, RequestHandler, new_router, route_docs
from pipelines.serve.http.tasks import RERANK_EXAMPLE, rerank


class JinaError(BaseModel):
    """The shape of an error."""

    detail: str


class JinaDocument(Body):
    """A document as an object."""

    text: NonEmpty


TextOrObject = Annotated[
    Annotated[NonEmpty, Tag("<text>")] | Annotated[JinaDocument, Tag("<object>")],
    Discriminator(lambda document: "<object>" if isinstance(document, dict | JinaDocument) else "<text>"),
]


class JinaRequest(Body):
    """Jina's and vLLM's: a query and documents."""

    model: str | None = Field(default=None, description="default: the first that reranks")
    query: NonEmpty
    documents: list[TextOrObject] = Field(min_length=1)
    top_n: Int | None = Field(default=None, ge=1, description="how many results (default: all)")
    return_documents: bool = Field(default=True, description="give each document's text back")


def routes(handler: RequestHandler) -> Sequence[APIRouter]:
    """Make the route /v1/rerank."""
    router = new_router(JINA, tags=["Jina, vLLM"])
    example = {"model": handler.first("rerank") or "none here", **RERANK_EXAMPLE, "top_n": 1}

    @router.post("/v1/rerank", **route_docs(dict[str, Any], example, JINA))
    async def jina(body: JinaRequest) -> Response:
        """{model, usage, results: [{index, relevance_score, document: {text}}]} from best to worst."""
        return await jina_rerank(handler, body, body.model)

    return [router]


async def jina_rerank(handler: RequestHandler, body: JinaRequest, name: str | None) -> Response:
    """Answer a request for the model called `name`, or for the first that reranks."""
    if name and body.model not in (None, name):
        raise ApiError("unknown_model", f"model {str(body.model)[:60]!r} is not here; this is {name}", field="model")
    info = await handler.pick("rerank", name or body.model)
    texts = [document if isinstance(document, str) else document.text for document in body.documents]
    handled, order = await rerank(handler, info, body.query, texts, "documents")
    text = (lambda i: {"document": {"text": texts[i]}}) if body.return_documents else lambda _: {}
    results = [{"index": i, "relevance_score": score, **text(i)} for i, score in order[: body.top_n]]
    usage = {"prompt_tokens": handled.n_tokens, "total_tokens": handled.n_tokens}
    return handled.reply({"model": info.name, "usage": usage, "results": results})


JINA = Dialect(
    "Jina",
    JinaError,
    lambda error: {"detail": error.message},
    prefixes=("/v1/rerank",),
    routes=routes,
)
