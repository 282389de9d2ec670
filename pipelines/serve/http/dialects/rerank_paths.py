"""The paths of rerankers that several dialects share, whose bodies tell them apart.

| a body with | is of |
|---|---|
| `texts` | TEI, Elasticsearch |
| `input` | mixedbread; not on /rerank |
| `documents`, `property` | Weaviate |
| `documents`, `top_k` or `truncation` | Voyage |
| `documents` | Jina, vLLM, Infinity, llama.cpp, Cohere's first version |

On /rerank a body with none of them is TEI's, elsewhere Jina's.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Annotated

from fastapi import APIRouter
from pydantic import Discriminator, Tag
from starlette.responses import Response

from modernbert.stored import Json
from pipelines.serve.http.dialect import Dialect
from pipelines.serve.http.dialects.jina import JINA, JinaRequest, jina_rerank
from pipelines.serve.http.dialects.mixedbread import MixedbreadRequest, mixedbread_rerank
from pipelines.serve.http.dialects.shared import RERANK_EXAMPLE
from pipelines.serve.http.dialects.tei import TEI, TeiRerankRequest, tei_rerank
from pipelines.serve.http.dialects.voyage import VoyageRequest, is_voyage, voyage_rerank
from pipelines.serve.http.dialects.weaviate import WeaviateRerankRequest, weaviate_rerank
from pipelines.serve.http.handler import RequestHandler
from pipelines.serve.http.routes import new_router, route_docs, shared_path

_Requests = (
    Annotated[TeiRerankRequest, Tag("<tei>")]
    | Annotated[MixedbreadRequest, Tag("<mixedbread>")]
    | Annotated[WeaviateRerankRequest, Tag("<weaviate>")]
    | Annotated[VoyageRequest, Tag("<voyage>")]
    | Annotated[JinaRequest, Tag("<jina>")]
)


def _tag(body: object, default: str) -> str:
    """Tell whose body it is; `default`: where no field tells."""
    if not isinstance(body, dict):
        return default
    if body.get("documents") is not None:
        if "property" in body:
            return "<weaviate>"
        return "<voyage>" if is_voyage(body) else "<jina>"
    if body.get("texts") is not None:
        return "<tei>"
    is_mixedbread = default == "<jina>" and body.get("input") is not None
    return "<mixedbread>" if is_mixedbread else default


def _tei_or_other(body: object) -> str:
    return _tag(body, "<tei>")


def _jina_or_other(body: object) -> str:
    return _tag(body, "<jina>")


def _dialect(tag_of: Callable[[object], str]) -> Callable[[object], Dialect]:
    """Return what tells in which dialect mistakes in a body are answered."""
    return lambda body: TEI if tag_of(body) in ("<tei>", "<weaviate>") else JINA


_TeiOrOther = Annotated[_Requests, Discriminator(_tei_or_other)]
_JinaOrOther = Annotated[_Requests, Discriminator(_jina_or_other)]


def routes(handler: RequestHandler) -> Sequence[APIRouter]:
    """Make the routes /rerank, /v1/rerank, /reranking and /v1/reranking."""
    router = new_router(TEI, JINA, tags=["rerankers"])
    answers = route_docs(list[Json] | Json, {**RERANK_EXAMPLE, "top_n": 1}, TEI, JINA)
    tei_example = {"query": RERANK_EXAMPLE["query"], "texts": RERANK_EXAMPLE["documents"]}

    @router.post("/rerank", **route_docs(list[Json] | Json, tei_example, TEI, JINA))
    @shared_path(_dialect(_tei_or_other))
    async def rerank_texts(body: _TeiOrOther) -> Response:
        """With `texts` TEI's [{index, score, text?}] from best to worst; else as /v1/rerank."""
        return await _answer(handler, body)

    @router.post("/reranking", **answers)
    @router.post("/v1/reranking", **answers)
    @router.post("/v1/rerank", **answers)
    @shared_path(_dialect(_jina_or_other))
    async def rerank_documents(body: _JinaOrOther) -> Response:
        """{model, usage, results: [{index, relevance_score, document: {text}}]} from best to
        worst; Voyage's `top_k` or `truncation`, mixedbread's `input`, Weaviate's `property` and
        TEI's `texts` have their servers' answers.
        """
        return await _answer(handler, body)

    return [router]


async def _answer(handler: RequestHandler, body: _Requests) -> Response:
    if isinstance(body, TeiRerankRequest):
        return await tei_rerank(handler, body)
    if isinstance(body, MixedbreadRequest):
        return await mixedbread_rerank(handler, body)
    if isinstance(body, WeaviateRerankRequest):
        return await weaviate_rerank(handler, body)
    if isinstance(body, VoyageRequest):
        return await voyage_rerank(handler, body)
    return await jina_rerank(handler, body)
