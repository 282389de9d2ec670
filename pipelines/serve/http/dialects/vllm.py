"""The dialect of vLLM and Infinity beside OpenAI's: /classify, /pooling, /score, /v1/score, and
Infinity's /models.

/classify is told apart by `raw_scores`, a field of Infinity's alone.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any, Literal

from fastapi import APIRouter, Request
from pydantic import Field
from starlette.responses import Response

from pipelines.serve.http.bodies import (
    Int,
    Texts,
    TolerantBody,
    json_response,
    new_router,
    route_docs,
)
from pipelines.serve.http.dialects.openai import OPENAI
from pipelines.serve.http.dialects.shared import ClassifyParameters, classify, truncation_options
from pipelines.serve.http.errors import ApiError
from pipelines.serve.http.handler import HandledRequest, RequestHandler, Truncation


class VllmRequest(TolerantBody):
    """What every request may say."""

    model: str | None = Field(default=None, description="default: the first that does the task")
    user: str | None = Field(default=None, description="not used")
    truncate_prompt_tokens: Int | None = Field(
        default=None,
        ge=-1,
        description="cut inputs to so many tokens (-1: to what the model reads)",
    )
    truncation_side: Literal["left", "right"] | None = Field(
        default=None, description="where they are cut off"
    )
    use_activation: bool | None = Field(
        default=None, description="false: give the model's own numbers"
    )

    @property
    def truncation(self) -> Truncation:
        """Inputs that are too long are cut off where that is asked for."""
        return Truncation(self.truncate_prompt_tokens is not None, self.truncation_side)


class VllmClassifyRequest(VllmRequest):
    """Texts to classify."""

    input: Texts
    raw_scores: bool | None = Field(
        default=None,
        description="Infinity's: give the model's own numbers; where it is there, so is its answer",
    )


class PoolingRequest(VllmRequest):
    """Texts whose vectors of tokens are wanted."""

    input: Texts
    task: Literal["token_embed"] | None = Field(
        default=None, description="what is pooled: the vectors of tokens"
    )


class ScoreRequest(VllmRequest):
    """Two texts, one text and several, or as many of each: text_1 or queries with text_2, documents
    or items.
    """

    text_1: Texts | None = None
    queries: Texts | None = None
    data_1: Texts | None = None
    text_2: Texts | None = None
    documents: Texts | None = None
    items: Texts | None = None
    data_2: Texts | None = None


def routes(handler: RequestHandler) -> Sequence[APIRouter]:
    """Make the routes of classifiers and rerankers."""
    router = new_router(VLLM, tags=["vLLM, Infinity"])
    example: dict[str, Any] = {
        "model": handler.first("classify") or "none here",
        "input": ["Where is my parcel?"],
    }

    @router.post("/classify", **route_docs(dict[str, Any], example))
    async def classify_texts(body: VllmClassifyRequest, request: Request) -> Response:
        """{data: [{index, label, probs, num_classes}]}; with raw_scores Infinity's {data: [[{label,
        score}]]}.
        """
        info = await handler.pick("classify", body.model)
        texts = [body.input] if isinstance(body.input, str) else body.input
        handled, labels = await classify(
            handler,
            info,
            texts,
            ClassifyParameters(),
            field="input",
            raw=body.use_activation is False or body.raw_scores is True,
            truncation=body.truncation if body.raw_scores is None else Truncation(),
            more=truncation_options(info, "truncate_prompt_tokens", body.truncate_prompt_tokens),
        )
        if body.raw_scores is not None:
            return _reply(handled, request, "classify", labels)
        by_label = [{score["label"]: score["score"] for score in scores} for scores in labels]
        data = [
            {
                "index": i,
                "label": labels[i][0]["label"],
                "probs": [scores[label] for label in info.labels],
                "num_classes": len(info.labels),
            }
            for i, scores in enumerate(by_label)
        ]
        return _reply(handled, request, "list", data)

    example = {
        "model": handler.first("multi_vector") or "none here",
        "input": ["Where is my parcel?"],
    }

    @router.post("/pooling", **route_docs(dict[str, Any], example))
    async def pooling(body: PoolingRequest, request: Request) -> Response:
        """{data: [{index, object: pooling, data: a vector for each token}]} of a multi-vector
        encoder.
        """
        info = await handler.pick("multi_vector", body.model)
        texts = [body.input] if isinstance(body.input, str) else body.input
        options = truncation_options(info, "truncate_prompt_tokens", body.truncate_prompt_tokens)
        handled = await handler.predict(
            info, texts, field="input", options=options, truncation=body.truncation
        )
        data = (
            {"index": i, "object": "pooling", "data": (row.tolist() for row in vectors)}
            for i, vectors in enumerate(handled.response.results)
        )
        return _reply(handled, request, "list", data)

    example = {
        "model": handler.first("rerank") or "none here",
        "text_1": "Where is my parcel?",
        "text_2": ["Here."],
    }

    @router.post("/score", include_in_schema=False)
    @router.post("/v1/score", **route_docs(dict[str, Any], example))
    async def score(body: ScoreRequest, request: Request) -> Response:
        """{data: [{index, object: score, score}]}, in the order of the pairs."""
        info = await handler.pick("rerank", body.model)
        first = _texts("text_1", body.text_1, body.queries, body.data_1)
        second = _texts("text_2", body.text_2, body.documents, body.items, body.data_2)
        if len(first) not in (1, len(second)):
            message = (
                f"text_1 holds {len(first)} texts and text_2 {len(second)}; send as many of each, "
                "or one text_1"
            )
            raise ApiError("invalid", message, field="text_1")
        pairs = list(zip(first * len(second) if len(first) == 1 else first, second, strict=True))
        options: dict[str, Any] = {"raw_scores": body.use_activation is False}
        options |= truncation_options(info, "truncate_prompt_tokens", body.truncate_prompt_tokens)
        handled = await handler.predict(
            info, pairs, field="text_2", options=options, truncation=body.truncation
        )
        data = [
            {"index": i, "object": "score", "score": each}
            for i, each in enumerate(handled.response.results)
        ]
        return _reply(handled, request, "list", data)

    @router.get("/models", include_in_schema=False)
    async def models() -> Response:
        """Every model online, as Infinity tells them."""
        tasks = handler.models.tasks.items()
        return json_response(
            {"object": "list", "data": [_model(name, task) for name, task in tasks]}
        )

    return [router]


def _model(name: str, task: str) -> dict[str, Any]:
    capabilities = [task] if task in ("embed", "classify", "rerank") else []
    described = {
        "id": name,
        "object": "model",
        "owned_by": "infinity",
        "created": 0,
    }  # its client takes no other owner
    return described | {"stats": {}, "backend": "modernbert-ray", "capabilities": capabilities}


def _texts(name: str, *given: str | list[str] | None) -> list[str]:
    """Return the texts that stand under one of a field's names; ApiError for none, and for
    several.
    """
    found = [each for each in given if each is not None]
    if len(found) != 1:
        message = (
            f"{name} is missing"
            if not found
            else f"{name} and another name of it are both there; send one"
        )
        raise ApiError("invalid", message, field=name)
    return [found[0]] if isinstance(found[0], str) else found[0]


def _reply(handled: HandledRequest, request: Request, kind: str, data: Iterable[Any]) -> Response:
    usage = {
        "prompt_tokens": handled.n_tokens,
        "total_tokens": handled.n_tokens,
        "completion_tokens": 0,
    }
    content = {"id": request.scope.get("request_id"), "object": kind, "created": int(time.time())}
    return handled.reply(content | {"model": handled.info.name, "data": data, "usage": usage})


VLLM = replace(
    OPENAI, name="vLLM", prefixes=("/classify", "/pooling", "/score", "/v1/score"), routes=routes
)
