"""Reranking as TEI, Cohere (v2) and Jina (also vLLM) ask for it."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Request
from pydantic import Discriminator, Field, Tag
from starlette.responses import Response

from pipelines.serve.http.errors import COHERE, JINA, TEI, ApiError
from pipelines.serve.http.handler import Body, Int, NonEmpty, RequestHandler, new_router, route_docs
from pipelines.serve.http.tasks import TruncationParams, rerank
from pipelines.serve.protocol import Info

_QUERY = "Where is my parcel?"
_TEXTS = ["You can track your order here.", "Our shops open at nine."]


class TeiRequest(TruncationParams):
    """TEI's: a query and texts."""

    query: NonEmpty
    texts: list[NonEmpty] = Field(min_length=1)
    raw_scores: bool = Field(default=False, description="give the model's own numbers, not their sigmoid")
    return_text: bool = False


class CohereRequest(Body):
    """Cohere's: a query and documents."""

    model: str
    query: NonEmpty
    documents: list[NonEmpty] = Field(min_length=1)
    top_n: Int | None = Field(default=None, ge=1, description="how many results (default: all)")
    max_tokens_per_doc: Int | None = Field(default=None, ge=1, description="cut longer documents to so many tokens")
    priority: Int | None = Field(default=None, description="not used: requests are answered in turn")


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


def _whose(body: Any) -> str:
    return "<jina>" if isinstance(body, dict) and "documents" in body else "<tei>"


SharedRequest = Annotated[
    Annotated[TeiRequest, Tag("<tei>")] | Annotated[JinaRequest, Tag("<jina>")], Discriminator(_whose)
]


def rerank_routes(handler: RequestHandler, name: str | None) -> APIRouter:
    """`/rerank`, TEI's with `texts`, Jina's with `documents`: of the model called `name`, or of the first."""
    router = new_router(TEI, JINA)

    @router.post("/rerank", **route_docs(list[dict[str, Any]] | dict[str, Any], {"query": _QUERY, "texts": _TEXTS}))
    async def shared(body: SharedRequest, request: Request) -> Response:
        """TEI: [{index, score, text?}] from best to worst. With `documents` in place of `texts`, as /v1/rerank."""
        if isinstance(body, JinaRequest):
            request.scope["dialect"] = JINA
            return await _jina(handler, body, name)
        info = await handler.pick("rerank", name)
        handled, order = await rerank(handler, info, body.query, body.texts, "texts", raw=body.raw_scores, **body.cut)
        text = (lambda i: {"text": body.texts[i]}) if body.return_text else lambda _: {}
        return handled.reply([{"index": i, "score": score, **text(i)} for i, score in order])

    return router


def cohere_and_jina_routes(handler: RequestHandler) -> APIRouter:
    """`/v2/rerank` and `/v1/rerank`."""
    router = new_router()
    example = {"model": handler.first("rerank") or "none here", "query": _QUERY, "documents": _TEXTS, "top_n": 1}

    @router.post("/v2/rerank", **route_docs(dict[str, Any], example, COHERE), tags=["Cohere"])
    async def cohere(body: CohereRequest, request: Request) -> Response:
        """{id, results: [{index, relevance_score}], meta} from best to worst."""
        info = await handler.pick("rerank", body.model)
        documents, cut = body.documents, set[int]()
        if body.max_tokens_per_doc is not None:
            documents, cut = await _first_tokens(handler, info, documents, body.max_tokens_per_doc)
        handled, order = await rerank(handler, info, body.query, documents, "documents")
        handled.cut |= cut
        meta: dict[str, Any] = {"api_version": {"version": "2"}, "tokens": {"input_tokens": handled.n_tokens}}
        if handled.cut:
            meta["warnings"] = [f"documents[{i}] was cut off" for i in sorted(handled.cut)]
        results = [{"index": i, "relevance_score": score} for i, score in order[: body.top_n]]
        return handled.reply({"id": request.scope.get("request_id"), "results": results, "meta": meta})

    @router.post("/v1/rerank", **route_docs(dict[str, Any], example, JINA), tags=["Jina, vLLM"])
    async def jina(body: JinaRequest) -> Response:
        """{model, usage, results: [{index, relevance_score, document: {text}}]} from best to worst."""
        return await _jina(handler, body, body.model)

    return router


async def _jina(handler: RequestHandler, body: JinaRequest, name: str | None) -> Response:
    if name and body.model not in (None, name):
        raise ApiError("unknown_model", f"model {str(body.model)[:60]!r} is not here; this is {name}", field="model")
    info = await handler.pick("rerank", name or body.model)
    texts = [document if isinstance(document, str) else document.text for document in body.documents]
    handled, order = await rerank(handler, info, body.query, texts, "documents")
    text = (lambda i: {"document": {"text": texts[i]}}) if body.return_documents else lambda _: {}
    results = [{"index": i, "relevance_score": score, **text(i)} for i, score in order[: body.top_n]]
    usage = {"prompt_tokens": handled.n_tokens, "total_tokens": handled.n_tokens}
    return handled.reply({"model": info.name, "usage": usage, "results": results})


async def _first_tokens(
    handler: RequestHandler, info: Info, texts: list[str], count: int
) -> tuple[list[str], set[int]]:
    """Each text up to the end of its token `count`, and which of them that cuts."""
    out, cut = [*texts], set()
    for i, tokens in enumerate(await handler.tokenize(info, texts, "documents", False)):
        if len(tokens.ids) > count:
            out[i] = texts[i][: (tokens.offsets[count - 1] or (0, 0))[1]]
            cut.add(i)
    return out, cut
