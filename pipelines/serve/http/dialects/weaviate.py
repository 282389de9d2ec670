"""Weaviate's inference containers, text2vec-transformers and reranker-transformers: /vectors,
/meta, /.well-known/ready, and a body of /rerank.

Weaviate has no key for them, and takes no model: give it /models/{name} as the container's URL.
"""

from __future__ import annotations

from collections.abc import Sequence

from fastapi import APIRouter
from pydantic import Field
from starlette.responses import Response

from modernbert.stored import Json
from pipelines.serve.http.bodies import Int, Many, NonEmpty, TolerantBody
from pipelines.serve.http.dialect import Dialect
from pipelines.serve.http.dialects.shared import embed, prompt_of, rerank
from pipelines.serve.http.dialects.tei import TEI
from pipelines.serve.http.errors import ApiError
from pipelines.serve.http.handler import RequestHandler
from pipelines.serve.http.responses import json_response
from pipelines.serve.http.routes import new_router, route_docs


class VectorConfig(TolerantBody):
    """What Weaviate says of a text."""

    task_type: str | None = Field(default=None, description="query or passage (default)")
    dimensions: Int | None = Field(
        default=None, ge=1, description="give only the first numbers of the vector"
    )


class VectorsRequest(TolerantBody):
    """A text to embed."""

    text: NonEmpty
    config: VectorConfig | None = None


class WeaviateRerankRequest(TolerantBody):
    """A query and documents, with `property`, which Weaviate always sends."""

    query: NonEmpty
    documents: Many[NonEmpty]
    property: str | None = Field(default=None, description="not used where there are documents")


async def weaviate_rerank(handler: RequestHandler, body: WeaviateRerankRequest) -> Response:
    """Answer with {query, scores: [{document, score}]} in the order of the documents."""
    info = await handler.pick("rerank")
    handled, ranked = await rerank(handler, info, body.query, body.documents, "documents")
    scores = [{"document": body.documents[i], "score": score} for i, score in sorted(ranked)]
    return handled.reply({"query": body.query, "scores": scores})


def routes(handler: RequestHandler) -> Sequence[APIRouter]:
    """Make the routes of the containers, but for /rerank."""
    router = new_router(WEAVIATE, tags=["Weaviate"])
    example: Json = {"text": "Where is my parcel?", "config": {"task_type": "query"}}

    @router.post("/vectors/", include_in_schema=False)
    @router.post("/vectors", **route_docs(Json, example, WEAVIATE))
    async def vectors(body: VectorsRequest) -> Response:
        """{text, vector, dim}; the vector has length one, and what is no query is a document."""
        info = await handler.pick("embed")
        config = body.config or VectorConfig()
        purpose = "query" if config.task_type == "query" else "document"
        handled = await embed(
            handler,
            info,
            [body.text],
            "text",
            prompt_name=prompt_of(info, purpose),
            dimensions=config.dimensions,
        )
        [vector] = handled.vectors
        return handled.reply({"text": body.text, "vector": vector, "dim": len(vector)})

    @router.get("/meta", response_model=Json)
    async def meta() -> Response:
        """What the model is."""
        info = await handler.info(handler.visible[0])
        content = {"model_type": "modernbert", "model_name": info.name, "task": info.task}
        return json_response(content)

    @router.get("/.well-known/live", status_code=204, include_in_schema=False)
    @router.get("/.well-known/ready", status_code=204, include_in_schema=False)
    async def ready() -> Response:
        """Tell whether the models can answer."""
        reasons = await handler.models.unready()
        for name in handler.visible:
            if name in reasons:
                raise ApiError("unhealthy", f"{name}: {reasons[name]}")
        return Response(status_code=204)

    return [router]


WEAVIATE = Dialect(
    "Weaviate",
    TEI.error_model,
    TEI.format_error,
    statuses=TEI.statuses,
    prefixes=("/vectors", "/meta", "/.well-known"),
    routes=routes,
)
