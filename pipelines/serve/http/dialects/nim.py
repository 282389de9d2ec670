"""NVIDIA NIM's rerankers: /v1/ranking; its /v1/embeddings is OpenAI's with the fields in
embedding_fields.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Literal

from fastapi import APIRouter
from pydantic import Field
from starlette.responses import Response

from modernbert.stored import Json
from pipelines.serve.http.bodies import Many, NonEmpty, TolerantBody
from pipelines.serve.http.dialects.openai import OPENAI
from pipelines.serve.http.dialects.shared import RERANK_EXAMPLE, rerank
from pipelines.serve.http.errors import ApiError
from pipelines.serve.http.handler import RequestHandler, Truncation
from pipelines.serve.http.routes import new_router, route_docs


class Passage(TolerantBody):
    """A text as an object."""

    text: NonEmpty
    image: str | None = Field(default=None, description="not available: the models read texts")


class RankingRequest(TolerantBody):
    """A query and the passages to rank."""

    model: str | None = Field(default=None, description="default: the first that reranks")
    query: Passage
    passages: Many[Passage]
    truncate: Literal["NONE", "END"] | None = Field(
        default=None, description="END: cut pairs that are too long off; else they are refused"
    )


def routes(handler: RequestHandler) -> Sequence[APIRouter]:
    """Make the route /v1/ranking."""
    router = new_router(NIM, tags=["NVIDIA NIM"])
    query, texts = RERANK_EXAMPLE["query"], RERANK_EXAMPLE["documents"]
    example: Json = {
        "model": handler.example_model("rerank"),
        "query": {"text": query},
        "passages": [{"text": text} for text in texts],
    }

    @router.post("/v1/ranking", **route_docs(Json, example, NIM))
    async def ranking(body: RankingRequest) -> Response:
        """{rankings: [{index, logit}]} from best to worst: the model's own numbers."""
        if any(each.image for each in (body.query, *body.passages)):
            raise ApiError("invalid", "image is not available: the models read texts")
        info = await handler.pick("rerank", body.model)
        handled, ranked = await rerank(
            handler,
            info,
            body.query.text,
            [passage.text for passage in body.passages],
            "passages",
            raw=True,
            truncation=Truncation(body.truncate == "END", "right"),
        )
        rankings = [{"index": i, "logit": score} for i, score in ranked]
        return handled.reply({"rankings": rankings, "usage": handled.usage})

    return [router]


NIM = replace(OPENAI, name="NVIDIA NIM", prefixes=("/v1/ranking",), routes=routes)
