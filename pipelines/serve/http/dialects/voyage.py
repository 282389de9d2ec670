"""Voyage's rerank, on /v1/rerank; its /v1/embeddings is OpenAI's with the fields in
embedding_fields.py.
"""

from __future__ import annotations

from pydantic import Field
from starlette.responses import Response

from modernbert.stored import Json
from pipelines.serve.http.bodies import Flag, Int, Many, NonEmpty, TolerantBody
from pipelines.serve.http.dialects.shared import rerank
from pipelines.serve.http.handler import RequestHandler, Truncation


class VoyageRequest(TolerantBody):
    """A query and documents, with one of Voyage's fields: `top_k` or `truncation`."""

    model: str | None = Field(default=None, description="default: the first that reranks")
    query: NonEmpty
    documents: Many[NonEmpty]
    top_k: Int | None = Field(default=None, ge=1, description="how many results (default: all)")
    return_documents: Flag | None = Field(
        default=None, description="give each document back (default: false)"
    )
    truncation: Flag | None = Field(
        default=None, description="false: refuse pairs that are too long"
    )


def is_voyage(body: Json) -> bool:
    """Tell Voyage's body from the others with documents."""
    return body.get("top_k") is not None or body.get("truncation") is not None


async def voyage_rerank(handler: RequestHandler, body: VoyageRequest) -> Response:
    """Answer with {data: [{index, relevance_score, document?}]} from best to worst."""
    info = await handler.pick("rerank", body.model)
    truncation = Truncation(body.truncation is not False)
    handled, ranked = await rerank(
        handler, info, body.query, body.documents, "documents", truncation=truncation
    )
    data: list[Json] = []
    for i, score in ranked[: body.top_k]:
        result: Json = {"index": i, "relevance_score": score}
        if body.return_documents:
            result["document"] = body.documents[i]
        data.append(result)
    content = {"object": "list", "data": data, "model": info.name, "usage": handled.usage}
    return handled.reply(content)
