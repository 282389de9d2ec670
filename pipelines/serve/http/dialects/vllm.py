"""The dialect of vLLM and Infinity beside OpenAI's: /classify, /pooling, /score, /v1/score, and
Infinity's /models.

/classify is told apart by `raw_scores`, a field of Infinity's alone.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Literal

from fastapi import APIRouter, Request
from pydantic import Field
from starlette.responses import Response

from modernbert.stored import Json
from pipelines.serve.http.bodies import Flag, Int, Texts, TolerantBody, as_list
from pipelines.serve.http.dialects.openai import OPENAI
from pipelines.serve.http.dialects.shared import ClassifyParameters, classify, truncation_options
from pipelines.serve.http.errors import ApiError
from pipelines.serve.http.handler import CUT_OFF, HandledRequest, RequestHandler, Truncation
from pipelines.serve.http.responses import json_response
from pipelines.serve.http.routes import new_router, route_docs
from pipelines.serve.protocol import Info


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
    use_activation: Flag | None = Field(
        default=None, description="false: give the model's own numbers"
    )

    @property
    def truncation(self) -> Truncation:
        """Inputs that are too long are cut off where that is asked for."""
        return Truncation(self.truncate_prompt_tokens is not None, self.truncation_side)

    def length_options(self, info: Info) -> dict[str, int]:
        """Return the task's options for the length that inputs are cut to."""
        return truncation_options(info, "truncate_prompt_tokens", self.truncate_prompt_tokens)


class VllmClassifyRequest(VllmRequest):
    """Texts to classify."""

    input: Texts
    raw_scores: Flag | None = Field(
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
    """Make the routes of vLLM and Infinity."""
    router = new_router(VLLM, tags=["vLLM, Infinity"])
    _add_classify(router, handler)
    _add_pooling(router, handler)
    _add_score(router, handler)
    _add_models(router, handler)
    return [router]


def _add_classify(router: APIRouter, handler: RequestHandler) -> None:
    example = {"model": handler.example_model("classify"), "input": ["Where is my parcel?"]}

    @router.post("/classify", **route_docs(Json, example))
    async def classify_texts(body: VllmClassifyRequest, request: Request) -> Response:
        """{data: [{index, label, probs, num_classes}]}; with raw_scores Infinity's {data: [[{label,
        score}]]}.
        """
        info = await handler.pick("classify", body.model)
        texts = as_list(body.input)
        is_infinity = body.raw_scores is not None
        handled, labels = await classify(
            handler,
            info,
            texts,
            ClassifyParameters(),
            field="input",
            raw=body.use_activation is False or body.raw_scores is True,
            truncation=CUT_OFF if is_infinity else body.truncation,
            more=body.length_options(info),
        )
        if is_infinity:
            return _reply(handled, request, "classify", labels)
        data = []
        for i, scores in enumerate(labels):
            by_label = {score["label"]: score["score"] for score in scores}
            item = {
                "index": i,
                "label": scores[0]["label"],
                "probs": [by_label[label] for label in info.labels],
                "num_classes": len(info.labels),
            }
            data.append(item)
        return _reply(handled, request, "list", data)


def _add_pooling(router: APIRouter, handler: RequestHandler) -> None:
    example = {"model": handler.example_model("multi_vector"), "input": ["Where is my parcel?"]}

    @router.post("/pooling", **route_docs(Json, example))
    async def pooling(body: PoolingRequest, request: Request) -> Response:
        """{data: [{index, object: pooling, data: a vector for each token}]} of a multi-vector
        encoder.
        """
        info = await handler.pick("multi_vector", body.model)
        texts = as_list(body.input)
        options = body.length_options(info)
        handled = await handler.predict(
            info, texts, field="input", options=options, truncation=body.truncation
        )
        data = (
            {"index": i, "object": "pooling", "data": vectors}
            for i, vectors in enumerate(handled.token_vectors)
        )
        return _reply(handled, request, "list", data)


def _add_score(router: APIRouter, handler: RequestHandler) -> None:
    example = {
        "model": handler.example_model("rerank"),
        "text_1": "Where is my parcel?",
        "text_2": ["Here."],
    }

    @router.post("/score", include_in_schema=False)
    @router.post("/v1/score", **route_docs(Json, example))
    async def score(body: ScoreRequest, request: Request) -> Response:
        """{data: [{index, object: score, score}]}, in the order of the pairs."""
        info = await handler.pick("rerank", body.model)
        pairs = _pairs(body)
        options = {"raw_scores": body.use_activation is False, **body.length_options(info)}
        handled = await handler.predict(
            info, pairs, field="text_2", options=options, truncation=body.truncation
        )
        data = [
            {"index": i, "object": "score", "score": each}
            for i, each in enumerate(handled.response.results)
        ]
        return _reply(handled, request, "list", data)


def _add_models(router: APIRouter, handler: RequestHandler) -> None:
    @router.get("/models", include_in_schema=False)
    async def models() -> Response:
        """Every model online, as Infinity tells them."""
        data = [_model(name, handler.models.tasks[name]) for name in handler.visible]
        return json_response({"object": "list", "data": data})


def _model(name: str, task: str) -> Json:
    return {
        "id": name,
        "object": "model",
        "owned_by": "infinity",  # its client takes no other owner
        "created": 0,
        "stats": {},
        "backend": "modernbert-ray",
        "capabilities": [task] if task in ("embed", "classify", "rerank") else [],
    }


def _pairs(body: ScoreRequest) -> list[tuple[str, str]]:
    """Return the pairs to score: one first text with each second, or as many of each."""
    first = _texts("text_1", body.text_1, body.queries, body.data_1)
    second = _texts("text_2", body.text_2, body.documents, body.items, body.data_2)
    if len(first) not in (1, len(second)):
        message = (
            f"text_1 holds {len(first)} texts and text_2 {len(second)}; send as many of each, or "
            "one text_1"
        )
        raise ApiError("invalid", message, field="text_1")
    if len(first) == 1:
        first = first * len(second)
    return list(zip(first, second, strict=True))


def _texts(name: str, *values: str | list[str] | None) -> list[str]:
    """Return the texts that stand under one of a field's names; ApiError for none, or several."""
    sent = [value for value in values if value is not None]
    if not sent:
        raise ApiError("invalid", f"{name} is missing", field=name)
    if len(sent) > 1:
        message = f"{name} and another name of it are both there; send one"
        raise ApiError("invalid", message, field=name)
    return as_list(sent[0])


def _reply(
    handled: HandledRequest, request: Request, kind: str, data: Iterable[object]
) -> Response:
    content = {
        "id": request.scope.get("request_id"),
        "object": kind,
        "created": int(time.time()),
        "model": handled.info.name,
        "data": data,
        "usage": {**handled.usage, "completion_tokens": 0},
    }
    return handled.reply(content)


VLLM = replace(
    OPENAI, name="vLLM", prefixes=("/classify", "/pooling", "/score", "/v1/score"), routes=routes
)
