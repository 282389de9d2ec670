"""Cohere's dialect: /v2/rerank."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from fastapi import APIRouter, Request
from pydantic import BaseModel, Field
from starlette.responses import Response

from pipelines.serve.http.errors import Dialect
from pipelines.serve.http.handler import Body, Int, NonEmpty, RequestHandler, new_router, route_docs
from pipelines.serve.http.tasks import RERANK_EXAMPLE, rerank
from pipelines.serve.protocol import Info


class CohereError(BaseModel):
    """The shape of an error."""

    message: str


class CohereRequest(Body):
    """Cohere's: a query and documents."""

    model: str
    query: NonEmpty
    documents: list[NonEmpty] = Field(min_length=1)
    top_n: Int | None = Field(default=None, ge=1, description="how many results (default: all)")
    max_tokens_per_doc: Int | None = Field(default=None, ge=1, description="cut longer documents to so many tokens")
    priority: Int | None = Field(default=None, description="not used: requests are answered in turn")


def routes(handler: RequestHandler) -> Sequence[APIRouter]:
    """Make the route /v2/rerank."""
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
        meta: dict[str, Any] = {"api_version": {"version": "2"}, "tokens": {"input_tokens": handled.n_tokens}}
        if handled.truncated:
            meta["warnings"] = [f"documents[{i}] was cut off" for i in sorted(handled.truncated)]
        results = [{"index": i, "relevance_score": score} for i, score in order[: body.top_n]]
        return handled.reply({"id": request.scope.get("request_id"), "results": results, "meta": meta})

    return [router]


async def _first_tokens(
    handler: RequestHandler, info: Info, texts: list[str], count: int
) -> tuple[list[str], set[int]]:
    """Cut each text after its first `count` tokens; also return the indices of texts that this shortens."""
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
    prefixes=("/v2",),
    routes=routes,
)
