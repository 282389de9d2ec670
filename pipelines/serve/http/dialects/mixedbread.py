"""mixedbread's rerank, on /v1/reranking; its /v1/embeddings is OpenAI's with the fields in
embedding_fields.py.
"""

from __future__ import annotations

from pydantic import Field
from starlette.responses import Response

from modernbert.stored import Json
from pipelines.serve.http.bodies import Flag, Int, Many, NonEmpty, TolerantBody
from pipelines.serve.http.dialects.shared import rerank
from pipelines.serve.http.errors import ApiError
from pipelines.serve.http.handler import RequestHandler


class MixedbreadRequest(TolerantBody):
    """A query, and texts to rank as `input`."""

    model: str | None = Field(default=None, description="default: the first that reranks")
    query: NonEmpty
    input: Many[NonEmpty]
    top_k: Int | None = Field(default=None, ge=1, description="how many results (default: all)")
    return_input: Flag | None = Field(
        default=None, description="give each text back (default: false)"
    )
    rewrite_query: Flag | None = Field(default=None, description="not available: leave it out")


async def mixedbread_rerank(handler: RequestHandler, body: MixedbreadRequest) -> Response:
    """Answer with {data: [{index, score, input?}]} from best to worst."""
    if body.rewrite_query:
        message = "rewrite_query is not available here: send the query as it is to be read"
        raise ApiError("invalid", message, field="rewrite_query")
    info = await handler.pick("rerank", body.model)
    handled, ranked = await rerank(handler, info, body.query, body.input, "input")
    data: list[Json] = []
    for i, score in ranked[: body.top_k]:
        result: Json = {"index": i, "score": score, "object": "rank_result"}
        if body.return_input:
            result["input"] = body.input[i]
        data.append(result)
    content = {
        "object": "list",
        "data": data,
        "model": info.name,
        "usage": handled.usage,
        "top_k": len(data),
        "return_input": bool(body.return_input),
    }
    return handled.reply(content)
